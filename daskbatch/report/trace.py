"""Writes a run as trace events, which Perfetto and Chrome's ``about:tracing`` show.

The format is the Trace Event Format of the Chromium project, as a JSON object. Workers are its
processes, slots its threads: each row of the timeline is one thread, so slices never overlap in a
row. Edges are flow events. Times are microseconds since the start of the first task, with three
decimals.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daskbatch._version import __version__
from daskbatch.records.run_record import BarrierEntry, EdgeEntry, RunRecord, TaskEntry
from daskbatch.report.analysis.run_graph import RunGraph, group_name, has_run, reason
from daskbatch.report.analysis.timeline import make_rows
from daskbatch.report.whole_file import write_whole

_Event = dict[str, Any]

#: Colours that the viewers know by name, by state.
_COLOURS = {"failed": "terrible", "cancelled": "grey"}


def write_trace(run: RunRecord, path: Path) -> Path:
    """Write the trace of a run into a file as JSON, as a whole or not at all; return the path.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    # Without `ensure_ascii`, a name with half of a surrogate pair could not be written.
    write_whole(path, json.dumps(make_trace(run), separators=(",", ":")))
    return path


def make_trace(run: RunRecord) -> dict[str, Any]:
    """Return the trace of a run, as what `json.dumps` takes.

    Parameters
    ----------
    run : RunRecord
        The run. Tasks that have not begun, or are not over, are not in the trace.
    """
    begin = min((task.started or 0.0 for task in run.tasks if has_run(task)), default=0.0)
    places: dict[str, tuple[int, int]] = {}
    events: list[_Event] = []
    processes: dict[str, int] = {}
    for row in make_rows(run):
        pid = processes.setdefault(row.worker, len(processes) + 1)
        if row.index == 0:
            name = f"{row.host} {row.worker}".strip() or "worker"
            events += [
                _metadata("process_name", pid, name=name),
                _metadata("process_sort_index", pid, sort_index=pid),
            ]
        tid = row.index + 1
        extra = " (its worker's other tasks wait)" if row.is_extra else ""
        events += [
            _metadata("thread_name", pid, tid, name=f"slot {row.index}{extra}"),
            _metadata("thread_sort_index", pid, tid, sort_index=tid),
        ]
        for task in row.tasks:
            places[task.uid] = pid, tid
            events.append(_slice(task, pid, tid, begin))
    events += _flows(RunGraph(run), places, begin)
    events += _running(run, begin)
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {
            "program": run.name,
            "run": run.run,
            "begin": f"{begin:.6f}",
            "generator": f"daskbatch {__version__}",
            **dict(run.facts),
        },
    }


def _microseconds(time: float, begin: float) -> float:
    # Whole nanoseconds. Rounding keeps the order of times, so that slices do not overlap.
    return round((time - begin) * 1e9) / 1e3


def _metadata(kind: str, pid: int, tid: int = 0, **arguments: Any) -> _Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "ts": 0, "args": arguments}


def _slice(task: TaskEntry, pid: int, tid: int, begin: float) -> _Event:
    start = _microseconds(task.started or begin, begin)
    end = _microseconds(task.ended or begin, begin)
    arguments = {
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
    event = {
        "ph": "X",
        "name": task.name,
        "cat": group_name(task.name) or "task",
        "pid": pid,
        "tid": tid,
        "ts": start,
        "dur": round(max(0.0, end - start), 3),
        "args": {name: value for name, value in arguments.items() if value is not None},
    }
    if task.state in _COLOURS:
        event["cname"] = _COLOURS[task.state]
    return event


def _flows(graph: RunGraph, places: dict[str, tuple[int, int]], begin: float) -> Iterator[_Event]:
    """Yield an arrow for each edge; of what is behind a barrier only the task that ended last."""
    number = 0
    for task in graph.run.tasks:
        if task.uid not in places:
            continue
        for before, edges in _before(graph, task):
            number += 1
            common: _Event = {
                "name": reason(before, task, edges),
                "cat": ",".join(dict.fromkeys(str(edge.hazard) for edge in edges)),
                "id": number,
            }
            pid, tid = places[before.uid]
            # A flow begins in the slice that is open at its time: at the end none is.
            end = _microseconds(before.ended or begin, begin)
            start = _microseconds(before.started or begin, begin)
            leaves = round(max(start, end - 0.001), 3)
            yield {"ph": "s", **common, "pid": pid, "tid": tid, "ts": leaves}
            pid, tid = places[task.uid]
            arrives = _microseconds(task.started or begin, begin)
            yield {"ph": "f", "bp": "e", **common, "pid": pid, "tid": tid, "ts": arrives}


def _before(graph: RunGraph, task: TaskEntry) -> Iterator[tuple[TaskEntry, tuple[EdgeEntry, ...]]]:
    barriers: list[EdgeEntry] = []
    for uid, edges in graph.edges_by_node(task).items():
        node = graph.nodes[uid]
        if isinstance(node, BarrierEntry):
            barriers += edges
        elif has_run(node):
            yield node, edges
    if barriers:
        behind = TaskEntry(task.uid, task.name, task.state, waits_for=tuple(barriers))
        found = list(graph.predecessors(behind))
        if found:
            last, edges = max(found, key=lambda each: each[0].ended or 0.0)
            yield last, edges


def _running(run: RunRecord, begin: float) -> Iterator[_Event]:
    """Yield how many slots were taken, whenever that changes."""
    changes: dict[float, int] = {}
    for task in run.tasks:
        if has_run(task):
            start = _microseconds(task.started or begin, begin)
            end = _microseconds(task.ended or begin, begin)
            changes[start] = changes.get(start, 0) + task.slots
            changes[end] = changes.get(end, 0) - task.slots
    taken = 0
    for time in sorted(changes):
        taken += changes[time]
        yield {
            "ph": "C",
            "name": "taken slots",
            "pid": 0,
            "tid": 0,
            "ts": time,
            "args": {"slots": taken},
        }
