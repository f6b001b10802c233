"""Futures that complete tasks on the driver's side.

Any thread may use these futures. The thread that completes a future runs its callbacks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from daskbatch import errors
from daskbatch.errors import SpecError
from daskbatch.execute.running.calls import CallSequence, Ending
from daskbatch.execute.running.engine import Engine
from daskbatch.execute.running.helper_threads import HelperThreads


def when_done(future: Any, on_done: Callable[[Any, BaseException | None], None]) -> None:
    """Call a function with the value or the exception of a future when the future is done.

    Parameters
    ----------
    future : future
        A future of `concurrent.futures` or of Dask, or any object with the same methods; or an
        object whose method ``as_future`` returns one.
    on_done : callable
        The function. It is called once, in any thread, with the value and the exception; one of
        them is None.
    """
    offered = getattr(future, "as_future", None)
    if offered is not None:
        future = offered()
    if not callable(getattr(future, "add_done_callback", None)):
        error = SpecError(f"execute() must return a future or None, not {future!r}")
        on_done(None, error)
        return
    future.add_done_callback(partial(_report, on_done))


def _report(on_done: Callable[[Any, BaseException | None], None], future: Any) -> None:
    try:
        if future.cancelled():
            on_done(None, errors.TaskCancelled("the future of the task was cancelled"))
            return
        if isinstance(future, Future) and (error := future.exception()) is not None:
            # `result` takes an exception that is false, like an empty container, for none.
            on_done(None, error)
            return
        value = future.result()
    except BaseException as error:
        on_done(None, error)
    else:
        on_done(value, None)


class DriverFuture(Future[Any]):
    """The future of a method that `Scheduler.call` runs on a worker.

    Any thread may use it.
    """

    _engine: Engine
    _address: str
    _helpers: HelperThreads
    #: The engine's record of the call, and the block that the call was first part of; see
    #: `Execution`.
    record: Any = None
    block: Any = None
    begun = True
    died = False
    taken_back = False
    #: How many workers have died while they ran the method.
    deaths = 0

    @property
    def worker(self) -> str:
        """The address of the worker that the method was sent to."""
        return self._address

    @classmethod
    def start(
        cls, engine: Engine, call: CallSequence, pending: set[DriverFuture], helpers: HelperThreads
    ) -> DriverFuture:
        """Call a method on a worker and return its future.

        Parameters
        ----------
        engine : Engine
            Runs the call.
        call : CallSequence
            Contains the one method to call.
        pending : set
            Contains the future until the future is done.
        helpers : HelperThreads
            Run the steps that may block, such as fetching a large value.
        """
        future = cls()
        future._engine, future._helpers = engine, helpers
        future._address = call.worker
        pending.add(future)
        started = threading.Event()

        def settle() -> None:
            started.wait()
            future._settle(pending)

        (described,) = call.calls
        described = described._replace(on_over=partial(helpers.do, settle))
        try:
            (record,) = engine.start([call._replace(calls=[described])])
            # Another thread that finds the record also needs the block.
            future.block, future.record = record.block, record
        except BaseException:
            pending.discard(future)
            raise
        finally:
            started.set()
        return future

    def cancel(self) -> bool:
        """Stop the method if it is not over; return whether the future is cancelled."""
        if self.cancelled():
            return True
        cancelled = super().cancel()
        if cancelled:
            self.set_running_or_notify_cancel()
            self._helpers.do(partial(self._engine.cancel, [self.record]))
        return cancelled

    def _settle(self, pending: set[DriverFuture]) -> None:
        pending.discard(self)
        record = self.record
        outcome = self._engine.fetch(record, self.cancelled)
        self.deaths = outcome.deaths or int(self.died)
        if self.cancelled() or not self.set_running_or_notify_cancel():
            return
        if outcome.ending == Ending.RETURNED:
            self.set_result(outcome.value)
        elif not isinstance(outcome.error, errors.WorkerLost) and (
            outcome.ending in (Ending.LOST, Ending.CANCELLED)
        ):
            self.set_exception(errors.WorkerLost(f"{record.label} was lost with its worker"))
        else:
            self.set_exception(outcome.error)
