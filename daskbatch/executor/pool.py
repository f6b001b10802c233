"""The calls of one executor as a whole: what it takes, how it breaks, how it ends.

Does not know how calls are described, gathered or settled.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Protocol

from daskbatch.batch.batch import Batch
from daskbatch.batch.task import Task
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.errors import SubmitAfterCloseError
from daskbatch.executor.future import BatchPoolFuture, as_executors
from daskbatch.executor.settler import Settler
from daskbatch.executor.submit_queue import SubmitQueue
from daskbatch.worker.execution.initialized_function import InitializerFailed
from daskbatch.worker.execution.task_context import TaskContext

_INTERPRETER_ENDS = "cannot schedule new futures after interpreter shutdown"

#: How long what seems to be on its way to an idle slot is let begin. Seconds.
_COMING_SECONDS = 1.0


class Results(Protocol):
    """What may still be asked for results when the cluster has ended."""

    def fetch_left(self) -> None: ...


class Pool:
    """The calls of one executor.

    Parameters
    ----------
    batch : Batch
        Runs them.
    owned : bool
        Whether it ends with the executor.
    name : str, optional
        Stands before the functions' names on Dask's dashboard.
    cap : int, optional
        How many calls may run at once.
    """

    def __init__(self, batch: Batch, owned: bool, name: str | None, cap: int | None) -> None:
        self.batch = batch
        #: Why no call can be run any more.
        self.broken: InitializerFailed | None = None
        self.maps: weakref.WeakSet[Results] = weakref.WeakSet()
        self._owned = owned
        self._process = os.getpid()
        self._session = batch._session
        self._dispatcher = self._session.dispatcher
        self._changed = self._dispatcher.outcomes.changed
        self._group = Group("executor", 0)
        self._group.started = True
        self._gatherer = SubmitQueue(self._session, self._group, name, cap)
        self._settler = Settler(self._dispatcher.outcomes, self._settle)
        self._shut = False
        self._ended = False
        self._ending = threading.Lock()
        with self._changed:
            self._session.background.pools.add(self)
        _pools.add(self)

    @property
    def slots(self) -> int:
        """How many calls run at once."""
        return self._gatherer.slots

    @property
    def waiting(self) -> list[TaskRecord]:
        """The calls that have not been handed over."""
        return self._gatherer.waiting

    def waiter(self) -> TaskContext | None:
        """Give what the task has around it that waits here, if this is in a task."""
        return self._dispatcher.outcomes.current_context()

    def task(self, record: TaskRecord) -> Task:
        """Give a call as a task."""
        return Task(self.batch, record)

    # -- giving calls ---------------------------------------------------------------------

    def require_open(self) -> None:
        """Raise what `concurrent.futures` raises where no call can be given any more."""
        require_interpreter()
        if self._shut:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if self.broken is not None:
            raise self.broken
        if self._session.closed:
            raise SubmitAfterCloseError("the Batch of this executor has been closed")
        if not self._is_own():
            raise RuntimeError(
                "this executor belongs to the process that this one was forked from: make another"
            )

    def put(self, records: Sequence[TaskRecord]) -> None:
        """Take calls."""
        with self._changed:
            self.require_open()
            self._start()
            self._gatherer.put(records)

    def put_future(self, record: TaskRecord) -> BatchPoolFuture:
        """Take a call, and give its future."""
        future = BatchPoolFuture(self, record)
        with self._changed:
            self.require_open()
            self._start()
            self._gatherer.put([record])
            self._settler.watch(future, record)
        return future

    def _start(self) -> None:
        # Before a call is taken: none is that nobody would hand over, or settle.
        try:
            self._gatherer.start()
            self._settler.start()
        except RuntimeError:
            raise RuntimeError(_INTERPRETER_ENDS) from None

    def flush(self) -> None:
        """Have what was gathered handed over."""
        self._gatherer.hurry()

    def wait_submitted(self, records: Sequence[TaskRecord]) -> None:
        """Wait until those of some tasks that are calls of this have been handed over."""
        self._gatherer.hand_over(records)

    def cancel(self, records: Sequence[TaskRecord], begun: bool = True) -> list[TaskRecord]:
        """Cancel calls; returns those that will not complete."""
        return self._dispatcher.cancel(records, begun) if self._is_own() else []

    def tell_cancelled(self, future: BatchPoolFuture) -> None:
        """Settle a future that was cancelled, though its call may take long to stop."""
        self._settler.settle_now(future, future._record)

    def cancel_later(self, records: Iterable[TaskRecord]) -> None:
        """Cancel calls without waiting for it; a finalizer may call this."""
        if self._is_own():
            self._gatherer.cancel_later(records)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after some time, as long as there is a cluster."""
        with contextlib.suppress(RuntimeError):  # it has ended, and all with it
            self._dispatcher.call_later(function, seconds)

    # -- what calls come to ---------------------------------------------------------------

    def get(self, record: TaskRecord, timeout: float | None = None) -> Any:
        """Wait for a call, and give what it returned, or raise what it raised."""
        task = self.task(record)
        task.wait(timeout)
        value, error = task._outcome()
        if error is not None:
            raise self._understand(error)
        return value

    def _settle(self, future: BatchPoolFuture) -> None:
        record = future._record
        if record.phase == Phase.CANCELLED or future.cancelled():
            if self.broken is None or future.cancelled():
                future._settle_cancelled()
            else:
                future._settle(None, self.broken)
            return
        value, error = self.task(record)._outcome()
        future._settle(value, None if error is None else self._understand(error))
        if record.block is not None and record.phase == Phase.DONE:
            record.value = None  # it stays on its worker, and here as an object

    def _understand(self, error: BaseException) -> BaseException:
        if isinstance(error, InitializerFailed) and self.broken is None:
            self._break(error)
        return as_executors(error)

    def _break(self, error: InitializerFailed) -> None:
        """Give up all calls: no worker can be prepared for them."""
        self.broken = error
        # As an executor of `concurrent.futures` does; there is nobody else to tell.
        logging.getLogger("concurrent.futures").critical(
            "Exception in initializer:%s", error.__cause__
        )
        self.cancel_later(self._left())

    def _left(self) -> list[TaskRecord]:
        with self._changed:
            return self._dispatcher.unfinished(self._group) + self._gatherer.waiting

    # -- the end --------------------------------------------------------------------------

    def shutdown(self, wait: bool, cancel: bool = False) -> None:
        """Take no more calls, and end when those that there are are over; see `Executor`."""
        if not self._is_own():
            self._shut = True
            return
        if wait and not self._ended and self._settler.runs_here():
            raise RuntimeError(
                "a callback of a future cannot wait for the end of its executor, which itself "
                "waits for the callback: use shutdown(wait=False) there"
            )
        with self._changed:
            self._shut = True
        self._gatherer.hurry()
        coming = self._cancel_waiting() if cancel and not self._ended else []
        if wait:
            self._await_begun(coming)
            self._dispatcher.outcomes.wait(self._is_done)
            self._end()
        else:
            self._finish_later(coming)

    def let_go(self) -> None:
        """End when all calls are over, without waiting for that; a finalizer may call this."""
        self._shut = True
        if self._is_own():
            self._finish_later()

    def finish(self) -> None:
        """Take no more calls, and wait in no task's name until those that there are are over."""
        with self._changed:
            self._shut = True
        self._finish()

    def _finish_later(self, coming: Sequence[TaskRecord] = ()) -> None:
        # When the interpreter ends there are no new threads; but then all pools are ended.
        with contextlib.suppress(RuntimeError):
            threading.Thread(
                target=self._finish, args=(coming,), name="daskbatch-end", daemon=True
            ).start()

    def _finish(self, coming: Sequence[TaskRecord] = ()) -> None:
        self._gatherer.hurry()
        self._await_begun(coming)
        with self._changed:
            self._changed.wait_for(self._is_done)
        self._end()

    def _cancel_waiting(self) -> list[TaskRecord]:
        """Cancel what has not begun; returns what an idle slot seems to be about to take."""
        started = self._dispatcher.unfinished()
        idle = self.slots - sum(record.phase == Phase.RUNNING for record in started)
        if self.waiter() is not None:
            idle = 0  # a task knows nothing of others, and has a slot itself
        waiting = [record for record in self._left() if record.phase < Phase.RUNNING]
        # What asks for more than a slot may wait, however many are idle.
        anywhere = (c for c in waiting if not (c.options.resources or c.options.workers))
        coming = list(islice(anywhere, max(0, idle)))
        spared = set(coming)
        self.cancel([record for record in waiting if record not in spared], begun=False)
        self._settler.catch_up()
        return coming

    def _await_begun(self, coming: Sequence[TaskRecord]) -> None:
        """Let calls begin that are on their way, and cancel those that turn out not to be."""
        if coming:
            with self._changed:
                self._changed.wait_for(
                    lambda: all(record.phase >= Phase.RUNNING for record in coming), _COMING_SECONDS
                )
            self.cancel([record for record in coming if record.phase < Phase.RUNNING], begun=False)

    def abandon(self) -> None:
        """Cancel what has not been handed over: the Batch ends."""
        with self._changed:
            self._shut = True
            self._gatherer.close()

    def _is_own(self) -> bool:
        """Say whether this is the process that has made it; else its locks may never be free."""
        return os.getpid() == self._process

    def _is_done(self) -> bool:
        if self._ended:
            return True
        left = self._group.unfinished
        if left:
            # What is being stopped is over for those who wait here; to end stops it for sure.
            left -= self._dispatcher.count_stopping(self._group)
        return not left and not self._settler.left

    def _end(self) -> None:
        with self._ending:
            if self._ended:
                return
            with self._changed:
                self._shut = self._ended = True
                self._gatherer.close()
                self._settler.close()
                self._session.background.pools.discard(self)
            if self._owned:
                for results in list(self.maps):
                    results.fetch_left()
                self.batch.close()
                self._session.end()
            _pools.discard(self)


_exiting = False

#: The pools that have not ended.
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()

# A forked child has copies of its parent's, and must leave them alone.
os.register_at_fork(after_in_child=_pools.clear)


def require_interpreter() -> None:
    """Raise what `concurrent.futures` raises where the interpreter ends."""
    if _exiting:
        raise RuntimeError(_INTERPRETER_ENDS)


def _finish_all() -> None:
    """Finish what executors were given, before the interpreter ends."""
    global _exiting
    _exiting = True
    pools = list(_pools)
    try:
        for pool in pools:
            pool.finish()
    except BaseException:  # Ctrl-C, while this waits
        for pool in pools:
            pool.abandon()
            pool.cancel_later(pool._left())
        raise


# Unlike `atexit`, this comes while threads can still do their work: it is how the executors of
# `concurrent.futures` themselves finish theirs. Dask's threads, imported before, end after it.
threading._register_atexit(_finish_all)  # type: ignore[attr-defined]
