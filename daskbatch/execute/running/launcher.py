"""Starts the executions of a job's tasks, on workers or on the driver, stops them, takes them back.

The scheduler's thread uses a `Launcher`; any thread may call `call`. The launcher reports what
happens by events.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Hashable, Iterable, Sequence
from functools import partial
from itertools import takewhile
from typing import Any

from daskbatch import errors
from daskbatch.errors import LifecycleError, WorkerLost
from daskbatch.execute.jobs.rmi_task import RmiTask
from daskbatch.execute.jobs.task import Task
from daskbatch.execute.running.calls import CallOutcome, CallSequence, Ending, EngineCall
from daskbatch.execute.running.driver_future import DriverFuture, when_done
from daskbatch.execute.running.engine import Engine
from daskbatch.execute.running.events import (
    CallOver,
    CallStarted,
    Event,
    ExecuteReturned,
    OutcomeKnown,
)
from daskbatch.execute.running.helper_threads import HelperThreads
from daskbatch.execute.scheduling.execution import Execution
from daskbatch.execute.scheduling.worker_queues import WorkerQueue
from daskbatch.timeouts import Deadline

_logger = logging.getLogger("daskbatch")

#: How long the engine may take to report what became of the executions on a lost worker.
_LOST_WORKER_REPORT_TIMEOUT_SECONDS = 2.0


class Launcher:
    """Holds the executions of a job that are not over.

    One thread uses it: the scheduler's. Only `call` may be called by any thread.

    Parameters
    ----------
    tasks : sequence of Task
        The tasks of the job.
    kinds : sequence
        For each task its kind, if the engine calls the task's method directly; None for a task
        whose own `execute` is called.
    engine : Engine, optional
        Calls methods on workers.
    last_worker : dict
        The launcher records here, for each task, the worker that executes it.
    post : callable
        Is called with each event.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        kinds: Sequence[Hashable],
        engine: Engine | None,
        last_worker: dict[int, Any],
        post: Callable[[Event], None],
    ) -> None:
        self._tasks = tasks
        self._kinds = kinds
        self._engine = engine
        self._last_worker = last_worker
        self._post = post
        self._helpers = HelperThreads("daskbatch-job-helper")
        #: The current execution of each task that has been assigned to a worker.
        self.current: dict[int, Execution] = {}
        #: The executions and calls on workers that are lost, each with the deadline for the
        #: engine's report of it.
        self.orphans: dict[Execution | DriverFuture, Deadline] = {}
        self._calls: set[DriverFuture] = set()
        self._closed = False

    # -- starting -------------------------------------------------------------------------

    def start(self, scheduler: Any, executions: Sequence[Execution]) -> None:
        """Start executions. Those of one `WorkerQueue` are in the order in which they run."""
        remote: list[Execution] = []
        for execution in executions:
            self.current[execution.task] = execution
            if self._kinds[execution.task] is not None:
                remote.append(execution)
            else:
                execution.begun = True
                self._last_worker[execution.task] = execution.worker
                self._helpers.do(partial(self._execute_here, scheduler, execution))
        if remote:
            self._start_remote(remote)

    def _start_remote(self, executions: Sequence[Execution]) -> None:
        assert self._engine is not None
        sequences: dict[WorkerQueue, CallSequence] = {}
        queued: dict[WorkerQueue, list[Execution]] = {}
        for execution in executions:
            task, queue = self._tasks[execution.task], execution.queue
            assert isinstance(task, RmiTask)
            if queue not in sequences:
                before = _records_before(execution)
                address, releases_slot = queue.worker.address, not queue.bulk
                sequences[queue] = CallSequence(address, queue.number, releases_slot, before, [])
                queued[queue] = []
            queued[queue].append(execution)
            post_over = partial(self._post, CallOver(execution))
            sequences[queue].calls.append(
                EngineCall(
                    *(task.method, task.args, task.kwargs),
                    *(str(task.name), execution.kind, post_over),
                )
            )
        records = iter(self._engine.start(sequences.values()))
        for queue, started in queued.items():
            for execution, record in zip(started, records, strict=False):
                execution.record, execution.block = record, record.block
            if queue.head is started[0]:
                self.note_begun(started[0])

    def note_begun(self, execution: Execution) -> None:
        """Mark the task of an execution as executing: the execution is the first of its queue."""
        if execution.begun:
            return
        execution.begun = True
        self._last_worker[execution.task] = execution.worker
        # If the task was cancelled or marked meanwhile, an event reports that.
        with contextlib.suppress(errors.TaskCancelled, LifecycleError):
            self._tasks[execution.task].set_executing(execution.worker)

    def _execute_here(self, scheduler: Any, execution: Execution) -> None:
        """Call the `execute` that a user's class defines; runs in a helper thread."""
        task = self._tasks[execution.task]
        try:
            execution.future = task.execute(scheduler, execution.worker)
        except BaseException as error:
            self._post(ExecuteReturned(execution))
            self._post_outcome(execution, None, error)
            return
        self._post(ExecuteReturned(execution))
        if execution.future is None:
            return
        if self._closed or self.current.get(execution.task) is not execution:
            # The execution was revoked before there was a future to cancel.
            self._cancel_future(execution)
        try:
            when_done(execution.future, partial(self._post_outcome, execution))
        except BaseException as error:  # the future may be any object
            self._post_outcome(execution, None, error)

    def _post_outcome(self, execution: Execution, value: Any, error: BaseException | None) -> None:
        ending = Ending.RETURNED if error is None else Ending.RAISED
        deaths = 0
        if isinstance(error, WorkerLost):
            ending, deaths = Ending.LOST, getattr(execution.future, "deaths", 1)
        self._post(OutcomeKnown(execution, CallOutcome(ending, value, error, 0.0, deaths)))

    def call(self, described: CallSequence) -> DriverFuture:
        """Call a method on a worker for a task that defines `execute`; any thread may call this."""
        if self._engine is None:
            raise LifecycleError(
                "only a task that has a context can call a method on a worker: give it as ctx"
            )
        future = DriverFuture.start(self._engine, described, self._calls, self._helpers)
        self._post(CallStarted(future))
        if self._closed:
            # The job has ended meanwhile: `cancel_all` may not have seen the future.
            future.cancel()
        return future

    # -- outcomes -------------------------------------------------------------------------

    def outcome(self, execution: Execution) -> CallOutcome | None:
        """Return the outcome of a call that is over; None if an event will report it later."""
        engine = self._engine
        assert engine is not None
        if not engine.is_far(execution.record):
            return engine.outcome(execution.record)
        self.note_begun(execution)
        self._helpers.do(partial(self._fetch, execution))
        return None

    def _fetch(self, execution: Execution) -> None:
        """Fetch a large value from its worker; runs in a helper thread."""
        assert self._engine is not None
        outcome = self._engine.fetch(execution.record, lambda: self._closed)
        self._post(OutcomeKnown(execution, outcome))

    # -- taking back ----------------------------------------------------------------------

    def take_back(self, executions: Iterable[Execution | DriverFuture]) -> None:
        """Take executions back that have not begun; the engine reports those as cancelled."""
        records = []
        for execution in executions:
            execution.taken_back = True
            if execution.record is not None:
                records.append(execution.record)
        if records and self._engine is not None:
            self._helpers.do(partial(self._engine.cancel, records, False))

    def worker_gone(self, worker: Any) -> None:
        """Watch all executions and calls on a worker that is lost; see `look_after_orphans`."""
        for execution in self.current.values():
            if execution.worker == worker and execution.record is not None:
                self.adopt(execution)
        for call in list(self._calls):
            if call.worker == getattr(worker, "address", None):
                self.adopt(call)

    def adopt(self, execution: Execution | DriverFuture) -> None:
        """Watch one execution or call on a worker that is lost; see `look_after_orphans`."""
        self.orphans[execution] = Deadline(_LOST_WORKER_REPORT_TIMEOUT_SECONDS)

    def look_after_orphans(self) -> None:
        """Take back what the engine has placed on another worker, or has not reported in time."""
        for execution, deadline in list(self.orphans.items()):
            record = execution.record
            if self._engine is None or record is None:
                continue
            moved = self._engine.has_moved(record, execution.block)
            if record.over:
                del self.orphans[execution]
            elif deadline.passed or (moved and not execution.taken_back):
                if not execution.taken_back:
                    execution.died = execution.begun and not moved
                # If the engine has not answered by then, it is asked again.
                self.orphans[execution] = Deadline(_LOST_WORKER_REPORT_TIMEOUT_SECONDS)
                self.take_back([execution])

    # -- stopping -------------------------------------------------------------------------

    def revoke(self, position: int) -> Execution | None:
        """Stop the execution of a task, if it has one, and ignore its outcome; returns it."""
        execution = self.current.pop(position, None)
        if execution is not None:
            self._cancel_future(execution)
            if execution.record is not None and self._engine is not None:
                self._helpers.do(partial(self._engine.cancel, [execution.record]))
        return execution

    def cancel_all(self) -> list[Any]:
        """Cancel all executions and calls; returns the records of those that the engine runs."""
        self._closed = True
        records = []
        for execution in self.current.values():
            self._cancel_future(execution)
            if execution.record is not None:
                records.append(execution.record)
        for call in list(self._calls):
            call.cancel()
        if records and self._engine is not None:
            self._engine.cancel(records)
        return records

    def _cancel_future(self, execution: Execution) -> None:
        """Cancel the future that a user's `execute` has returned, in a helper thread.

        It may be any object: its `cancel` may be missing, block or raise.
        """
        cancel = getattr(execution.future, "cancel", None)
        if cancel is not None:
            self._helpers.do(partial(_call_quietly, cancel))

    def close(self) -> None:
        """Let the helper threads end when their work is done."""
        self._helpers.close()


def _call_quietly(cancel: Callable[[], object]) -> None:
    try:
        cancel()
    except Exception:
        _logger.warning("a future of a task cannot be cancelled", exc_info=True)


def _records_before(execution: Execution) -> list[Any]:
    """Return the records of the first and the last execution before one in its queue."""
    before: list[Any] = list(takewhile(lambda each: each is not execution, execution.queue.items))
    return [each.record for each in dict.fromkeys((*before[:1], *before[-1:])) if each.record]
