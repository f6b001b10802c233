"""Shows tasks, compiled tasks, handles and a Batch as HTML, for notebooks.

The functions wait for nothing, fetch nothing from workers, and raise nothing. They do not count as
a look at a failure. Any thread may call them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from functools import wraps
from html import escape
from typing import Any, ParamSpec, Protocol

from daskbatch.batch.reporting.live_record import RecordedProgram, RecordedTask, program_record
from daskbatch.batch.result import load_result
from daskbatch.cluster.session import Session
from daskbatch.dispatch.execution_record import execution_of
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.report.analysis.groups import STATES
from daskbatch.report.graphs.collapse import choose_picture
from daskbatch.report.graphs.picture import MAX_SINGLE_TASKS
from daskbatch.report.graphs.style import STATE_COLOURS
from daskbatch.report.graphs.svg import to_svg
from daskbatch.report.pages.units import bytes_text, seconds_text, time_text
from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.serialization.safe_text import safe_repr, summary

#: What is shown of a result, of an output, and of failures.
_MAX_VALUE_BYTES, _MAX_VALUE_LETTERS = 64 * 1024, 2_000
_MAX_LINES, _MAX_FAILURES, _MAX_PROGRAMS = 20, 10, 20

_CARD = (
    "border:1px solid #cbd5e0;border-radius:6px;padding:8px 14px;margin:4px 0;background:#fff;"
    "color:#1a202c;font-family:system-ui,sans-serif;font-size:13px;line-height:1.5"
)
_CELL = 'style="text-align:left;padding:1px 14px 1px 0;font-size:13px"'
_PRE = (
    "background:#f7fafc;color:#1a202c;border:1px solid #e2e8f0;padding:6px 10px;margin:4px 0;"
    "max-height:260px;overflow:auto;white-space:pre-wrap"
)

_P = ParamSpec("_P")


class HandleTask(Protocol):
    """The part of a task that the form of its handles is made of."""

    @property
    def state(self) -> str: ...

    _record: TaskRecord


def _never_raising(make: Callable[_P, str]) -> Callable[_P, str]:
    """Return a function that shows the exception if the form cannot be made."""

    @wraps(make)
    def form(*args: _P.args, **kwargs: _P.kwargs) -> str:
        try:
            return make(*args, **kwargs)
        except Exception as error:
            return card("daskbatch", "", f"<p>This cannot be shown: {escape(summary(error))}</p>")

    return form


def card(kind: str, name: str, content: str, state: str = "") -> str:
    """Return a frame with a title.

    Parameters
    ----------
    kind, name, state : str
        The title.
    content : str
        The HTML below it.
    """
    title = f" <code>{escape(name)}</code>" if name else ""
    return (
        f'<div class="daskbatch" style="{_CARD}"><b>{escape(kind)}</b>{title} '
        f"{pill(state) if state else ''}{content}</div>"
    )


def pill(state: str, number: int | None = None) -> str:
    """Return a state, and how many tasks are in it, in the colour of the state."""
    fill, border = STATE_COLOURS.get(state, STATE_COLOURS["created"])
    text = state if number is None else f"{number} {state}"
    return (
        f'<span style="background:{fill};border:1px solid {border};border-radius:10px;'
        f'padding:0 9px;margin-right:6px;font-size:12px;white-space:nowrap">{escape(text)}</span>'
    )


def table(rows: Iterable[tuple[str, str]]) -> str:
    """Return rows of names and texts as a table; rows without a text are left out."""
    lines = [
        f"<tr><td {_CELL}>{escape(name)}</td><td {_CELL}>{escape(text)}</td></tr>"
        for name, text in rows
        if text
    ]
    return f'<table style="margin:4px 0">{"".join(lines)}</table>' if lines else ""


def state_counts(states: Iterable[str]) -> str:
    """Return how many tasks are in which state, as text and as a bar."""
    counts = dict.fromkeys(STATES, 0)
    for state in states:
        counts[state] += 1
    total = sum(counts.values())
    if not total:
        return "<p>no tasks</p>"
    parts = "".join(
        f'<div style="width:{100 * number / total:.2f}%;'
        f'background:{STATE_COLOURS[state][1]}"></div>'
        for state, number in counts.items()
        if number
    )
    pills = "".join(pill(state, number) for state, number in counts.items() if number)
    return (
        f'<div style="margin:6px 0">{pills}<span>of {total}</span></div>'
        f'<div style="display:flex;height:8px;border-radius:4px;overflow:hidden;max-width:520px">'
        f"{parts}</div>"
    )


def dashboard_link(session: Session | None) -> str:
    """Return a link to Dask's dashboard; nothing if there is none, or if it has ended."""
    link = ""
    if session is not None and not session.ended:
        with contextlib.suppress(Exception):
            link = str(session.client.dashboard_link or "")
    if not link:
        return ""
    return f'<p style="margin:4px 0">Dashboard: <a href="{escape(link)}">{escape(link)}</a></p>'


