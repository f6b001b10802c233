"""The futures of a `BatchPoolExecutor`: `concurrent.futures.Future`s that also have a task.

A thread of the pool settles them. `FutureOwner` has what they need of the pool. Several threads may
use a future.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import BrokenExecutor, Future, InvalidStateError
from concurrent.futures._base import CANCELLED, CANCELLED_AND_NOTIFIED, FINISHED
from contextlib import suppress
from typing import Any, Protocol

from daskbatch.batch.awaiting import awaitable_callback
from daskbatch.batch.task import Task
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import TaskCrashed
from daskbatch.serialization.safe_text import type_name
from daskbatch.worker.execution.task_context import (
    TaskContext,
    current_context,
    wait_releasing_slot,
    waiting_in_loop,
)

#: The states of `concurrent.futures` in which a future is settled.
_OVER_STATES = {FINISHED, CANCELLED, CANCELLED_AND_NOTIFIED}


class FutureOwner(Protocol):
    """What a future needs of its pool. Several threads may call each method."""

    def task_context(self) -> TaskContext | None:
        """Return the context of the task that this runs in, or None outside of tasks."""

    def task_of(self, record: TaskRecord) -> Task:
        """Return a call as a task."""

    def cancel(self, records: Sequence[TaskRecord]) -> list[TaskRecord]:
        """Cancel calls; return those that will not complete."""

    def settle_cancelled(self, future: BatchPoolFuture) -> None:
        """Settle a cancelled future soon, though it may take long until its call is stopped."""


class CallExited(TaskCrashed, SystemExit):
    """A call ended its interpreter by ``sys.exit``: for `concurrent.futures` a `SystemExit`."""

    def __reduce__(self) -> tuple[Any, ...]:
        # A SystemExit keeps its code apart from its other attributes.
        return type(self), self.args, {**vars(self), "code": self.code}


class CallInterrupted(TaskCrashed, KeyboardInterrupt):
    """A call raised `KeyboardInterrupt`; `concurrent.futures` raises the same type."""


class CallCrashed(TaskCrashed, BrokenExecutor):
    """A call crashed its interpreter: for `concurrent.futures` a `BrokenExecutor`."""


class BatchPoolFuture(Future[Any]):
    """A call that was submitted to a `BatchPoolExecutor`.

    A future is awaitable. As an argument of another call of the same executor it stands for its
    result, and the other call waits for it. A task that waits for a future releases its worker
    slot meanwhile: in `result`, `exception` and ``await``, and in `concurrent.futures.wait` and
    `as_completed`. It keeps the slot if a library waits in another way, as `asyncio.wrap_future`
    does.

    Notes
    -----
    Several threads may use a future at the same time, as any `concurrent.futures.Future`.

    Examples
    --------
    >>> future = executor.submit(pow, 2, 10)
    >>> future.result(), future.exception()
    (1024, None)
    >>> future.add_done_callback(lambda over: print(over.result()))
    1024
    >>> future.task.state, future.running(), future.cancel()
    ('done', False, False)
    """

    def __init__(self, owner: FutureOwner, record: TaskRecord) -> None:
        super().__init__()
        self._owner = owner
        self._record = record
        waiters = _Waiters()
        waiters.owner = owner
        self._waiters: list[Any] = waiters

    @property
    def task(self) -> Task:
        """The call as a task, with ``stdout``, ``stderr`` and ``uid``."""
        return self._owner.task_of(self._record)

    def running(self) -> bool:
        """Say whether a worker has begun the call, and the call is not over."""
        return not self.done() and self._record.phase == Phase.RUNNING

    def cancel(self) -> bool:
        """Keep the call from completing, also if it is running.

        Returns
        -------
        bool
            True if the call will not complete: it has not begun, it runs and is being stopped, or
            it was cancelled before. False if it is over otherwise, or belongs to the process that
            this one was forked from.
        """
        if self.done():
            return self.cancelled()
        if not self._owner.cancel([self._record]):
            return False
        super().cancel()
        # A thread of the pool notifies the waiting threads, as in Python's own executors.
        self._owner.settle_cancelled(self)
        return self.cancelled()

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the call; return what it returned, or raise what it raised.

        See `concurrent.futures.Future.result`.
        """
        error: BaseException | None = None
        try:
            # The base class takes an exception that is false, like an empty container, for none.
            error = super().exception(self._wait_in_task(timeout))
            if error is not None:
                raise error
            return self._result
        finally:
            del self, error  # else the exception would refer to them, and they to it

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the call; return the exception that it raised, or None.

        See `concurrent.futures.Future.exception`.
        """
        return super().exception(self._wait_in_task(timeout))

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call a function with the future once it is over; see `Future.add_done_callback`.

        Parameters
        ----------
        fn : callable
            The function. One of asyncio receives a `RuntimeError` for a `StopIteration`.
        """
        super().add_done_callback(awaitable_callback(fn))

    def _wait_in_task(self, timeout: float | None) -> float | None:
        """If called inside a task, wait here with the worker slot released.

        Returns the timeout for the base class: 0 if this has waited, else `timeout`.
        """
        if self._state in _OVER_STATES:
            return timeout
        context = self._owner.task_context()
        if context is None:
            return timeout
        wait_releasing_slot(context, self._wait, timeout)
        return 0

    def _wait(self, seconds: float | None) -> bool:
        with self._condition:
            return self._condition.wait_for(self.done, seconds)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait without blocking the event loop; return or raise what `result` does."""
        return self._result_async().__await__()

    async def _result_async(self) -> Any:
        # Not by `asyncio.wrap_future`: that never ends for a StopIteration (up to 3.11), and
        # makes new exceptions of some types, without the cause and the notes of the call's own.
        if not self.done():
            if current_context() is None:
                await self._settled()
            else:
                async with waiting_in_loop():
                    await self._settled()
        if self.cancelled():
            raise asyncio.CancelledError
        error = super().exception(0)
        try:
            if error is not None:
                raise error  # a coroutine turns a StopIteration into a RuntimeError
            return self._result
        finally:
            del self, error

    async def _settled(self) -> None:
        """Wait until the future is settled; cancel it if this coroutine is cancelled."""
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()

        def wake() -> None:
            if not waiter.done():
                waiter.set_result(None)

        def notify(_: object) -> None:
            with suppress(RuntimeError):  # the loop has ended, and the coroutine with it
                loop.call_soon_threadsafe(wake)

        self.add_done_callback(notify)
        try:
            await waiter
        except asyncio.CancelledError:
            self.cancel()
            raise

    def __reduce__(self) -> tuple[Any, ...]:
        return self.task.__reduce__()

    def _repr_html_(self) -> str:
        return self.task._repr_html_()

    def __repr__(self) -> str:
        state = self._state.lower()
        if self.running():
            state = "running"
        elif self.cancelled():
            state = "cancelled"
        elif self._state == FINISHED:
            # The base class asks an exception whether it is true, which runs code of the user.
            error = self._exception
            state += f" returned {type_name(self._result)}"
            if error is not None:
                state = f"finished raised {type_name(error)}"
        return f"<{type_name(self)} at {id(self):#x} state={state}>"

    # -- called by the pool's threads -----------------------------------------------------

    def _settle(self, value: Any, error: BaseException | None) -> None:
        """Set the result or the exception, unless the future was cancelled before."""
        try:
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)
        except InvalidStateError:
            pass

    def _settle_cancelled(self) -> None:
        """Cancel the future and notify the threads that wait for it; twice has no effect."""
        super().cancel()
        with self._condition:
            if self._state == CANCELLED:
                self.set_running_or_notify_cancel()


class _Waiters(list[Any]):
    """The functions of `concurrent.futures` that wait for this future among others.

    `concurrent.futures.wait` and `as_completed` know nothing of worker slots. They append a waiter
    here and then wait for its event. This list replaces the event by one that releases the slot.
    """

    __slots__ = ("owner",)

    # Set after construction: an `__init__` would slow down loops that submit many calls.
    owner: FutureOwner

    def append(self, waiter: Any) -> None:
        """Add a waiter; in a task, with an event that releases the slot."""
        super().append(waiter)
        context = self.owner.task_context()
        # A waiter for several futures is changed once. Its event has not been set yet: that takes
        # the locks of all its futures, which the caller holds.
        if context is not None and type(getattr(waiter, "event", None)) is threading.Event:
            waiter.event = _SlotReleasingEvent(context)


class _SlotReleasingEvent(threading.Event):
    """An event that a task waits for with its worker slot released."""

    def __init__(self, context: TaskContext) -> None:
        super().__init__()
        self._context = context

    def wait(self, timeout: float | None = None) -> bool:
        return wait_releasing_slot(self._context, super().wait, timeout)


def as_remote_traceback(trace: BaseException) -> BaseException:
    """Return a worker's traceback as `concurrent.futures` has it: tools know its class."""
    from concurrent.futures.process import _RemoteTraceback

    return _RemoteTraceback(f'\n"""\n{trace}"""')  # type: ignore[arg-type]


def to_executor_error(error: BaseException) -> BaseException:
    """Convert a `TaskCrashed` to a class that is also the type that `concurrent.futures` raises.

    All other exceptions are returned unchanged.
    """
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
        made.code = getattr(error, "code", error.exitcode)  # the code may not have been picklable
    made.__cause__ = error.__cause__
    return made
