"""Loads the result of a task, or makes the exception that says why there is none.

Called in the thread that asks for the result. Each call makes a new exception, since an exception
that is raised twice collects two tracebacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from daskbatch.batch.hints import add_hint
from daskbatch.batch.task_label import long_label
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.recovery import value_lost
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import (
    DependencyFailed,
    LoadingError,
    TaskCancelled,
    TaskError,
    TasksFailed,
)
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.serialization.safe_text import has_type, is_from_outside, summary

#: How long a warning waits for an exception that is still on its worker.
_ERROR_TIMEOUT_SECONDS = 5.0


def failure_of(
    record: TaskRecord, dispatcher: Dispatcher, timeout: float | None, looked: bool = True
) -> BaseException:
    """Make the exception that says why a task that is over has no result.

    Waits for the exception of the task, if it has to be fetched from its worker.

    Parameters
    ----------
    record : TaskRecord
        The task.
    dispatcher : Dispatcher
        The dispatcher of the client that made the task.
    timeout : float, optional
        Maximum number of seconds to wait.
    looked : bool
        Whether the program asks for it: then no warning will tell it.
    """
    if looked:
        dispatcher.table.failures.look_at(record)
    if record.phase == Phase.CANCELLED:
        return TaskCancelled(f"task {record.label} was cancelled")
    if record.root_failure is not None:
        root = record.root_failure
        cause = failure_of(root, dispatcher, timeout, looked)
        why = f"failed: {summary(cause)}"
        if root.phase == Phase.CANCELLED:
            why = "was cancelled"
        error = DependencyFailed(
            f"task {record.label} did not run, because {long_label(root)} {why}", root=root.name
        )
        error.__cause__ = cause
        return error
    if record.value is None:
        dispatcher.fetch(record, timeout)
    if record.value is None or record.phase == Phase.DONE:
        return value_lost(record)
    own = unpack_error(record.value, f"task {long_label(record)}, {record.uid}")
    add_hint(own, record)
    return own


def error_line(record: TaskRecord, dispatcher: Dispatcher) -> str:
    """Return the type and the first line of the exception of a task that has failed.

    Parameters
    ----------
    record, dispatcher
        See `failure_of`.
    """
    try:
        error = failure_of(record, dispatcher, _ERROR_TIMEOUT_SECONDS, looked=False)
    except Exception as failure:  # its worker has died, or its class cannot be loaded here
        return f"its exception is not available: {summary(failure)}".partition("\n")[0]
    line, _, more = summary(error).partition("\n")
    return f"{line} ..." if more else line


def tasks_failed(
    label: str, count: int, unsuccessful: int, errors: Sequence[BaseException]
) -> TasksFailed:
    """Make the exception of a compiled task of which members have not succeeded.

    Parameters
    ----------
    label : str
        What messages call it.
    count, unsuccessful : int
        The numbers of its members, and of those that have not succeeded.
    errors : sequence of BaseException
        The exceptions of the members that failed or were cancelled; if all others succeeded or
        were skipped, those of the skipped ones.
    """
    cancelled = sum(has_type(error, TaskCancelled) for error in errors)
    skipped = unsuccessful - len(errors)
    if errors and all(has_type(error, DependencyFailed) for error in errors):
        skipped = len(errors)
        # One for each task that they needed.
        errors = list({error.root: error for error in errors}.values())  # type: ignore[attr-defined]
        counts = []
    else:
        counts = [(len(errors) - cancelled, "failed"), (cancelled, "were cancelled")]
    counts.append((skipped, "did not run because of others"))
    said = ", ".join(f"{number} {words}" for number, words in counts if number)
    members: list[Exception] = []
    for error in errors:
        if not has_type(error, Exception):
            # A group of exceptions cannot hold it.
            raised, error = error, TaskError(f"a task raised {summary(error)}")
            error.__cause__ = raised
        members.append(error)
    return TasksFailed(f"of the {count} tasks of {label}, {said}", members)


def load_result(load: Callable[[], Any], record: TaskRecord) -> Any:
    """Unpickle the result of a task.

    Parameters
    ----------
    load : callable
        Unpickles and returns it.
    record : TaskRecord
        The task.

    Raises
    ------
    LoadingError
        The result cannot be unpickled in this process.
    """
    try:
        return load()
    except BaseException as error:  # unpickling may run any code, also sys.exit()
        if is_from_outside(error):
            raise
        raise LoadingError(
            f"the result of task {record.label} cannot be loaded here: {summary(error)}"
        ) from error