# -- tasks -----------------------------------------------------------------------------------


@_never_raising
def task_html(task: RecordedTask) -> str:
    """Return the form of a task."""
    record, dispatcher = task._record, task._session.dispatcher
    with dispatcher.outcomes.changed:
        state = record.phase.name.lower()
        ran = execution_of(record, dispatcher.table.deaths[record])
    rows = [
        ("worker", ran.worker or ""),
        ("began", time_text(ran.started) if ran.started is not None else ""),
        ("took", seconds_text(ran.seconds) if ran.seconds is not None else ""),
        ("CPU time", seconds_text(ran.cpu_seconds) if ran.cpu_seconds is not None else ""),
        ("peak memory", bytes_text(ran.max_memory) if ran.max_memory else ""),
        ("attempts", str(ran.attempts) if ran.attempts > 1 else ""),
        ("reads", _shortly(record.reads)),
        ("writes", _shortly(record.writes)),
        ("error", _error(record)),
    ]
    output = "".join(
        f"<details><summary>{part}</summary>{_preformatted(_last_lines(text))}</details>"
        for part, text in zip(("stdout", "stderr"), record.output or (), strict=False)
        if text
    )
    return card("Task", record.name, table(rows) + output, state)


@_never_raising
def handle_html(task: HandleTask, part: str) -> str:
    """Return the form of a handle: the value, if it is here already.

    Parameters
    ----------
    task : HandleTask
        The task.
    part : str
        ``result``, ``stdout`` or ``stderr``.
    """
    record = task._record
    title = f"{record.name}.{part}"
    if record.call is None:  # a compiled task, whose handle stands for those of its members
        return card("Handle", title, "", task.state)
    content = ""
    if part != "result":
        if record.over and record.output is not None:
            text = str(record.output[part == "stderr"])
            content = _preformatted(_last_lines(text)) if text else "<p>nothing was written</p>"
    elif record.phase == Phase.DONE and record.value is not None:
        content = _value(record)
    elif record.phase == Phase.DONE:
        content = "<p>the value is on its worker: get() fetches it</p>"
    error = _error(record)
    return card("Handle", title, table([("error", error)]) + content, record.phase.name.lower())


def _value(record: TaskRecord) -> str:
    data = record.value
    if data is None or len(data) > _MAX_VALUE_BYTES:
        return f"<p>{bytes_text(len(data or b''))} pickled</p>"
    value = load_result(lambda: pickling.loads(data), record)
    return _preformatted(safe_repr(value)[:_MAX_VALUE_LETTERS])


def _error(record: TaskRecord) -> str:
    """Return the error of a task in a line, if it is here."""
    if record.root_failure is not None:
        return f"did not run because of {record.root_failure.name}"
    if record.phase != Phase.FAILED or record.value is None:
        return ""
    try:
        return summary(unpack_error(record.value, record.label)).partition("\n")[0]
    except Exception as error:
        return f"it cannot be loaded here: {summary(error)}".partition("\n")[0]


