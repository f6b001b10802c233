"""The errors that tasks fail with, made of what was raised while they ran.

Pure functions; any thread may call them.
"""

from __future__ import annotations

import signal

from daskbatch.errors import (
    LoadingError,
    ProcessFailed,
    SerializationError,
    TaskCrashed,
    TaskError,
    TaskTimeout,
    WorkerLost,
)
from daskbatch.memory.segment import ValueGone
from daskbatch.serialization.diagnosis import hint_on_value, kind_of
from daskbatch.serialization.safe_text import attribute, safe_repr, summary, traceback_of

# What is being done when an exception is raised outside of the task's function.
#: Before its call:
LOADING_FUNCTION = "its function could not be loaded on the worker"
LOADING_ARGUMENTS = "its arguments could not be loaded on the worker"
#: After its call:
SENDING_RESULT = "its result cannot be sent"


def _hint_on_module(error: BaseException) -> str:
    """Return what to do about a module that is not found."""
    if type(error) is not ModuleNotFoundError or not error.name:
        return ""
    return (
        f"; the worker finds no module {error.name!r}: add its directory to sys.path before the "
        "task is started (on a cluster that was given: install it there), or send it along by "
        f"cloudpickle.register_pickle_by_value({error.name})"
    )


def as_task_error(
    error: BaseException, doing: str, label: str, value: object = None
) -> BaseException:
    """Return the error that a task fails with, for one that was raised while it ran.

    An error that the function has raised stays as it is, as far as possible. Any other one gets
    a type that says what failed, and a message that names the task.

    Parameters
    ----------
    error : BaseException
        What was raised.
    doing : str
        What was being done; empty if the function itself was called.
    label : str
        What messages call the task.
    value : object
        What the function has returned, if that was being sent.

    Returns
    -------
    BaseException
        `error` itself, if the function has raised it; but `TaskCrashed` for `SystemExit` and
        `KeyboardInterrupt`.
    """
    cause = summary(error)
    # Not `isinstance`: it looks up `__class__`, which an exception may define.
    kind = type(error)
    made: TaskError
    if doing == LOADING_ARGUMENTS and kind is ValueGone:
        made = WorkerLost(f"task {label}: a value among its arguments was lost: {cause}")
    elif doing in (LOADING_FUNCTION, LOADING_ARGUMENTS):
        made = LoadingError(f"task {label}: {doing}: {cause}{_hint_on_module(error)}")
    elif issubclass(kind, SystemExit):
        given = attribute(error, "code")
        code = int(given is not None)
        if issubclass(type(given), int):
            code = int.__index__(given)  # not by a method that a subclass may define
        what = f"task {label} called sys.exit({safe_repr(given)})"
        made = TaskCrashed(what, exitcode=code, exited=True, code=given)
    elif issubclass(kind, KeyboardInterrupt):
        what = f"task {label} was interrupted"
        made = TaskCrashed(what, exitcode=-signal.SIGINT, interrupted=True)
    elif doing:
        hint = hint_on_value("result", value, error)
        what = f"its result, {kind_of(value)}, cannot be sent"
        made = SerializationError(f"task {label}: {what}: {cause}{hint}")
    elif kind is ProcessFailed or kind is TaskTimeout:
        error.args = (f"task {label}: {error}",)
        return error
    else:
        return error
    return made.with_traceback(traceback_of(error))
