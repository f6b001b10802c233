"""What a Batch shows of all its tasks: a report, and a form in notebooks.

Any thread may call all functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from daskbatch.batch.context import BatchContext
from daskbatch.batch.reporting.live_record import RecordedProgram, RecordedTask, batch_record
from daskbatch.batch.reporting.notebook_forms import batch_html
from daskbatch.report.pages.report_page import write_report


def write_batch_report(
    context: BatchContext, tasks: Iterable[RecordedTask], filename: str | Path
) -> Path:
    """Write the report of the tasks that a client has started; see `Batch.report`.

    Parameters
    ----------
    context : BatchContext
        That of the Batch.
    tasks : iterable of RecordedTask
        The tasks that the client has started and that the program holds.
    filename : str or Path
        The file.
    """
    programs = _programs(context)
    name, single = context.name or "batch", _single(tasks, programs)
    run = batch_record(name, single, programs, context.session, with_failures=True)
    return write_report(run, Path(filename))


def batch_form(context: BatchContext, tasks: Iterable[RecordedTask]) -> str:
    """Return the form of a Batch in notebooks.

    Parameters
    ----------
    context, tasks
        See `write_batch_report`.
    """
    session = context.identity.session_or_none()
    state = "closed" if context.identity.closed else "open"
    if session is None:
        return batch_html(f"{state}, not used here", 0, None, [], [])
    programs = _programs(context)
    records = [task._record for task in _single(tasks, programs)]
    records += [task._record for program in programs for task in program.tasks]
    return batch_html(
        "ended" if session.ended else state, session.slots, session, records, programs
    )


def _programs(context: BatchContext) -> list[Any]:
    """Return the compiled tasks that have been started and that the program holds."""
    # Not `values()`: another thread may add one meanwhile.
    held = [reference() for reference in context.programs.valuerefs()]
    started = [each for each in held if each is not None and each._group.started]
    return sorted(started, key=lambda each: each._record.number)


def _single(
    tasks: Iterable[RecordedTask], programs: Sequence[RecordedProgram]
) -> Sequence[RecordedTask]:
    """Return the tasks that are members of none of these programs."""
    members = {task._record for program in programs for task in program.tasks}
    return [task for task in tasks if task._record not in members]
