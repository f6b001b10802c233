"""Computes what a trace of a run holds: slices in rows, arrows between them, and a counter.

Pure; any thread may call all functions. Times are whole nanoseconds since the start of the first
task. Rounding keeps the order of times, so that slices of a row do not overlap.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import NamedTuple

from daskbatch.records.run_record import BarrierEntry, EdgeEntry, RunRecord, TaskEntry
from daskbatch.report.analysis.run_graph import RunGraph, has_run, reason
from daskbatch.report.analysis.timeline import make_rows

_NANOSECONDS = 1e9


class TraceRow(NamedTuple):
    """A slot of a worker.

    Parameters
    ----------
    process, thread : int
        The numbers of the worker and of the slot, from 1.
    worker, name : str
        The names of both.
    """

    process: int
    thread: int
    worker: str
    name: str


class Slice(NamedTuple):
    """A task in its row."""

    task: TaskEntry
    row: TraceRow
    start: int
    end: int


class Arrow(NamedTuple):
    """An edge between two slices.

    Parameters
    ----------
    before, after : str
        The uids of the tasks.
    name : str
        The reason.
    hazards : tuple of str
        The same, without paths.
    """

    before: str
    after: str
    name: str
    hazards: tuple[str, ...]


class TraceModel(NamedTuple):
    """What a trace holds.

    Parameters
    ----------
    begin : float
        The start of the first task, in seconds since the epoch.
    rows : sequence of TraceRow
        The rows, by worker.
    slices : mapping of str to Slice
        The tasks that have begun and ended, by uid; in each row by their start.
    arrows : sequence of Arrow
        The edges between them. Of what is behind a barrier only the task that ended last.
    taken : sequence of (int, int)
        Times, and how many slots were taken from then on.
    """

    begin: float
    rows: Sequence[TraceRow]
    slices: Mapping[str, Slice]
    arrows: Sequence[Arrow]
    taken: Sequence[tuple[int, int]]


def make_trace_model(run: RunRecord) -> TraceModel:
    """Return what the trace of a run holds."""
    begin = min((task.started or 0.0 for task in run.tasks if has_run(task)), default=0.0)
    processes: dict[str, int] = {}
    rows: list[TraceRow] = []
    slices: dict[str, Slice] = {}
    for each in make_rows(run):
        process = processes.setdefault(each.worker, len(processes) + 1)
        worker = f"{each.host} {each.worker}".strip() or "worker"
        extra = " (its worker's other tasks wait)" if each.is_extra else ""
        row = TraceRow(process, each.index + 1, worker, f"slot {each.index}{extra}")
        rows.append(row)
        for task in each.tasks:
            start, end = (
                round(((time or begin) - begin) * _NANOSECONDS)
                for time in (task.started, task.ended)
            )
            slices[task.uid] = Slice(task, row, start, max(start, end))
    arrows = [*_arrows(RunGraph(run), slices)]
    return TraceModel(begin, rows, slices, arrows, _count_taken(slices.values()))


def _arrows(graph: RunGraph, slices: Mapping[str, Slice]) -> Iterator[Arrow]:
    @cache
    def last_behind(barrier: str) -> tuple[TaskEntry, tuple[EdgeEntry, ...]] | None:
        # As if a task waited for the barrier alone.
        node = graph.nodes[barrier]
        behind = TaskEntry("", "", "", waits_for=node.waits_for)
        return max(
            graph.predecessors(behind), key=lambda found: found[0].ended or 0.0, default=None
        )

    for task in graph.run.tasks:
        if task.uid not in slices:
            continue
        last: tuple[TaskEntry, tuple[EdgeEntry, ...]] | None = None
        for uid, edges in graph.edges_by_node(task).items():
            node = graph.nodes[uid]
            if isinstance(node, BarrierEntry):
                found = last_behind(uid)
                if found is not None and (
                    last is None or (found[0].ended or 0.0) > (last[0].ended or 0.0)
                ):
                    last = found
            elif has_run(node):
                yield _arrow(node, task, edges)
        if last is not None:
            yield _arrow(last[0], task, last[1])


def _arrow(before: TaskEntry, after: TaskEntry, edges: Sequence[EdgeEntry]) -> Arrow:
    hazards = tuple(dict.fromkeys(str(edge.hazard) for edge in edges))
    return Arrow(before.uid, after.uid, reason(before, after, edges), hazards)


def _count_taken(slices: Iterable[Slice]) -> list[tuple[int, int]]:
    changes: dict[int, int] = {}
    for each in slices:
        changes[each.start] = changes.get(each.start, 0) + each.task.slots
        changes[each.end] = changes.get(each.end, 0) - each.task.slots
    taken, counts = 0, []
    for time in sorted(changes):
        taken += changes[time]
        counts.append((time, taken))
    return counts


def details(task: TaskEntry) -> dict[str, str | int | float]:
    """Return what a viewer shows of a task that is clicked on."""
    found: dict[str, str | int | float | None] = {
        "uid": task.uid,
        "state": task.state,
        "slots": task.slots,
        "attempts": task.attempts,
        "pid": task.pid,
        "CPU seconds": task.cpu_seconds,
        "peak memory in bytes": task.max_memory,
        "reads": ", ".join(task.reads) or None,
        "writes": ", ".join(task.writes) or None,
        "error": task.error,
    }
    return {name: value for name, value in found.items() if value is not None}
