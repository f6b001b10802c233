"""Futures of `concurrent.futures` for tasks, and the order in which tasks complete.

A thread of this module settles the futures: to load a result may run any code of the user, which
must not run where the outcomes of tasks arrive. Any thread may call all functions.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, InvalidStateError
from queue import SimpleQueue
from typing import Any, Protocol

from daskbatch.batch.awaiting import awaitable_callback
from daskbatch.cluster.session import Session
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.errors import LifecycleError, SpecError
from daskbatch.forking import after_fork, make_lock
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.threads import Condition
from daskbatch.timeouts import Deadline, parse_timeout
from daskbatch.worker.execution.task_context import current_context, wait_releasing_slot


class AwaitedTask(Protocol):
    """The part of a task that a future needs."""

    _record: TaskRecord
    _session: Session
    _future: TaskFuture

    def _records_to_await(self) -> list[TaskRecord]: ...
    def _require_started(self) -> None: ...
    def _outcome(self) -> tuple[Any, BaseException | None]: ...
    def _look_at_failures(self) -> None: ...
    def _is_over(self) -> bool: ...
    def cancel(self) -> bool: ...
    def _repr_html_(self) -> str: ...

    @property
    def state(self) -> str: ...


class TaskFuture(Future[Any]):
    """The future of a task. Any thread may use it.

    Parameters
    ----------
    task : Task
        The task.
    """

    def __init__(self, task: AwaitedTask) -> None:
        super().__init__()
        self._task = task

    def _repr_html_(self) -> str:
        return self._task._repr_html_()

    def cancel(self) -> bool:
        """Cancel the task; return whether it will not complete."""
        if self.done():
            return self.cancelled()
        if not self._task.cancel() or not super().cancel():
            return self.cancelled()
        self._notify_of_cancel()
        return True

    def _notify_of_cancel(self) -> None:
        with contextlib.suppress(InvalidStateError, RuntimeError):
            self.set_running_or_notify_cancel()

    def running(self) -> bool:
        """Return whether the task runs now."""
        return not self.done() and self._task.state == "running"

    def result(self, timeout: float | None = None) -> Any:
        """Return the result of the task, or raise its exception; see `Future.result`.

        Parameters
        ----------
        timeout : float, optional
            Maximum number of seconds to wait.
        """
        try:
            return super().result(timeout)
        finally:
            self._look()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception of the task, or None; see `Future.exception`.

        Parameters
        ----------
        timeout : float, optional
            Maximum number of seconds to wait.
        """
        error = super().exception(timeout)
        self._look()
        return error

    def add_done_callback(self, fn: Callable[[Future[Any]], object]) -> None:
        """Call a function with the future once it is over; see `Future.add_done_callback`.

        Parameters
        ----------
        fn : callable
            The function. One of asyncio receives a `RuntimeError` for a `StopIteration`.
        """
        super().add_done_callback(awaitable_callback(fn))

    def _look(self) -> None:
        if self.done():
            self._task._look_at_failures()

    def _settle(self) -> None:
        """Set the outcome of the task, which is over."""
        if self.cancelled():
            return
        if self._task.state == "cancelled":
            super().cancel()
            self._notify_of_cancel()
            return
        value, error = self._task._outcome()
        # The user may have cancelled it meanwhile.
        with contextlib.suppress(InvalidStateError):
            if error is None:
                self.set_result(value)
            else:
                self.set_exception(error)


def future_of(task: AwaitedTask) -> TaskFuture:
    """Return the future of a task; see `Task.as_future`."""
    if not task._is_over():
        task._require_started()
    with _future_lock:
        future: TaskFuture | None = getattr(task, "_future", None)
        if future is not None:
            return future
        future = task._future = TaskFuture(task)
    _call_when_over(task, lambda: _settler.settle(future))
    return future


def _call_when_over(task: AwaitedTask, callback: Callable[[], None]) -> None:
    """Call a function, in any thread, once all records of a task are over. It must not raise."""
    outcomes = task._session.dispatcher.outcomes
    records = task._records_to_await()
    remaining = len(records) + 1
    lock = threading.Lock()

    def count_down() -> None:
        nonlocal remaining
        with lock:
            remaining -= 1
            last = not remaining
        if last:
            callback()

    for record in records:
        outcomes.when_over(record, count_down)
    count_down()


class _Settler:
    """Settles futures in a thread, which ends when nothing has been left to settle for a while."""

    def __init__(self) -> None:
        self._futures: SimpleQueue[TaskFuture] = SimpleQueue()
        self._lock = threading.Lock()
        self._unsettled = 0

    def settle(self, future: TaskFuture) -> None:
        """Settle a future soon; does not wait for it."""
        with self._lock:
            self._futures.put(future)
            self._unsettled += 1
            first = self._unsettled == 1
        if first:
            threading.Thread(target=self._run, name="daskbatch-futures", daemon=True).start()

    def _run(self) -> None:
        while True:
            future = self._futures.get()
            try:
                future._settle()
            except BaseException as error:  # nobody else would settle it
                with contextlib.suppress(InvalidStateError):
                    future.set_exception(error)
            del future
            with self._lock:
                self._unsettled -= 1
                if not self._unsettled:
                    return


_settler = _Settler()
_future_lock = make_lock()


@after_fork
def _replace_settler() -> None:
    global _settler
    _settler = _Settler()


def as_completed(tasks: Iterable[Any], timeout: float | None = None) -> Iterator[Any]:
    """Yield tasks as they are over, however they have ended; each once.

    Tasks in the background are started. In a task, the worker slot is released while this waits.

    Parameters
    ----------
    tasks : iterable of Task
        The tasks; they may be of several Batches.
    timeout : float, optional
        Maximum number of seconds until the last one is over, from now on.

    Raises
    ------
    SpecError
        One of them is not a task.
    LifecycleError
        One of them has not been started.
    TimeoutError
        Raised by the iterator: not all tasks are over within `timeout`.

    Examples
    --------
    >>> tasks = [batch.function(pow, 2, n) for n in range(3)]
    >>> batch.compile(tasks).start()
    >>> sorted(task.get() for task in as_completed(tasks, timeout=60))
    [1, 2, 4]
    """
    if not isinstance(tasks, Iterable):
        raise SpecError(f"as_completed takes a list of tasks, not {safe_repr(tasks)}")
    awaited = list(dict.fromkeys(tasks))
    for task in awaited:
        if not hasattr(task, "_records_to_await"):
            raise SpecError(f"as_completed takes tasks; {safe_repr(task)} is not a task")
    for task in awaited:
        if not task._is_over():
            try:
                task._require_started()
            except LifecycleError as error:
                raise LifecycleError(f"as_completed would wait for ever: {error}") from None
    deadline = Deadline(parse_timeout(timeout))
    over: deque[Any] = deque()
    changed = Condition()
    for task in awaited:
        _call_when_over(task, _appender(over, changed, task))
    return _yield_over(len(awaited), over, changed, deadline)


def _appender(
    over: deque[Any], changed: threading.Condition, task: AwaitedTask
) -> Callable[[], None]:
    def append() -> None:
        with changed:
            over.append(task)
            changed.notify_all()

    return append


def _yield_over(
    count: int, over: deque[Any], changed: threading.Condition, deadline: Deadline
) -> Iterator[Any]:
    def wait(seconds: float | None) -> bool:
        with changed:
            return changed.wait_for(lambda: bool(over), seconds)

    for remaining in range(count, 0, -1):
        if not over and not wait_releasing_slot(current_context(), wait, deadline.remaining()):
            raise TimeoutError(f"{remaining} of {count} tasks are not over")
        yield over.popleft()
