"""Finds the tasks that determine the makespan of a run.

From the task that ended last, each step goes back to the one that ended last among those that it
waited for. This is the critical path of an execution as program activity graphs have it (Yang and
Miller, Critical path analysis for the execution of parallel and distributed programs, 1988). The
time between the end of a task on the path and the start of the next one is a gap, so the length
of the path plus its gaps is the makespan.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from daskbatch.records.run_record import Hazard, TaskEntry
from daskbatch.report.analysis.occupancy import Occupancy
from daskbatch.report.analysis.run_graph import RunGraph, duration, has_run, reason

#: All slots were taken for at least this part of a gap: then the gap is a wait for a slot.
_MIN_FULL_PART = 0.5

#: A shorter gap needs no explanation.
_MIN_GAP_SECONDS = 1e-3


@dataclass(frozen=True, slots=True)
class PathStep:
    """A task of the critical path, and why it did not begin earlier.

    Parameters
    ----------
    uid, name, state : str
        The task.
    seconds : float
        How long it took on its slot.
    reason : str
        Why it waited for the task before it on the path; empty for the first one.
    hazards : tuple of Hazard
        The same, without paths.
    gap : float
        The time from the end of the task before it, or from the begin of the run, to its start.
        It is below 0 if the clocks of two hosts differ.
    gap_cause : str
        What happened in the gap, in words; empty if it is short.
    """

    uid: str
    name: str
    state: str
    seconds: float
    reason: str = ""
    hazards: tuple[Hazard, ...] = ()
    gap: float = 0.0
    gap_cause: str = ""


@dataclass(frozen=True, slots=True)
class PathRecord:
    """The critical path of a run.

    Parameters
    ----------
    steps : tuple of PathStep
        The tasks, first to last.
    """

    steps: tuple[PathStep, ...] = ()

    @property
    def length(self) -> float:
        """The seconds of the tasks on the path."""
        return sum(step.seconds for step in self.steps)

    @property
    def gaps(self) -> float:
        """The seconds between them, and before the first one."""
        return sum(step.gap for step in self.steps)

    @property
    def makespan(self) -> float:
        """The seconds from the start of the first task of the run to the end of the last one."""
        return self.length + self.gaps


def find_critical_path(graph: RunGraph, occupancy: Occupancy) -> PathRecord:
    """Return the critical path of a run; it is empty if no task has ended.

    Parameters
    ----------
    graph : RunGraph
        The tasks and edges.
    occupancy : Occupancy
        Which slots were taken when.
    """
    ran = [task for task in graph.run.tasks if has_run(task)]
    if not ran:
        return PathRecord()
    begin = min(task.started or 0.0 for task in ran)
    task: TaskEntry = max(ran, key=lambda task: (task.ended or 0.0, task.started or 0.0))
    steps: list[PathStep] = []

    @cache
    def workers(worker: str | None) -> Occupancy:
        return Occupancy(graph.run, worker)

    seen = {task.uid}
    while True:
        waited = [each for each in graph.predecessors(task) if each[0].uid not in seen]
        found = max(waited, key=lambda each: each[0].ended or 0.0, default=None)
        since = begin if found is None else found[0].ended or 0.0
        start = task.started or 0.0
        edges = () if found is None else found[1]
        steps.append(
            PathStep(
                uid=task.uid,
                name=task.name,
                state=task.state,
                seconds=duration(task),
                reason="" if found is None else reason(found[0], task, edges),
                hazards=tuple(dict.fromkeys(edge.hazard for edge in edges)),
                gap=start - since,
                gap_cause=_cause(task, since, start, (occupancy, workers(task.worker))),
            )
        )
        if found is None:
            return PathRecord(tuple(reversed(steps)))
        task = found[0]
        seen.add(task.uid)


def _cause(
    task: TaskEntry, since: float, start: float, occupancies: tuple[Occupancy, Occupancy]
) -> str:
    """Return what happened in a gap; the occupancies are those of all slots and of its worker."""
    everywhere, there = occupancies
    gap = start - since
    if gap < _MIN_GAP_SECONDS:
        return "the clocks of two hosts differ" if gap < -_MIN_GAP_SECONDS else ""
    if task.attempts is not None and task.attempts > 1:
        return f"it was tried {task.attempts} times"
    begun = task.submitted or task.created or 0.0
    if begun - since > gap * _MIN_FULL_PART:
        return "the program started it only then"
    if everywhere.seconds_full(since, start) > gap * _MIN_FULL_PART:
        return "all slots were taken"
    if task.slots > 1:
        return f"it needs {task.slots} slots at once"
    if there.seconds_full(since, start) > gap * _MIN_FULL_PART:
        return "its worker ran other tasks"
    return "scheduling and start of the task"
