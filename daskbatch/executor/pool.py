"""The calls of one executor: accepts, cancels and settles them, and ends with the executor.

Several threads may use a `Pool`. Executors that `options` returned share one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Protocol, cast

from daskbatch.batch.batch import Batch
from daskbatch.batch.task import Task
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.errors import SubmitAfterCloseError
from daskbatch.executor.future import BatchPoolFuture, as_remote_traceback, to_executor_error
from daskbatch.executor.settler import Settler
from daskbatch.executor.submit_queue import SubmitQueue
from daskbatch.forking import after_fork
from daskbatch.serialization.exceptions import TaskTraceback, set_cause
from daskbatch.serialization.safe_text import attribute
from daskbatch.threads import start_unless_ending
from daskbatch.worker.execution.initialized_function import InitializerFailed
from daskbatch.worker.execution.task_context import TaskContext

#: The words of `concurrent.futures`, which programs may look for.
_SHUTDOWN_MESSAGE = "cannot schedule new futures after interpreter shutdown"

#: How long `shutdown(cancel_futures=True)` waits until the calls that seem to be on their way to
#: idle slots have begun.
_START_TIMEOUT_SECONDS = 1.0


class PendingResults(Protocol):
    """Results of a `map` that the user may ask for after the cluster has ended."""

    def fetch_remaining(self) -> None:
        """Fetch the results that are still on their workers."""


class Pool:
    """The calls of one executor; several threads may use it.

    It implements `FutureOwner`, and `ExecutorPool`, with which the background of its client
    flushes it.

    Parameters
    ----------
    batch : Batch
        Runs the calls.
    owned : bool
        Whether the Batch ends with the executor.
    name : str, optional
        Prefix of the functions' names on Dask's dashboard.
    max_running : int, optional
        How many calls may run at once.
    """

    def __init__(
        self, batch: Batch, owned: bool, name: str | None, max_running: int | None
    ) -> None:
        self.batch = batch
        #: Why no call can be run any longer, if the initializer has failed.
        self.broken: InitializerFailed | None = None
        #: The `map` calls whose results the user may still ask for.
        self.maps: weakref.WeakSet[PendingResults] = weakref.WeakSet()
        self._context = batch._context
        self._owned = owned
        self._process = os.getpid()
        self._session = self._context.session
        self._dispatcher = self._session.dispatcher
        #: Held while anything changes; notified when tasks are over.
        self._changed = self._dispatcher.outcomes.changed
        self._group = Group("executor", 0)
        self._group.started = True
        self._group.prefix = name or ""
        self._submit_queue = SubmitQueue(self._session, self._group, name, max_running)
        self._settler = Settler(self._dispatcher.outcomes, self._settle)
        #: Whether calls are no longer accepted, and whether all of them are over and settled.
        self._shut_down = False
        self._ended = False
        self._end_lock = threading.Lock()
        with self._changed:
            self._session.background.pools.add(self)
        _pools.add(self)

    @property
    def slots(self) -> int:
        """How many calls run at once."""
        return self._submit_queue.slots

    @property
    def waiting(self) -> list[TaskRecord]:
        """The calls that have not been submitted."""
        return self._submit_queue.waiting

    def count_unfinished(self) -> int:
        """Return the number of calls that are not over."""
        return self._group.unfinished

    def task_context(self) -> TaskContext | None:
        """Return the context of the task that this runs in, or None outside of tasks."""
        return self._dispatcher.outcomes.current_context()

    def task_of(self, record: TaskRecord) -> Task:
        """Return a call as a task."""
        return Task(self._context, record)

    # -- accepting calls ------------------------------------------------------------------

    def require_open(self) -> None:
        """Raise what `concurrent.futures` raises if no call is accepted any longer."""
        require_interpreter()
        if self._shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self.broken is not None:
            raise self.broken
        if self._session.closed:
            raise SubmitAfterCloseError("the Batch of this executor has been closed")
        if not self._is_own_process():
            raise RuntimeError(
                "this executor belongs to the process that this one was forked from: make another"
            )

    def submit(self, records: Sequence[TaskRecord]) -> None:
        """Accept calls."""
        with self._changed:
            self.require_open()
            self._start_threads()
            self._submit_queue.put(records)

    def submit_future(self, record: TaskRecord) -> BatchPoolFuture:
        """Accept a call, and return its future."""
        future = BatchPoolFuture(self, record)
        queue = self._submit_queue
        if self._group.unfinished:
            self._accept(future, queue.put)
            return future
        is_single = False

        def put(records: Sequence[TaskRecord]) -> None:
            nonlocal is_single
            is_single = queue.put_single(record)
            if not is_single:
                queue.put(records)

        try:
            self._accept(future, put)
            if is_single:
                queue.submit_single(record)
        finally:
            if is_single:
                queue.end_single(record)
        return future

    def _accept(self, future: BatchPoolFuture, put: Callable[[Sequence[TaskRecord]], None]) -> None:
        with self._changed:
            self.require_open()
            self._start_threads()
            put([future._record])
            self._settler.watch(future, future._record)

    def _start_threads(self) -> None:
        # Before a call is accepted, so that no call waits for a thread that cannot be started.
        try:
            self._submit_queue.start()
            self._settler.start()
        except RuntimeError:
            raise RuntimeError(_SHUTDOWN_MESSAGE) from None

    def flush(self) -> None:
        """Let the queued calls be submitted now, and do not wait for it."""
        self._submit_queue.flush()

    def wait_submitted(self, records: Sequence[TaskRecord]) -> None:
        """Wait until those of some tasks that are calls of this pool have been submitted."""
        self._submit_queue.wait_submitted(records)

    def cancel(self, records: Sequence[TaskRecord], begun: bool = True) -> list[TaskRecord]:
        """Cancel calls; return those that will not complete.

        Parameters
        ----------
        records : sequence of TaskRecord
            The calls.
        begun : bool
            Whether to stop calls that are running, too.
        """
        return self._dispatcher.cancel(records, begun) if self._is_own_process() else []

    def settle_cancelled(self, future: BatchPoolFuture) -> None:
        """Settle a cancelled future soon, though it may take long until its call is stopped."""
        self._settler.settle_now(future, future._record)

    def cancel_later(self, records: Iterable[TaskRecord]) -> None:
        """Cancel calls without waiting for it or taking a lock; a finalizer may call this."""
        if self._is_own_process():
            self._submit_queue.cancel_later(records)

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after some time, in another thread, unless the cluster has ended."""
        with contextlib.suppress(RuntimeError):  # the cluster has ended, and its tasks with it
            self._dispatcher.call_later(function, seconds)

    # -- results --------------------------------------------------------------------------

    def get(self, record: TaskRecord, timeout: float | None = None) -> Any:
        """Wait for a call; return what it returned, or raise what it raised."""
        self.task_of(record).wait(timeout)
        value, error = self.outcome(record)
        if error is not None:
            raise error
        return value

    def outcome(self, record: TaskRecord) -> tuple[Any, BaseException | None]:
        """Return what a call that is over has returned, and what `get` raises for it."""
        value, error = self.task_of(record)._value_or_error()
        return value, None if error is None else self.convert_error(error)

    def convert_error(self, error: BaseException) -> BaseException:
        """Return the exception of a call as `concurrent.futures` has it.

        If the initializer has failed, the pool is broken from now on.
        """
        cause = attribute(error, "__cause__")
        if type(cause) is TaskTraceback:
            set_cause(error, as_remote_traceback(cause))
        # Not `isinstance`: it looks up `__class__`, which an exception may define.
        if issubclass(type(error), InitializerFailed) and self.broken is None:
            self._break(cast("InitializerFailed", error))
        return to_executor_error(error)

    def _settle(self, future: BatchPoolFuture) -> None:
        """Settle a future whose call is over, or which was cancelled."""
        record = future._record
        if record.phase == Phase.CANCELLED or future.cancelled():
            if self.broken is None or future.cancelled():
                future._settle_cancelled()
            else:
                future._settle(None, self.broken)
            return
        try:
            outcome = self.outcome(record)
        except BaseException as error:  # a future that is never settled is waited for for ever
            outcome = None, error
        future._settle(*outcome)
        if record.block is not None and record.phase == Phase.DONE:
            record.value = None  # its worker keeps the pickle, and the future the object

    def _break(self, error: InitializerFailed) -> None:
        """Cancel all calls: no worker can be initialized for them."""
        self.broken = error
        # As an executor of `concurrent.futures` does: there may be no future that could raise it.
        logging.getLogger("concurrent.futures").critical(
            "Exception in initializer:%s", error.__cause__
        )
        self.cancel_later(self._unfinished())

    def _unfinished(self) -> list[TaskRecord]:
        with self._changed:
            return self._dispatcher.unfinished(self._group) + self._submit_queue.waiting

    # -- the end --------------------------------------------------------------------------

    def shutdown(self, wait: bool, cancel: bool = False) -> None:
        """Accept no more calls, and end when all calls are over.

        See `BatchPoolExecutor.shutdown`.
        """
        if not self._is_own_process():
            self._shut_down = True
            return
        if wait and not self._ended and self._settler.runs_here():
            raise RuntimeError(
                "a callback of a future cannot wait for the end of its executor, which itself "
                "waits for the callback: use shutdown(wait=False) there"
            )
        with self._changed:
            self._shut_down = True
        self._submit_queue.flush()
        starting = self._cancel_waiting() if cancel and not self._ended else []
        if wait:
            self._await_begun(starting)
            self._dispatcher.outcomes.wait(self._is_done)
            self._end()
        else:
            self._finish_later(starting)

    def release(self) -> None:
        """End when all calls are over, and do not wait for that; a finalizer may call this."""
        self._shut_down = True
        if self._is_own_process():
            self._finish_later()

    def finish(self) -> None:
        """Accept no more calls, wait until all calls are over, and end.

        Called inside a task it does not release the worker slot, since the interpreter is ending.
        """
        with self._changed:
            self._shut_down = True
        self._finish()

    def _finish_later(self, starting: Sequence[TaskRecord] = ()) -> None:
        # When the interpreter shuts down, `_finish_all` ends all pools.
        start_unless_ending(self._finish, starting, name="daskbatch-end")

    def _finish(self, starting: Sequence[TaskRecord] = ()) -> None:
        self._submit_queue.flush()
        self._await_begun(starting)
        with self._changed:
            self._changed.wait_for(self._is_done)
        self._end()

    def _cancel_waiting(self) -> list[TaskRecord]:
        """Cancel the calls that have not begun, but for those that idle slots seem to take.

        For the user, a call that was submitted while a slot was idle has begun, even if no worker
        has reported it yet. Returns these calls.
        """
        started = self._dispatcher.unfinished()
        idle = self.slots - sum(record.phase == Phase.RUNNING for record in started)
        if self.task_context() is not None:
            idle = 0  # inside a task, which has a slot itself and does not know of other clients
        waiting = [record for record in self._unfinished() if record.phase < Phase.RUNNING]
        # A call that needs resources or certain workers may wait although slots are idle.
        anywhere = (c for c in waiting if not (c.options.resources or c.options.workers))
        starting = list(islice(anywhere, max(0, idle)))
        spared = set(starting)
        self.cancel([record for record in waiting if record not in spared], begun=False)
        self._settler.wait_for_finished()
        return starting

    def _await_begun(self, starting: Sequence[TaskRecord]) -> None:
        """Wait until calls that are on their way have begun; cancel those that do not begin."""
        if starting:
            with self._changed:
                self._changed.wait_for(
                    lambda: all(record.phase >= Phase.RUNNING for record in starting),
                    _START_TIMEOUT_SECONDS,
                )
            not_begun = [record for record in starting if record.phase < Phase.RUNNING]
            self.cancel(not_begun, begun=False)

    def abandon(self) -> None:
        """Cancel the calls that have not been submitted: the Batch ends."""
        with self._changed:
            self._shut_down = True
            self._submit_queue.close()

    def _is_own_process(self) -> bool:
        """Say whether this process made the pool; in a forked child its locks may never be free."""
        return os.getpid() == self._process

    def _is_done(self) -> bool:
        if self._ended:
            return True
        unfinished = self._group.unfinished
        if unfinished:
            # Calls that are being stopped count as over here: the end of the Batch kills them.
            unfinished -= self._dispatcher.count_stopping(self._group)
        return not unfinished and not self._settler.unsettled_count

    def _end(self) -> None:
        with self._end_lock:
            if self._ended:
                return
            with self._changed:
                self._shut_down = self._ended = True
                self._submit_queue.close()
                self._settler.close()
                self._session.background.pools.discard(self)
            if self._owned:
                for results in list(self.maps):
                    results.fetch_remaining()
                self.batch.close()
                self._session.end()
            _pools.discard(self)


#: Whether the interpreter is shutting down.
_exiting = False

#: The pools that have not ended. A forked child does not touch those of its parent.
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
after_fork(_pools.clear)


def require_interpreter() -> None:
    """Raise what `concurrent.futures` raises while the interpreter shuts down."""
    if _exiting:
        raise RuntimeError(_SHUTDOWN_MESSAGE)


def _finish_all() -> None:
    """Finish the calls of all executors before the interpreter ends."""
    global _exiting
    _exiting = True
    pools = list(_pools)
    try:
        for pool in pools:
            pool.finish()
    except BaseException:  # Ctrl-C while this waits
        for pool in pools:
            pool.abandon()
            pool.cancel_later(pool._unfinished())
        raise


# Unlike the functions of `atexit`, this is called while threads can still do their work; the
# executors of `concurrent.futures` finish in the same way. Dask was imported before, so its
# threads end later.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
