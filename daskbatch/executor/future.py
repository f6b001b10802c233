"""The futures of a `BatchPoolExecutor`: `concurrent.futures.Future`s that also know their task.

Does not know when a call is over: its pool says so, from a thread of its own.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Generator
from concurrent.futures import BrokenExecutor, Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED
from typing import TYPE_CHECKING, Any

from daskbatch.batch.task import Task
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import TaskCrashed
from daskbatch.worker.execution.task_context import (
    TaskContext,
    current,
    wait_releasing_slot,
    waiting_in_loop,
)

if TYPE_CHECKING:
    from daskbatch.executor.pool import Pool


_OVER = {FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED}


class CallExited(TaskCrashed, SystemExit):
    """A call ended its interpreter by ``sys.exit``: for `concurrent.futures` a `SystemExit`."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A SystemExit keeps its code apart from its other attributes.
        return type(self), self.args, {**vars(self), "code": self.code}


class CallInterrupted(TaskCrashed, KeyboardInterrupt):
    """A call raised a `KeyboardInterrupt`: for `concurrent.futures` it is that."""


class CallCrashed(TaskCrashed, BrokenExecutor):
    """A call ended its interpreter by a crash: for `concurrent.futures` the pool's end."""


class BatchPoolFuture(Future[Any]):
    """A call that a `BatchPoolExecutor` was given.

    It is awaitable. As an argument of another call of the same executor it stands for its
    result, and makes the other wait. A task that waits for it lets others have its slot: by
    `result`, `exception` and ``await``, and by `concurrent.futures.wait` and `as_completed`.
    Where a library waits in a way of its own, as for `asyncio.wrap_future`, it keeps its slot.

    Examples
    --------
    >>> future = executor.submit(pow, 2, 10)
    >>> future.result(), future.exception()
    (1024, None)
    >>> future.task.state, future.running(), future.cancel()
    ('done', False, False)
    """

    def __init__(self, pool: Pool, record: TaskRecord) -> None:
        super().__init__()
        self._pool = pool
        self._record = record
        waiters = _Waiters()
        waiters.pool = pool
        self._waiters: list[Any] = waiters

    @property
    def task(self) -> Task:
        """The call as a task, with ``stdout``, ``stderr`` and ``uid``."""
        return self._pool.task(self._record)

    def running(self) -> bool:
        """Say whether a worker has begun the call, and it is not over."""
        return not self.done() and self._record.phase == Phase.RUNNING

    def cancel(self) -> bool:
        """Keep the call from completing, also when it runs already.

        Returns
        -------
        bool
            True if it will not complete: it has not begun, or runs and is being stopped; False
            if it is over, unless it was cancelled before, or a call of the process that this
            one was forked from.
        """
        if self.done():
            return self.cancelled()
        if not self._pool.cancel([self._record]):
            return False
        super().cancel()
        # Those who wait for it are told by the pool's thread, as by an executor of Python's own.
        self._pool.tell_cancelled(self)
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the call, and give what it returned, or raise what it raised.

        See `concurrent.futures.Future.result`.
        """
        try:
            return super().result(self._wait_in_task(timeout))
        finally:
            del self  # which the exception would refer to, and this to the exception

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the call, and give what it raised, or None.

        See `concurrent.futures.Future.exception`.
        """
        return super().exception(self._wait_in_task(timeout))

    def _wait_in_task(self, timeout: float | None) -> float | None:
        """Wait, if a task does; gives how long to wait by then."""
        if self._state in _OVER:
            return timeout
        host = self._pool.waiter()
        if host is None:
            return timeout
        wait_releasing_slot(host, self._wait, timeout)
        return 0

    def _wait(self, seconds: float | None) -> bool:
        with self._condition:
            return self._condition.wait_for(self.done, seconds)

    def __await__(self) -> Generator[Any, None, Any]:
        """Give or raise what `result` does, without blocking the event loop."""
        if current() is None or self.done():
            return asyncio.wrap_future(self).__await__()
        return self._await_in_task().__await__()

    async def _await_in_task(self) -> Any:
        async with waiting_in_loop():
            return await asyncio.wrap_future(self)

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


class _Waiters(list[Any]):
    """Those who wait for this future among others, by functions of `concurrent.futures`.

    These know nothing of slots: what they wait for is an event of the waiter, which is put
    here before.
    """

    __slots__ = ("pool",)

    # Set by who makes it: an `__init__` would be felt where many futures are made.
    pool: Pool

    def append(self, waiter: Any) -> None:
        super().append(waiter)
        host = self.pool.waiter()
        # Once for all its futures; nobody has set it yet, as that takes their locks.
        if host is not None and type(getattr(waiter, "event", None)) is threading.Event:
            waiter.event = _EventOfTask(host)


class _EventOfTask(threading.Event):
    """What a task waits for without its slot."""

    def __init__(self, host: TaskContext) -> None:
        super().__init__()
        self._host = host

    def wait(self, timeout: float | None = None) -> bool:
        return wait_releasing_slot(self._host, super().wait, timeout)


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
