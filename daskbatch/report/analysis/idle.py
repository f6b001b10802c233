"""Finds out for how long slots were idle during a run, and why.

At each moment each idle slot has one cause: a task was ready and had not begun yet; or all tasks
that had not begun waited for others that ran; or the program had started no further task; or no
task remained.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

from daskbatch.records.run_record import RunRecord
from daskbatch.report.analysis.run_graph import RunGraph, group_name, has_run

#: A task that begins this soon after it was ready was not held up.
_CLOCK_SECONDS = 1e-6


class IdleCause(StrEnum):
    """Why a slot was idle."""

    STARTING = "tasks were ready, and had not begun yet"
    DEPENDENCIES = "all remaining tasks waited for tasks that ran"
    PROGRAM = "the program had started no further task"
    END = "no task remained"


@dataclass(frozen=True, slots=True)
class IdleTime:
    """For how long slots were idle in a run, in slot seconds.

    Parameters
    ----------
    slots : int
        The number of slots.
    seconds : float
        The makespan.
    busy : float
        How long slots were taken, all together.
    by_cause : dict of IdleCause to float
        How long slots were idle, for each cause.
    waited_for : tuple of (str, float)
        For which tasks the others waited meanwhile, by name: the idle time is divided equally
        among those that ran. The longest first.
    """

    slots: int
    seconds: float
    busy: float
    by_cause: dict[IdleCause, float]
    waited_for: tuple[tuple[str, float], ...]

    @property
    def total(self) -> float:
        """The slot seconds that there were."""
        return self.slots * self.seconds


def find_idle_time(run: RunRecord, graph: RunGraph, slots: int) -> IdleTime:
    """Return for how long slots were idle, and why.

    Parameters
    ----------
    run : RunRecord
        The run.
    graph : RunGraph
        Its tasks and edges.
    slots : int
        The number of slots.
    """
    ran = [task for task in run.tasks if has_run(task)]
    causes = dict.fromkeys(IdleCause, 0.0)
    if not ran:
        return IdleTime(slots, 0.0, 0.0, causes, ())
    begin = min(task.started or 0.0 for task in ran)
    end = max(task.ended or 0.0 for task in ran)
    #: At each time: the change of the numbers of taken slots, of slots that ready tasks ask for,
    #: of tasks that wait for others, and of tasks that the program has not started yet.
    changes: dict[float, list[int]] = {begin: [0, 0, 0, 0]}
    names: dict[float, list[tuple[str, int]]] = {}

    def change(time: float, index: int, by: int) -> None:
        changes.setdefault(min(max(time, begin), end), [0, 0, 0, 0])[index] += by

    for task in ran:
        start, over = task.started or 0.0, task.ended or 0.0
        submitted = min(task.submitted or task.created or begin, start)
        ready = min(max(graph.ready_times[task.uid], submitted), start)
        if start - ready < _CLOCK_SECONDS:
            ready = start
        change(begin, 3, 1)
        change(submitted, 3, -1)
        change(submitted, 2, 1)
        change(ready, 2, -1)
        change(ready, 1, task.slots)
        change(start, 1, -task.slots)
        change(start, 0, task.slots)
        change(over, 0, -task.slots)
        name = group_name(task.name)
        names.setdefault(min(max(start, begin), end), []).append((name, 1))
        names.setdefault(min(max(over, begin), end), []).append((name, -1))

    busy = 0.0
    running: Counter[str] = Counter()
    waited_for: Counter[str] = Counter()
    taken = ready_slots = blocked = later = 0
    times = sorted(changes)
    for time, following in pairwise([*times, end]):
        by_taken, by_ready, by_blocked, by_later = changes[time]
        taken, ready_slots = taken + by_taken, ready_slots + by_ready
        blocked, later = blocked + by_blocked, later + by_later
        for name, by in names.get(time, ()):
            running[name] += by
            if not running[name]:
                del running[name]
        seconds = following - time
        busy += min(taken, slots) * seconds
        idle = max(0, slots - taken)
        if not idle or seconds <= 0:
            continue
        starting = min(idle, max(0, ready_slots))
        causes[IdleCause.STARTING] += starting * seconds
        remaining = (idle - starting) * seconds
        if blocked > 0:
            causes[IdleCause.DEPENDENCIES] += remaining
            count = running.total()
            for name, number in running.items():
                waited_for[name] += remaining * number / count  # type: ignore[assignment]
        elif later > 0:
            causes[IdleCause.PROGRAM] += remaining
        else:
            causes[IdleCause.END] += remaining
    return IdleTime(slots, end - begin, busy, causes, tuple(waited_for.most_common(5)))
