"""Writes a run as a trace, which Perfetto shows; in one of two formats.

As JSON it follows the Trace Event Format of the Chromium project, which Chrome's
``about:tracing`` and other tools read too. With the suffix ``.pftrace`` it is a message of
Perfetto's own schema, which is smaller. Workers are processes in it, slots threads, edges flows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from daskbatch._version import __version__
from daskbatch.records.run_record import RunRecord
from daskbatch.report.analysis.run_graph import group_name
from daskbatch.report.perfetto import make_perfetto_trace
from daskbatch.report.trace_model import Slice, TraceModel, details, make_trace_model
from daskbatch.report.whole_file import write_whole

_Event = dict[str, Any]

#: The suffixes of files in Perfetto's own format.
_PERFETTO_SUFFIXES = (".pftrace", ".perfetto-trace")

#: Colours that the viewers know by name, by state.
_COLOURS = {"failed": "terrible", "cancelled": "grey"}


def write_trace(run: RunRecord, path: Path) -> Path:
    """Write the trace of a run into a file, as a whole or not at all; return the path.

    Parameters
    ----------
    run : RunRecord
        The run.
    path : Path
        The file; the suffix chooses the format.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    if path.suffix.lower() in _PERFETTO_SUFFIXES:
        write_whole(path, make_perfetto_trace(make_trace_model(run)))
    else:
        # In ASCII: a name with half of a surrogate pair could not be written otherwise.
        write_whole(path, json.dumps(make_trace(run), separators=(",", ":")))
    return path


def make_trace(run: RunRecord) -> dict[str, Any]:
    """Return the trace of a run as trace events, as `json.dumps` takes them.

    Parameters
    ----------
    run : RunRecord
        The run. Tasks that have not begun, or are not over, are not in the trace.
    """
    model = make_trace_model(run)
    return {
        "traceEvents": [*_rows(model), *_slices(model), *_flows(model), *_counter(model)],
        "displayTimeUnit": "ms",
        "otherData": {
            "program": run.name,
            "run": run.run,
            "begin": f"{model.begin:.6f}",
            "generator": f"daskbatch {__version__}",
            **dict(run.facts),
        },
    }


def _microseconds(nanoseconds: int) -> float:
    return nanoseconds / 1e3


def _rows(model: TraceModel) -> Iterator[_Event]:
    def metadata(kind: str, process: int, thread: int, **arguments: Any) -> _Event:
        place = {"pid": process, "tid": thread, "ts": 0}
        return {"ph": "M", "name": kind, **place, "args": arguments}

    named: set[int] = set()
    for process, thread, worker, name in model.rows:
        if process not in named:
            named.add(process)
            yield metadata("process_name", process, 0, name=worker)
            yield metadata("process_sort_index", process, 0, sort_index=process)
        yield metadata("thread_name", process, thread, name=name)
        yield metadata("thread_sort_index", process, thread, sort_index=thread)


def _slices(model: TraceModel) -> Iterator[_Event]:
    for task, row, start, end in model.slices.values():
        event = {
            "ph": "X",
            "name": task.name,
            "cat": group_name(task.name) or "task",
            "pid": row.process,
            "tid": row.thread,
            "ts": _microseconds(start),
            "dur": _microseconds(end - start),
            "args": details(task),
        }
        if task.state in _COLOURS:
            event["cname"] = _COLOURS[task.state]
        yield event


def _flows(model: TraceModel) -> Iterator[_Event]:
    def event(kind: str, each: Slice, time: int) -> _Event:
        place = {"pid": each.row.process, "tid": each.row.thread}
        return {"ph": kind, **place, "ts": _microseconds(time)}

    for number, arrow in enumerate(model.arrows, 1):
        before, after = model.slices[arrow.before], model.slices[arrow.after]
        common = {"name": arrow.name, "cat": ",".join(arrow.hazards), "id": number}
        # A flow begins in the slice that is open at its time: at the end none is.
        yield {**event("s", before, max(before.start, before.end - 1)), **common}
        yield {**event("f", after, after.start), **common, "bp": "e"}


def _counter(model: TraceModel) -> Iterator[_Event]:
    for time, taken in model.taken:
        place = {"pid": 0, "tid": 0, "ts": _microseconds(time)}
        yield {"ph": "C", "name": "taken slots", **place, "args": {"slots": taken}}
