"""Puts the tasks of a run into rows, one for each slot, without overlap.

Each worker has a row for each of its slots. A task takes the first row of its worker that is free
when it begins (first fit on intervals that are sorted by their start, which needs as few rows as
possible: Kleinberg and Tardos, Algorithm Design, 2005, section 4.1). A task that waits for tasks
which it has started itself releases its slot, so a worker may need more rows than it has slots.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from daskbatch.records.run_record import RunRecord, TaskEntry
from daskbatch.report.analysis.run_graph import has_run

#: A task that begins by less than this before the one before it has ended began at its end: at
#: present, seconds since the epoch have steps of a quarter of a microsecond as floats, and a start
#: is the end less the duration.
_CLOCK_SECONDS = 5e-6


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """The tasks that ran on one slot, by their start; no two of them overlap.

    Starts are moved by some microseconds, where clocks say otherwise.

    Parameters
    ----------
    worker, host : str
        The worker of the slot, and its host.
    index : int
        The number of the row among those of its worker.
    is_extra : bool
        Whether the worker has fewer slots than rows: a task has released its slot, to wait.
    tasks : sequence of TaskEntry
        The tasks.
    """

    worker: str
    host: str
    index: int
    is_extra: bool
    tasks: Sequence[TaskEntry]


def make_rows(run: RunRecord) -> list[TimelineRow]:
    """Return the rows of a run's timeline: workers in the order in which the run lists them.

    Parameters
    ----------
    run : RunRecord
        The run.
    """
    by_worker: dict[str, list[TaskEntry]] = {slot.worker: [] for slot in run.slots}
    threads = {slot.worker: slot.threads for slot in run.slots}
    hosts = {slot.worker: slot.host for slot in run.slots}
    for task in run.tasks:
        if has_run(task):
            worker = task.worker or ""
            by_worker.setdefault(worker, []).append(task)
            hosts.setdefault(worker, task.host or "")
    rows = []
    for worker, tasks in by_worker.items():
        count = threads.get(worker, 0)
        columns = _first_fit(tasks)
        while len(columns) < count:
            columns.append([])
        rows += [
            TimelineRow(worker, hosts.get(worker, ""), index, bool(count) and index >= count, each)
            for index, each in enumerate(columns)
        ]
    return rows


def _first_fit(tasks: Sequence[TaskEntry]) -> list[list[TaskEntry]]:
    rows: list[list[TaskEntry]] = []
    free: list[int] = []
    taken: list[tuple[float, int]] = []
    ends: dict[int, float] = {}
    for task in sorted(tasks, key=lambda task: (task.started or 0.0, task.ended or 0.0)):
        start, end = task.started or 0.0, task.ended or 0.0
        while taken and taken[0][0] <= start + _CLOCK_SECONDS:
            before, row = heappop(taken)
            ends[row] = before
            heappush(free, row)
        if free:
            row = heappop(free)
        else:
            row = len(rows)
            rows.append([])
        if start < ends.get(row, start):
            start = ends[row]
            end = max(start, end)
            task = replace(task, started=start, ended=end)
        rows[row].append(task)
        heappush(taken, (max(start, end), row))
    return rows
