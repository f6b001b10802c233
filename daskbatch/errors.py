"""Every exception that daskbatch raises, in one tree.

Knows nothing of tasks or clusters: names and causes are handed in by whoever raises.

::

    BatchError
      SpecError (ValueError)                    the description is wrong; nothing has run
        TemplateError                           ... in a template file
        GraphError                              ... in the order or the membership of tasks
      LifecycleError (RuntimeError)             the right call at the wrong moment
        SubmitAfterCloseError
      TaskError                                 the task failed, not by an exception of its own
        ProcessFailed                           a non-zero exit code
        TaskTimeout (TimeoutError)
        DependencyFailed                        it did not run: what it needs failed
        WorkerLost (BrokenExecutor)             its worker died and it may not run again
        TaskCrashed                             the interpreter was ended under it
        SerializationError (PicklingError)      something could not be sent or received
        TaskCancelled (CancelledError)
      ServiceLost (BrokenExecutor)              the cluster or a shared object went away

An exception that a user's own function raises is none of these: it arrives as it is.
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
    """The base of every exception of daskbatch.

    Examples
    --------
    >>> issubclass(GraphError, BatchError)
    True
    """


class SpecError(BatchError, ValueError):
    """A description that cannot be carried out; nothing has run.

    Examples
    --------
    >>> issubclass(SpecError, ValueError)
    True
    """


class TemplateError(SpecError):
    """A template file that is wrong; the message names file, line and what was expected.

    Examples
    --------
    >>> issubclass(TemplateError, SpecError)
    True
    """


class GraphError(SpecError):
    """A list of tasks that is no sequential program; the message names the tasks.

    Examples
    --------
    >>> issubclass(GraphError, SpecError)
    True
    """


class LifecycleError(BatchError, RuntimeError):
    """The right call at the wrong moment: a task started twice, say.

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
    """A task failed in another way than by an exception of its own function.

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
        What it wrote to its standard error.

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
    """A task did not run, because a task that it depends on failed.

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
    """A task's worker died, and the task may not run a second time.

    Parameters
    ----------
    worker : str, optional
        The worker's address.
    exitcode : int, optional
        How its process ended; negative for a signal.
    memory, memory_limit : int, optional
        How much memory it used, and might have used. Bytes.
    out_of_memory : bool
        Whether it was ended because it used too much.
    attempt : int
        The how manieth run of the task it was.

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
    """A task ended the interpreter that ran it, by ``sys.exit`` or a crash.

    Parameters
    ----------
    exitcode : int
        The exit code; negative for a signal.
    exited : bool
        Whether it was by ``sys.exit``.
    code : object
        What ``sys.exit`` was given, if that can be sent.
    interrupted : bool
        Whether it was by a `KeyboardInterrupt` that the task raised.

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
    """A function, an argument, a result or an exception could not be sent.

    Examples
    --------
    >>> issubclass(SerializationError, TaskError)
    True
    """


class LoadingError(SerializationError, BrokenExecutor):
    """What had been sent could not be unpickled where it arrived.

    For `concurrent.futures` that breaks the pool; here it is an error of one task alone.

    Examples
    --------
    >>> issubclass(LoadingError, SerializationError)
    True
    """


class TaskCancelled(TaskError, CancelledError):
    """A task was cancelled before it was done.

    Examples
    --------
    >>> issubclass(TaskCancelled, CancelledError)
    True
    """


class ServiceLost(BatchError, BrokenExecutor):
    """The cluster, or the worker that held a shared object, went away.

    Examples
    --------
    >>> issubclass(ServiceLost, BrokenExecutor)
    True
    """
