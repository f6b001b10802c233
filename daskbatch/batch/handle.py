"""The handle of one of the three values of a task: its result, its stdout or its stderr.

Several threads may use a `Handle`; the task that it belongs to does all the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class HandleOwner(Protocol):
    """The task that a handle belongs to."""

    def _get_part(self, part: str, timeout: float | None) -> Any:
        """Wait for the task and return its result, stdout or stderr; see `Handle.get`."""

    def _get_rank(self, part: str, index: int, timeout: float | None) -> str:
        """Wait for the task and return the output of one rank; see `Handle.rank`."""

    def _tail_part(self, part: str, count: int) -> list[str]:
        """Return the last lines so far; see `Handle.tail`."""

    def _follow_part(self, part: str) -> Iterator[str]:
        """Yield lines as they are written; see `Handle.follow`."""

    def _reduce_part(self, part: str) -> tuple[Any, ...]:
        """Return what pickle is to write where a handle stands among arguments."""

    def _part_html(self, part: str) -> str:
        """Return the form of a handle in notebooks."""


class Handle:
    """The result, the stdout or the stderr of a task.

    As an argument of another task it stands for its value, and the other task waits for this one.

    Notes
    -----
    Several threads may use a handle at the same time.

    Examples
    --------
    >>> task = batch.function(print, "hello")
    >>> task.run()
    >>> task.stdout.get()
    'hello'
    """

    __slots__ = ("_part", "_task")

    def __init__(self, task: HandleOwner, part: str) -> None:
        self._task = task
        self._part = part

    def get(self, timeout: float | None = None) -> Any:
        """Wait for the task and return the value.

        Parameters
        ----------
        timeout : float, optional
            Maximum number of seconds to wait.

        Raises
        ------
        TimeoutError
            The task is not over within `timeout`.
        LifecycleError
            The task has not been started.
        Exception
            For a result, the exception that the task raised: the same type and arguments, with the
            worker's traceback as its cause. `DependencyFailed` if the task did not run because
            another task failed, `TaskCancelled` if it was cancelled, and `ProcessFailed`,
            `TaskTimeout`, `TaskCrashed`, `WorkerLost` or `SerializationError` if it failed in
            another way.
        """
        return self._task._get_part(self._part, timeout)

    def rank(self, index: int, timeout: float | None = None) -> str:
        """Wait for a parallel job, and return what one of its ranks has written.

        Parameters
        ----------
        index : int
            The number of the rank, from 0.
        timeout : float, optional
            Maximum number of seconds to wait.

        Raises
        ------
        TimeoutError
            The task is not over within `timeout`.
        LifecycleError
            The task has not been started.
        SpecError
            The task is not a job, it has no rank of that number, or this is its result.

        Examples
        --------
        >>> job = batch.job("sh", "-c", "echo rank $DASKBATCH_RANK", num_procs=2)
        >>> job.run()
        >>> job.stdout.rank(1), job.stderr.rank(0)
        ('rank 1', '')
        """
        return self._task._get_rank(self._part, index, timeout)

    def tail(self, n: int = 20) -> list[str]:
        """Return the last lines that the task has written so far; does not wait for more.

        Of a compiled task: the last lines of its members, in their order.

        Parameters
        ----------
        n : int
            The number of lines.

        Raises
        ------
        SpecError
            This is the handle of a result, or `n` is not a positive number.

        Examples
        --------
        >>> task = batch.function(print, "one", "two", sep="\\n")
        >>> task.run()
        >>> task.stdout.tail(1)
        ['two']
        """
        return self._task._tail_part(self._part, n)

    def follow(self) -> Iterator[str]:
        """Yield the lines that the task writes, as they are written, until it is over.

        The first ones are those that it has written so far. If the task is tried again, those of
        the next attempt follow. Where more was written than ``daskbatch.output-limit`` allows
        before it was read, lines are missing. Of a compiled task: the lines of all members.

        Raises
        ------
        SpecError
            This is the handle of a result.
        LifecycleError
            The task has not been started.

        Examples
        --------
        >>> task = batch.function(print, "one", "two", sep="\\n")
        >>> task.start()
        >>> list(task.stdout.follow())
        ['one', 'two']
        """
        return self._task._follow_part(self._part)

    def __reduce__(self) -> tuple[Any, ...]:
        return self._task._reduce_part(self._part)

    def __format__(self, specification: str) -> str:
        raise TypeError(
            f"the {self._part} of {self._task!r} cannot be part of a text, since it is not known "
            "yet: give the handle itself as an argument of a task, and make the text there; or "
            f"wait for the value with {self._part}.get(); to show the handle, write {{handle!r}}"
        )

    def _repr_html_(self) -> str:
        return self._task._part_html(self._part)

    def __repr__(self) -> str:
        return f"<{self._part} of {self._task!r}>"
