"""Sums up the tasks of a run by their names.

Pure; any thread may call all functions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from daskbatch.records.run_record import TaskEntry
from daskbatch.report.analysis.run_graph import duration, group_name, has_run

#: All states of a task, in the order in which they are shown.
STATES = ("done", "running", "failed", "skipped", "cancelled", "waiting", "queued", "created")


@dataclass(frozen=True, slots=True)
class TaskGroup:
    """The tasks of one name.

    Parameters
    ----------
    name : str
        The name without positions.
    count : int
        The number of tasks.
    states : tuple of (str, int)
        How many are in which state.
    seconds, longest : float
        The sum of their seconds; the seconds of the longest one.
    cpu_seconds : float, optional
        The sum of their CPU seconds.
    max_memory : int, optional
        The largest peak memory of one task.
    """

    name: str
    count: int
    states: tuple[tuple[str, int], ...]
    seconds: float
    longest: float
    cpu_seconds: float | None
    max_memory: int | None

    @property
    def mean(self) -> float:
        """The mean of the seconds of those that have run."""
        ran = sum(number for state, number in self.states if state in ("done", "failed"))
        return self.seconds / ran if ran else 0.0


def count_states(tasks: Iterable[TaskEntry]) -> tuple[tuple[str, int], ...]:
    """Return how many tasks are in which state, for the states that occur."""
    counts = Counter(task.state for task in tasks)
    return tuple((state, counts[state]) for state in STATES if counts[state])


def group_by_name(tasks: Iterable[TaskEntry]) -> list[TaskGroup]:
    """Return the groups of tasks of one name, in the order of their first tasks."""
    groups: dict[str, list[TaskEntry]] = {}
    for task in tasks:
        groups.setdefault(group_name(task.name), []).append(task)
    return [_summed(name, members) for name, members in groups.items()]


def _summed(name: str, tasks: list[TaskEntry]) -> TaskGroup:
    seconds = [duration(task) for task in tasks if has_run(task) or task.seconds]
    cpu = [task.cpu_seconds for task in tasks if task.cpu_seconds is not None]
    memory = [task.max_memory for task in tasks if task.max_memory is not None]
    return TaskGroup(
        name=name,
        count=len(tasks),
        states=count_states(tasks),
        seconds=sum(seconds),
        longest=max(seconds, default=0.0),
        cpu_seconds=sum(cpu) if cpu else None,
        max_memory=max(memory, default=None),
    )
