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
        MissingInput                            strict: a declared input was not there
        MissingOutput                           strict: a declared output was not made
        UndeclaredAccess                        strict: the task did what it has not declared
      ServiceLost (BrokenExecutor)              the cluster or a shared object is gone
      TasksFailed (ExceptionGroup)              members of a compiled task failed

Warnings::

    BatchWarning (UserWarning)
      TasksFailedWarning                        tasks failed, and the program has not looked
      ProgramWarning                            declarations of a program that do not fit
      MissingInputWarning                       a declared input was not there
      MissingOutputWarning                      a declared output was not made

An exception that a user's function raises is passed on unchanged; it is not converted to one of
these.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import BrokenExecutor, CancelledError
from pickle import PicklingError
from typing import Any, Self

__all__ = [
    "BatchError",
    "BatchWarning",
    "DependencyFailed",
    "GraphError",
    "LifecycleError",
    "MissingInput",
    "MissingInputWarning",
    "MissingOutput",
    "MissingOutputWarning",
    "ProcessFailed",
    "ProgramWarning",
    "SerializationError",
    "ServiceLost",
    "SpecError",
    "SubmitAfterCloseError",
    "TaskCancelled",
    "TaskCrashed",
    "TaskError",
    "TaskTimeout",
    "TasksFailed",
    "TasksFailedWarning",
    "TemplateError",
    "UndeclaredAccess",
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


class MissingInput(TaskError):
    """A path that a task of a strict Batch declares to read was not there when it was to begin.

    Examples
    --------
    >>> issubclass(MissingInput, TaskError)
    True
    """


class MissingOutput(TaskError):
    """A path that a task of a strict Batch declares to write was not there when it had succeeded.

    Examples
    --------
    >>> issubclass(MissingOutput, TaskError)
    True
    """


class UndeclaredAccess(TaskError):
    """A task of a strict Batch has accessed something in a way that it has not declared.

    Parameters
    ----------
    task : str
        The name of the task.
    path : str
        The path, or the dictionary's key or the queue, that was accessed.
    mode : str
        ``"read"`` or ``"write"``.

    Examples
    --------
    >>> UndeclaredAccess("'clean' has read a.txt", task="clean", path="a.txt", mode="read").path
    'a.txt'
    """

    def __init__(self, *args: object, task: str = "", path: str = "", mode: str = "read") -> None:
        super().__init__(*args)
        self.task = task
        self.path = path
        self.mode = mode


class TasksFailed(BatchError, ExceptionGroup[Exception]):
    """Members of a compiled task have failed; it holds the exceptions of these members.

    The members that did not run because of them are counted in the message.

    Examples
    --------
    >>> error = TasksFailed("2 of 3 tasks failed", [ValueError("a"), OSError("b")])
    >>> error.subgroup(OSError).exceptions
    (OSError('b'),)
    >>> error.derive([KeyError("c")])
    TasksFailed('2 of 3 tasks failed', [KeyError('c')])
    """

    def derive(self, excs: Sequence[Any], /) -> Self:  # type: ignore[override]
        """Return the same group with other exceptions; `split` and `subgroup` call it.

        Parameters
        ----------
        excs : sequence of Exception
            The exceptions of the new group.
        """
        return type(self)(self.message, excs)


class BatchWarning(UserWarning):
    """The base class of all warnings of daskbatch.

    Examples
    --------
    >>> issubclass(ProgramWarning, BatchWarning)
    True
    """


class TasksFailedWarning(BatchWarning):
    """Tasks have failed, and the program has not looked at their failures.

    Examples
    --------
    >>> issubclass(TasksFailedWarning, BatchWarning)
    True
    """


class ProgramWarning(BatchWarning):
    """What the tasks of a program declare does not fit together, or not to the files.

    Examples
    --------
    >>> issubclass(ProgramWarning, BatchWarning)
    True
    """


class MissingInputWarning(BatchWarning):
    """A path that a task declares to read was not there when the task was to begin.

    Examples
    --------
    >>> issubclass(MissingInputWarning, BatchWarning)
    True
    """


class MissingOutputWarning(BatchWarning):
    """A path that a task declares to write was not there when the task had succeeded.

    Examples
    --------
    >>> issubclass(MissingOutputWarning, BatchWarning)
    True
    """
