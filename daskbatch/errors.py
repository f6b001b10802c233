"""Every exception that daskbatch raises, in one tree.

All parts of the package may import this module; it imports no other part. All exceptions can be
pickled, with their attributes.

::

    BatchError
      SpecError (ValueError)                    a description is wrong; nothing has run
        TemplateError                           ... in a template file
        GraphError                              ... in the order or the membership of tasks
      LifecycleError (RuntimeError)             a call at the wrong moment
        SubmitAfterCloseError                   ... after `close`
      TaskError                                 a task failed without an exception of its function
        ProcessFailed                           a non-zero exit code
        TaskTimeout (TimeoutError)              the task ran for too long
        DependencyFailed                        the task did not run, since another task failed
        WorkerLost (BrokenExecutor)             the worker died, and the task may not run again
        TaskCrashed                             the task ended its interpreter
        SerializationError (PicklingError)      something could not be pickled or unpickled
        TaskCancelled (CancelledError)          the task was cancelled
      ServiceLost (BrokenExecutor)              the cluster or a shared object is gone

An exception that a user's function raises is passed on unchanged; it is not converted to one of
these.
"""

from __future__ import annotations

from concurrent.futures import BrokenExecutor, CancelledError
from pickle import PicklingError
from typing import Any

__all__ = [
    "BatchError",
    "DependencyFailed",
    "GraphError",
    "LifecycleError",
    "ProcessFailed",
    "SerializationError",
    "ServiceLost",
    "SpecError",
    "SubmitAfterCloseError",
    "TaskCancelled",
    "TaskCrashed",
    "TaskError",
    "TaskTimeout",
    "TemplateError",
    "WorkerLost",
]


class BatchError(Exception):
    """The base class of all exceptions of daskbatch.

    Examples
    --------
    >>> issubclass(GraphError, BatchError)
    True
    """


class SpecError(BatchError, ValueError):
    """A description is wrong; nothing has run.

    Examples
    --------
    >>> issubclass(SpecError, ValueError)
    True
    """


class TemplateError(SpecError):
    """A template file is wrong; the message says the file, the line and what was expected.

    Examples
    --------
    >>> issubclass(TemplateError, SpecError)
    True
    """


class GraphError(SpecError):
    """A list of tasks is not a sequential program; the message names the tasks.

    Examples
    --------
    >>> issubclass(GraphError, SpecError)
    True
    """


class LifecycleError(BatchError, RuntimeError):
    """A call came at the wrong moment; for example, a task was started twice.

    Examples
    --------
    >>> issubclass(LifecycleError, RuntimeError)
    True
    """


class SubmitAfterCloseError(LifecycleError):
    """A task was made or started after this client closed its Batch.

    Examples
    --------
    >>> issubclass(SubmitAfterCloseError, LifecycleError)
    True
    """


class TaskError(BatchError):
    """A task failed, but not by an exception of its function.

    Examples
    --------
    >>> issubclass(ProcessFailed, TaskError)
    True
    """


class ProcessFailed(TaskError):
    """An executable ended with a non-zero exit code.

    Parameters
    ----------
    returncode : int
        The exit code; negative for a signal, 127 when the executable was not found.
    command : list of str
        The executable and its arguments.
    stderr : str
        What the executable wrote to its standard error.

    Examples
    --------
    >>> ProcessFailed("exit code 2", returncode=2, command=["false"]).returncode
    2
    """

    def __init__(
        self,
        *args: object,
        returncode: int | None = None,
        command: list[str] | None = None,
        stderr: str = "",
    ) -> None:
        super().__init__(*args)
        self.returncode = returncode
        self.command = command
        self.stderr = stderr


class TaskTimeout(TaskError, TimeoutError):
    """A task ran for longer than its ``timeout``.

    Examples
    --------
    >>> issubclass(TaskTimeout, TimeoutError)
    True
    """


class DependencyFailed(TaskError):
    """A task did not run, because a task that it depends on failed or was cancelled.

    Parameters
    ----------
    root : str
        The name of the task that failed first; its exception is the ``__cause__``.

    Examples
    --------
    >>> DependencyFailed("'report' did not run", root="load").root
    'load'
    """

    def __init__(self, *args: object, root: str | None = None) -> None:
        super().__init__(*args)
        self.root = root


class WorkerLost(TaskError, BrokenExecutor):
    """The worker of a task died, and the task may not run again.

    Parameters
    ----------
    worker : str, optional
        The address of the worker.
    exitcode : int, optional
        The exit code of the worker's process; negative for a signal.
    memory, memory_limit : int, optional
        Memory last reported by the worker, and its limit, in bytes; None if unknown.
    out_of_memory : bool
        Whether the worker was killed because it used too much memory.
    attempt : int
        Which attempt this was, counting from 1.

    Examples
    --------
    >>> WorkerLost("task 'fit' was lost", exitcode=-9).exitcode
    -9
    """

    def __init__(
        self,
        *args: object,
        worker: str | None = None,
        exitcode: int | None = None,
        memory: int | None = None,
        memory_limit: int | None = None,
        out_of_memory: bool = False,
        attempt: int = 1,
    ) -> None:
        super().__init__(*args)
        self.worker = worker
        self.exitcode = exitcode
        self.memory = memory
        self.memory_limit = memory_limit
        self.out_of_memory = out_of_memory
        self.attempt = attempt


class TaskCrashed(TaskError):
    """A task ended the interpreter that ran it, by ``sys.exit`` or by a crash.

    Parameters
    ----------
    exitcode : int
        The exit code; negative for a signal.
    exited : bool
        Whether the task called ``sys.exit``.
    code : object
        The argument of ``sys.exit``, if it could be pickled.
    interrupted : bool
        Whether the task raised a `KeyboardInterrupt`.

    Examples
    --------
    >>> TaskCrashed("called sys.exit(3)", exitcode=3).exitcode
    3
    """

    def __init__(
        self,
        *args: object,
        exitcode: int | None = None,
        exited: bool = False,
        code: object = None,
        interrupted: bool = False,
    ) -> None:
        super().__init__(*args)
        self.exitcode = exitcode
        self.exited = exited
        self.code: Any = code
        self.interrupted = interrupted


class SerializationError(TaskError, PicklingError):
    """A function, an argument, a result or an exception could not be pickled or unpickled.

    Examples
    --------
    >>> issubclass(SerializationError, TaskError)
    True
    """


class LoadingError(SerializationError, BrokenExecutor):
    """Something that was sent could not be unpickled where it arrived.

    It is a `BrokenExecutor`, since an executor of `concurrent.futures` breaks in this case. Here
    it is the error of one task, and the executor continues.

    Examples
    --------
    >>> issubclass(LoadingError, SerializationError)
    True
    """


class TaskCancelled(TaskError, CancelledError):
    """A task was cancelled before it was over.

    Examples
    --------
    >>> issubclass(TaskCancelled, CancelledError)
    True
    """


class ServiceLost(BatchError, BrokenExecutor):
    """The cluster, or the worker that held a shared object, is gone.

    Examples
    --------
    >>> issubclass(ServiceLost, BrokenExecutor)
    True
    """