def _shortly(channels: Sequence[Any]) -> str:
    shown = ", ".join(str(channel) for channel in channels[:3])
    return f"{shown} and {len(channels) - 3} more" if len(channels) > 3 else shown


def _last_lines(text: str) -> str:
    lines = str(text).splitlines()
    more = f"({len(lines) - _MAX_LINES} lines before)\n" if len(lines) > _MAX_LINES else ""
    return more + "\n".join(lines[-_MAX_LINES:])


def _preformatted(text: str) -> str:
    return f'<pre style="{_PRE}">{escape(text)}</pre>'


# -- programs and the Batch ------------------------------------------------------------------


@_never_raising
def program_html(program: RecordedProgram) -> str:
    """Return the form of a compiled task: counts, failures, the graph, the dashboard's link."""
    records = [task._record for task in program.tasks]
    content = state_counts(record.phase.name.lower() for record in records)
    content += _failures(records)
    content += dashboard_link(program._session)
    if records:
        drawn = to_svg(choose_picture(program_record(program), None))
        kept = len(records) <= MAX_SINGLE_TASKS
        words = f"graph of {len(records)} tasks" + ("" if kept else ", by name")
        content += (
            f"<details open><summary>{words}</summary>"
            f'<div style="overflow:auto;max-height:420px">{drawn}</div></details>'
        )
    return card("Compiled task", program.name, content, program.state)


@_never_raising
def batch_html(
    state: str,
    slots: int,
    session: Session | None,
    records: Sequence[TaskRecord],
    programs: Sequence[RecordedProgram],
) -> str:
    """Return the form of a Batch.

    Parameters
    ----------
    state : str
        Whether it is open, closed or ended.
    slots : int
        How many tasks run at once.
    session : Session, optional
        Its client here; None if it was not used here.
    records : sequence of TaskRecord
        The tasks that it has started.
    programs : sequence of RecordedProgram
        Its compiled tasks.
    """
    content = f"<p style='margin:4px 0'>{slots} slot{'s' * (slots != 1)}, {escape(state)}</p>"
    content += state_counts(record.phase.name.lower() for record in records)
    content += _failures(records)
    content += dashboard_link(session)
    lines = [
        f"<li><code>{escape(each.name)}</code> {pill(each.state)} {len(each.tasks)} tasks</li>"
        for each in programs[:_MAX_PROGRAMS]
    ]
    if len(programs) > _MAX_PROGRAMS:
        lines.append(f"<li>{len(programs) - _MAX_PROGRAMS} more</li>")
    if lines:
        content += f"<ul style='margin:4px 0'>{''.join(lines)}</ul>"
    return card("Batch", "", content)


@_never_raising
def executor_html(slots: int, unfinished: int, batch: object) -> str:
    """Return the form of an executor.

    Parameters
    ----------
    slots : int
        How many calls run at once.
    unfinished : int
        The number of calls that are not over.
    batch : Batch
        The Batch that runs them.
    """
    rows = [
        ("calls at once", str(slots)),
        ("calls not over", str(unfinished)),
        ("Batch", safe_repr(batch)),
    ]
    return card("Executor", "", table(rows))


def _failures(records: Iterable[TaskRecord]) -> str:
    failed = [record for record in records if record.phase == Phase.FAILED]
    if not failed:
        return ""
    lines = [
        f"<li><code>{escape(record.name)}</code>: {escape(_error(record))}</li>"
        for record in failed[:_MAX_FAILURES]
    ]
    if len(failed) > _MAX_FAILURES:
        lines.append(f"<li>{len(failed) - _MAX_FAILURES} more</li>")
    return f"<ul style='margin:4px 0;color:#c53030'>{''.join(lines)}</ul>"
