"""Loads the result of a task, or makes the exception that says why there is none.

Called in the thread that asks for the result. Each call makes a new exception, since an exception
that is raised twice collects two tracebacks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.recovery import value_lost
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import DependencyFailed, LoadingError, TaskCancelled
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.serialization.safe_text import is_from_outside, summary


def failure_of(record: TaskRecord, dispatcher: Dispatcher, timeout: float | None) -> BaseException:
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
    """
    if record.phase == Phase.CANCELLED:
        return TaskCancelled(f"task {record.label} was cancelled")
    if record.root_failure is not None:
        root = record.root_failure
        cause = failure_of(root, dispatcher, timeout)
        why = f"failed: {summary(cause)}"
        if root.phase == Phase.CANCELLED:
            why = "was cancelled"
        error = DependencyFailed(
            f"task {record.label} did not run, because {root.label} {why}", root=root.name
        )
        error.__cause__ = cause
        return error
    if record.value is None:
        dispatcher.fetch(record, timeout)
    if record.value is None or record.phase == Phase.DONE:
        return value_lost(record)
    return unpack_error(record.value, f"task {record.label} ({record.uid}):\n")


def load_result(load: Callable[[], Any], label: str) -> Any:
    """Unpickle the result of a task.

    Parameters
    ----------
    load : callable
        Unpickles and returns it.
    label : str
        The name of the task in messages.

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
            f"the result of task {label} cannot be loaded here: {summary(error)}"
        ) from error
