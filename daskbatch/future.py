"""The futures of a `BatchPoolExecutor`: `concurrent.futures.Future`s that also know their task.

Does not know when a call is over: its pool says so, from a thread of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from concurrent.futures import BrokenExecutor, Future, InvalidStateError
from typing import TYPE_CHECKING, Any

from daskbatch.dispatch.cell import Cell, Phase
from daskbatch.errors import TaskCrashed
from daskbatch.task import Task

if TYPE_CHECKING:
    from daskbatch.pool import Pool


class CallExited(TaskCrashed, SystemExit):
    """A call ended its interpreter by ``sys.exit``: for `concurrent.futures` a `SystemExit`."""


class CallCrashed(TaskCrashed, BrokenExecutor):
    """A call ended its interpreter by a crash: for `concurrent.futures` the pool's end."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A SystemExit keeps its code apart from its other attributes.
        return type(self), self.args, {**vars(self), "code": self.code}


class CallInterrupted(TaskCrashed, KeyboardInterrupt):
    """A call raised a `KeyboardInterrupt`: for `concurrent.futures` it is that."""


class BatchPoolFuture(Future[Any]):
    """A call that a `BatchPoolExecutor` was given.

    It is awaitable. As an argument of another call of the same executor it stands for its
    result, and makes the other wait.

    Examples
    --------
    >>> future = executor.submit(pow, 2, 10)
    >>> future.result()
    1024
    >>> future.task.state
    'done'
    """

    def __init__(self, pool: Pool, cell: Cell) -> None:
        super().__init__()
        self._pool = pool
        self._cell = cell

    @property
    def task(self) -> Task:
        """The call as a task, with ``stdout``, ``stderr`` and ``uid``."""
        return self._pool.task(self._cell)

    def running(self) -> bool:
        """Say whether a worker has begun the call, and it is not over."""
        return not self.done() and self._cell.phase == Phase.RUNNING

    def cancel(self) -> bool:
        """Keep the call from completing, also when it runs already.

        Returns
        -------
        bool
            True if it will not complete: it has not begun, or runs and is being stopped; False
            if it is over.
        """
        if self.done():
            return self.cancelled()
        if not self._pool.cancel([self._cell]):
            return False
        super().cancel()
        # Those who wait for it are told by the pool's thread, as by an executor of Python's own.
        self._pool.tell_cancelled(self)
        return self.cancelled()

    def __await__(self) -> Generator[Any, None, Any]:
        return asyncio.wrap_future(self).__await__()

    def __reduce__(self) -> tuple[Any, ...]:
        return self.task.__reduce__()

    def __repr__(self) -> str:
        if self.running():
            return f"<{type(self).__name__} at {id(self):#x} state=running>"
        return super().__repr__()

    # -- the pool's thread ----------------------------------------------------------------

    def _settle(self, value: Any, error: BaseException | None) -> None:
        """Take in what the call came to, unless it was cancelled before."""
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except InvalidStateError:
            pass

    def _settle_cancelled(self) -> None:
        super().cancel()
        with self._condition:
            # Whoever comes second finds it notified already.
            if self._state == "CANCELLED":
                self.set_running_or_notify_cancel()


def as_executors(error: BaseException) -> BaseException:
    """Give an exception the kind that `concurrent.futures` has for it, besides our own."""
    if type(error) is not TaskCrashed:
        return error
    kind: type[TaskCrashed] = CallCrashed
    if error.exited:
        kind = CallExited
    elif error.interrupted:
        kind = CallInterrupted
    made = kind(*error.args)
    made.__dict__.update(vars(error))
    if error.exited:
        made.code = getattr(error, "code", error.exitcode)  # it may not have been sent
    made.__cause__ = error.__cause__
    return made
