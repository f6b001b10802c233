"""Says which tasks have failed and what they lacked, if the program has not looked at that.

`collect` is called before a client ends, while outcomes can still be fetched, and the notices are
shown after its end. Any thread may call all functions.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence

from daskbatch.batch.result import error_line
from daskbatch.batch.task_label import long_label
from daskbatch.batch.user_warnings import Notice, warn_all, warn_at
from daskbatch.cluster.session import Session
from daskbatch.dispatch.failure_log import TaskWarning
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.errors import (
    BatchWarning,
    MissingInputWarning,
    MissingOutputWarning,
    TasksFailedWarning,
)
from daskbatch.worker.execution.near_names import suggestion

#: The number of failed tasks, and of tasks with warnings, that a warning names.
_MAX_NAMED_FAILURES = 5
_MAX_NAMED_WARNINGS = 10

#: For each kind of `TaskWarning`: the class, and what has happened to how many tasks.
_MISSING: dict[str, tuple[type[BatchWarning], str]] = {
    "input": (MissingInputWarning, "declared to read what was not there when {} began"),
    "output": (MissingOutputWarning, "declared to write what was not there when {} had succeeded"),
}


def collect(session: Session) -> list[Notice]:
    """Return what is to be told of a client's tasks now; it is not returned again."""
    log = session.dispatcher.table.failures
    notices = [
        _missing(kind, [each for each in warned if each[1].kind == kind])
        for warned in [log.take_warnings()]
        for kind in _MISSING
        if any(warning.kind == kind for _, warning in warned)
    ]
    failures = log.take_failures()
    if failures is not None:
        skipped = ""
        if failures.skipped:
            skipped = f", and {_tasks(failures.skipped)} did not run because of that"
        lines = [f"{_tasks(failures.failed)} failed{skipped}:"]
        lines += [
            f"  {long_label(record)}: {error_line(record, session.dispatcher)}"
            for record in failures.records[:_MAX_NAMED_FAILURES]
        ]
        if failures.failed > _MAX_NAMED_FAILURES:
            lines.append(f"  and {failures.failed - _MAX_NAMED_FAILURES} more")
        lines.append(
            "To handle failures: result.get() of each task, run(check=True), or failures of a "
            "compiled task."
        )
        notices.append(Notice(TasksFailedWarning, "\n".join(lines)))
    return notices


def tell(session: Session) -> None:
    """Warn of what the program has not looked at; see `user_warnings.warn_all`."""
    warn_all(collect(session), session.origin)


def _missing(kind: str, warned: Sequence[tuple[TaskRecord, TaskWarning]]) -> Notice:
    category, what = _MISSING[kind]
    subject = "it" if len(warned) == 1 else "they"
    lines = [f"{_tasks(len(warned))} {what.format(subject)}:"]
    # Of several paths, what was meant is said of the first.
    lines += [
        f"  {record.label}: {', '.join(warning.paths)}{suggestion(warning.paths[0])}"
        for record, warning in warned[:_MAX_NAMED_WARNINGS]
    ]
    if len(warned) > _MAX_NAMED_WARNINGS:
        lines.append(f"  and {len(warned) - _MAX_NAMED_WARNINGS} more")
    return Notice(category, "\n".join(lines))


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def tell_in_task(session: Session) -> None:
    """Warn of failures of tasks that a task has submitted: in the stderr of that task."""
    _tell_without_raising(session)


def tell_at_exit(sessions: Sequence[Session]) -> None:
    """Warn of failures when the interpreter ends; nothing is raised then."""
    for session in sessions:
        with contextlib.suppress(Exception):
            _tell_without_raising(session)


def tell_abandoned(sessions: Sequence[Session]) -> None:
    """Warn of failures in Batches that the program has dropped; nothing is raised.

    The line is that which made the Batch: the code that runs now has nothing to do with it.
    """
    for session in sessions:
        if session.abandoned:
            for notice in collect(session):
                try:
                    warn_at(notice, session.origin)
                except BatchWarning as warning:  # a filter has made an exception of it
                    print(f"{type(warning).__name__}: {warning}", file=sys.stderr)


def _tell_without_raising(session: Session) -> None:
    try:
        tell(session)
    except BatchWarning as warning:  # a filter has made an exception of it
        print(f"{type(warning).__name__}: {warning}", file=sys.stderr)
