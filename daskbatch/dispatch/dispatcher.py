"""Follows every started task of a client from its placing in a block to its outcome.

Does not know Dask: a `Backend` submits, revokes and calls back. The dispatcher owns the lock
under which the state of started tasks changes.

A started task that is not over is always in one block (`TaskRecord.block`), and only the reports of
that block count. A *deferred* task is one that a block returns without running it. The dispatcher
places it again, in another block, now that more is known of how long such tasks take. It ignores
what the old block still reports of the task. The tasks after it come back, too: a block whose
input was deferred defers them.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic, time
from typing import Any

from daskbatch.dispatch.backend import Backend, InputsTooLarge
from daskbatch.dispatch.cancelled_blocks import CancelledBlocks, as_failure
from daskbatch.dispatch.demand import TaskDemand
from daskbatch.dispatch.edges import wait_for_producers
from daskbatch.dispatch.failure_log import TaskWarning
from daskbatch.dispatch.lower import Setting
from daskbatch.dispatch.open_blocks.open_block import MemberLink
from daskbatch.dispatch.placer import pickle_functions
from daskbatch.dispatch.program_logger import PROGRAM_LOGGER, log_loss, log_reruns, log_retries
from daskbatch.dispatch.revocation import Revocation
from daskbatch.dispatch.sigint import uninterrupted
from daskbatch.dispatch.task_record import BlockKey, Group, Phase, SubmittedBlock, TaskRecord
from daskbatch.dispatch.task_table import TaskTable
from daskbatch.errors import LifecycleError, TaskCancelled
from daskbatch.serialization import stored_value
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.block import (
    ClosedReport,
    ExpiredReport,
    MissingReport,
    OpenedReport,
    OutcomeReport,
    OutputReport,
    Report,
    SilentPeerReport,
)
from daskbatch.worker.execution.journal import JournaledBlock
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.open_blocks.messages import decode_report

_logger = logging.getLogger("daskbatch")

#: How long the scheduler may take to report what a worker that died had done.
_DEATH_REPORT_TIMEOUT_SECONDS = 30.0

#: How often the client looks whether Dask futures that tasks wait for were cancelled.
_FUTURES_INTERVAL_SECONDS = 1.0

#: While open blocks report, waiting threads are notified at this interval.
NOTIFY_INTERVAL_SECONDS = 0.003


class Dispatcher:
    """The started tasks of one client. Any thread may use it.

    Parameters
    ----------
    backend : Backend
        Runs the blocks.
    setting : Setting
        The settings of all blocks.
    """

    def __init__(self, backend: Backend, setting: Setting) -> None:
        self._backend = backend
        self.table = TaskTable(backend, setting)
        self.outcomes = self.table.outcomes
        self._changed = self.outcomes.changed
        self._revocation = Revocation(self.table, backend)
        self._open = self.table.open_blocks
        self._open.on_empty = self._forget
        self._cancelled = CancelledBlocks(self.table, backend, self._revocation, self)
        self.table.future_sources.abandon = self._cancel_later
        #: Whether all tasks were given up, and what for.
        self._gave_up = False
        self._given_up_for: BaseException | None = None
        #: Whether `notify_waiting` is to be called soon; and when threads were last notified.
        self.owes_notification = False
        self._notified_at = 0.0

    # -- the user's threads ---------------------------------------------------------------

    def submit(self, records: Sequence[TaskRecord], name: str, group: Group | None = None) -> None:
        """Start tasks.

        Parameters
        ----------
        records : sequence of TaskRecord
            Each after those that it waits for.
        name : str
            Their name on Dask's dashboard.
        group : Group, optional
            The compiled task that they are the members of.

        Raises
        ------
        LifecycleError
            Another thread has just started them.
        ServiceLost
            The cluster is gone.
        """
        self._backend.require_alive()
        pickle_functions(records)
        with uninterrupted(), self._changed:
            new = [record for record in records if record.phase < Phase.WAITING]
            # A record that was cancelled, or has failed, before the start is left out. One that
            # waits, runs or is done was started before.
            twice = len(new) < len(records) and any(
                Phase.WAITING <= record.phase <= Phase.DONE for record in records
            )
            if twice or (group is not None and group.started):
                raise LifecycleError(
                    f"{group.name if group else records[0].label} has been started"
                )
            if group is not None:
                group.started = True
                group.started_at = time()
                if group.is_program:
                    self._program_started(group)
            sources = self._start_sources(new)
            if group is not None:
                # Only for earlier producers: the group's own order is known already.
                wait_for_producers(new)
            self.table.start(new)
            if group is None:
                wait_for_producers(new)
            if self._gave_up:  # in another thread, since the first line
                self._settle_given_up([*sources, *new])
            else:
                with self._feeding():
                    self.table.place([*sources, *new] if sources else new, name, again=False)
            self._changed.notify_all()

    def _start_sources(self, records: Sequence[TaskRecord]) -> list[TaskRecord]:
        """Start the tasks that fetch the results of Dask futures; return those to be placed."""
        future_sources = self.table.future_sources
        if not future_sources.in_use:
            return []
        sources = future_sources.add(records)
        placed = []
        for source in sources:
            future = source.options.future
            if future is not None and future.is_cancelled:
                error = _as_cancelled(source)
                self.table.settle(source, Phase.FAILED, pack_error(error, source.label))
            else:
                placed.append(source)
        self.table.start(placed)
        if placed and future_sources.wait_for(placed):
            self._backend.call_later(_FUTURES_INTERVAL_SECONDS, self._check_sources)
        return placed

    def _check_sources(self) -> None:
        """Have the sources fail whose futures the program has cancelled.

        The scheduler notices that too, but not if it has never seen the future's key.
        """
        with self._changed:
            cancelled = self.table.future_sources.take_cancelled()
            goes_on = self.table.future_sources.has_waiting
        for source in cancelled:
            self._revocation.withdraw({source: _as_cancelled(source)})
        if goes_on:
            self._backend.call_later(_FUTURES_INTERVAL_SECONDS, self._check_sources)

    def _cancel_later(self, source: TaskRecord) -> None:
        """Cancel a task that no task needs any longer; called with the lock held."""

        def cancel() -> None:
            self._revocation.withdraw({source: None})

        self._backend.call_later(0.0, cancel)

    def _program_started(self, group: Group) -> None:
        """Have the logging module receive what happens to a program that is being started."""
        if _logger.isEnabledFor(logging.INFO):
            observers = self.table.observers
            observers.add(PROGRAM_LOGGER, tasks=_logger.isEnabledFor(logging.DEBUG))
            PROGRAM_LOGGER.program_started(group)

    def call_later(self, function: Callable[[], None], seconds: float = 0.0) -> None:
        """Call a function after some seconds, in a thread that holds no lock."""
        self._backend.call_later(seconds, function)

    def settle_unstarted(self, records: Iterable[TaskRecord], error: Exception | None) -> None:
        """Settle tasks that were not started: as failed with an error, or as cancelled."""
        with self._changed:
            for record in records:
                if record.phase < Phase.WAITING:
                    if error is None:
                        self.table.settle(record, Phase.CANCELLED)
                    else:
                        failure = pack_error(error, record.label)
                        self.table.settle(record, Phase.FAILED, failure)
            self._changed.notify_all()

    def unfinished(self, group: Group | None = None) -> list[TaskRecord]:
        """Return the started tasks, of a group or all, that are not over; in program order."""
        with self._changed:
            members = [block.unfinished_members() for block in self.table.live.values()]
        records = [
            record for some in members for record in some if group is None or record.group is group
        ]
        return sorted(records, key=lambda record: record.rank)

    def demand(self, unknown: float) -> TaskDemand:
        """Return how many slots the unfinished tasks could use; see `measure_demand`."""
        with self._changed:
            members = (
                record
                for block in list(self.table.live.values())
                for record in block.unfinished_members()
            )
            return self.table.measure_demand(members, unknown)

    def give_up(self, error: BaseException | None = None) -> None:
        """Settle all unfinished tasks: as failed with an error, or as cancelled."""
        with self._changed:
            self._gave_up, self._given_up_for = True, error
            for block in self.table.live.values():
                for record in block.unfinished_members():
                    if error is None:
                        self.table.settle_member(block, record, Status.CANCELLED)
                    else:
                        failure = pack_error(as_failure(record, error), record.label)
                        self.table.settle_member(block, record, Status.FAILED, failure)
                self._backend.release(block)
            self.table.live.clear()
            self._open.clear()
            self._changed.notify_all()

    def _settle_given_up(self, records: Iterable[TaskRecord]) -> None:
        """Settle tasks that were to be started when all were given up, like the others."""
        error = self._given_up_for
        for record in records:
            if error is None:
                self.table.settle(record, Phase.CANCELLED)
            else:
                failure = pack_error(as_failure(record, error), record.label)
                self.table.settle(record, Phase.FAILED, failure)

    def fetch(self, record: TaskRecord, timeout: float | None = None) -> None:
        """Store in its record what a finished task left on its worker.

        If that was lost with the worker, the task is started again, if it may run again;
        otherwise the value is lost for good, and the record has no block. See
        `SubmittedBlock.fetch` for the exceptions.
        """
        block = record.block
        if block is None:
            return
        self.outcomes.require_own_process()
        if self._adopt(record):
            return
        if not block.lost:
            result = self._cancelled.fetch(block, record, timeout)
            with self._changed:
                if result is not None and not result.lost:
                    block.distribute(result)
                    return
                self.table.mark_lost(block)
        with self._changed:
            if record.over and record.block is block:
                self.table.place(self.table.revive(record), block.name)
            self._changed.notify_all()

    def _adopt(self, record: TaskRecord) -> bool:
        """Hold the value of a task where its worker has stored it; False if it is elsewhere."""
        reference, block = record.reference, record.block
        if reference is None or record.output is None or block is None:
            return False
        if block.future is None or block.future.status == "cancelled":
            return False  # the Batch has ended
        value = stored_value.adopt(reference)
        if value.segment is None:
            return False
        with self._changed:
            if record.reference is reference:
                record.value = value
        return True

    # -- revocation -----------------------------------------------------------------------

    def cancel(self, records: Sequence[TaskRecord], begun: bool = True) -> list[TaskRecord]:
        """Cancel what is not over; see `Revocation.cancel`."""
        return self._revocation.cancel(records, begun)

    def count_stopping(self, group: Group) -> int:
        """Return the number of members of a group that run and are being stopped."""
        return self._revocation.count_stopping(group)

    def refuse(self, reasons: Mapping[TaskRecord, str]) -> None:
        """Settle tasks that no worker can run as failed, for the given reasons."""
        self._revocation.refuse(reasons)

    def place_anew(self, records: Iterable[TaskRecord]) -> None:
        """Place the tasks that have not begun in new blocks: they wait for fewer tasks now."""
        self._revocation.place_anew(records)

    # -- calls of the backend: implements `backend.Listener` -------------------------------

    def report(self, data: bytes) -> None:
        """Apply a report of a worker: a pickled `Report`."""
        report: Report = pickle.loads(data)
        with self._changed, self._feeding():
            if self._apply(report):
                self._changed.notify_all()

    def report_all(self, frames: Iterable[bytes]) -> None:
        """Apply the reports of an open block; waiting threads may be notified a moment later.

        A fine-grained graph reports thousands of times in a second, and most threads wait for the
        last of its tasks. So they are notified when no task is unfinished, or when they have not
        been for `NOTIFY_INTERVAL_SECONDS`. Else the caller calls `notify_waiting` after that time;
        see `owes_notification`.
        """
        reports = list(map(decode_report, frames))
        with self._changed:
            self._open.flushes_soon = True
            try:
                for report in reports:
                    self.owes_notification |= self._apply(report)
            finally:
                self._open.flush()
            if self.owes_notification:
                now = monotonic()
                is_due = now - self._notified_at > NOTIFY_INTERVAL_SECONDS
                if is_due or not self.outcomes.unfinished:
                    self._notified_at = now
                    self.owes_notification = False
                    self._changed.notify_all()

    def notify_waiting(self) -> None:
        """Notify the threads that wait for tasks."""
        with self._changed:
            self.owes_notification = False
            self._notified_at = monotonic()
            self._changed.notify_all()

    def _apply(self, report: Report) -> bool:
        """Apply a report; return whether a thread may have waited for that."""
        block = self.table.live.get(report.block)
        if block is None:
            return False
        requeued: list[TaskRecord] = []
        if isinstance(report, OutcomeReport):
            requeued = self.table.apply_report(block, report)
            if report.measures is not None and report.measures.details:
                log_retries(block, report)
            if block.open:
                self._open.settled(block, report.start, report.start + len(report.statuses))
            if not requeued:
                return True
        elif isinstance(report, MissingReport):
            record = block.find_record(report.member)
            if record is not None:
                self.table.failures.warn(record, TaskWarning(report.kind, report.paths))
            return False
        elif isinstance(report, OutputReport):
            record = block.find_record(report.member)
            if record is not None:
                self.table.observers.output_arrived(record, report)
            return False
        elif isinstance(report, OpenedReport):
            self._open.opened(report)
            return False
        elif isinstance(report, SilentPeerReport):
            self._open.peer_was_silent(report)
            return False
        elif isinstance(report, ClosedReport):
            requeued = self._open.closed(block, report)
        else:
            for record in block.unfinished_members([report.running]):
                self.table.begin(record, report.begin)
        if isinstance(report, ExpiredReport):
            first = report.running + 1
            behind = [m for m, s in enumerate(report.rest, first) if s == Status.DEFERRED]
            for record in block.unfinished_members(behind):
                self.table.requeue(block, record)
                requeued.append(record)
        if requeued:
            self._place_again(block, requeued)
        if isinstance(report, ExpiredReport):
            self._revocation.unstick(block)
        return True

    @contextmanager
    def _feeding(self) -> Iterator[None]:
        """Send at the end, in the same step, what has become ready for open blocks."""
        self._open.flushes_soon = True
        try:
            yield
        finally:
            self._open.flush()

    def _place_again(self, block: SubmittedBlock, requeued: Sequence[TaskRecord]) -> None:
        """Place tasks again that a block has returned."""
        if block.open:
            self._open.hold_again(requeued, block.name)
        else:
            self.table.place(requeued, block.name)

    def link_opened(self, number: int, link: MemberLink) -> None:
        """Use a direct connection with an open block."""
        with self._changed, self._feeding():
            self._open.link_opened(number, link)

    def link_lost(self, number: int, was_cut: bool) -> None:
        """Record that the connection with an open block is lost; see `OpenBlocks.link_lost`."""
        with self._changed, self._feeding():
            self._open.link_lost(number, was_cut)
            self._changed.notify_all()

    def key_finished(
        self,
        block: SubmittedBlock,
        result: BlockResult | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Record that a block's key is finished, or has failed as a whole.

        Parameters
        ----------
        block : SubmittedBlock
            The block.
        result : BlockResult, optional
            Its result, if it was needed (`SubmittedBlock.unfinished`) and could be fetched.
        error : BaseException, optional
            Why there is no result: `ServiceLost`, `WorkerLost`, or another error.
        """
        with self._changed, self._feeding():
            requeued: list[TaskRecord] = []
            if error is not None:
                requeued = self._key_failed(block, error)
            elif result is not None and result.lost:
                # Its worker has died, and the scheduler has not reported yet what had run.
                no_report = partial(self._death_not_reported, block)
                self._backend.call_later(_DEATH_REPORT_TIMEOUT_SECONDS, no_report)
                return
            elif result is not None:
                report = result.as_report(block.number)
                requeued = self.table.apply_report(block, report, timed=False)
            if block.open:
                # It has closed before it received these.
                requeued += self._open.key_finished(block)
                requeued.sort(key=lambda record: record.rank)
            self._forget(block)
            self._place_again(block, requeued)
            self._changed.notify_all()

    def _death_not_reported(self, block: SubmittedBlock) -> None:
        """Continue without a report of which members of a block had run: all may have."""
        if self.table.live.get(block.number) is block:
            self.worker_died([block.key], {}, None)

    def keys_refused(self, blocks: Sequence[SubmittedBlock], lost: Sequence[BlockKey]) -> None:
        """Place the tasks of blocks again for which the scheduler has created no keys.

        Parameters
        ----------
        blocks : sequence of SubmittedBlock
            The blocks. Nothing of them has run.
        lost : sequence of BlockKey
            The finished blocks that they need, and that no worker has any longer.
        """
        self.values_lost(lost)
        with self._changed, self._feeding():
            live = [block for block in blocks if block.number in self.table.live]
            over, requeued = self._cancelled.take_back(live)
            for block in over:
                self._forget(block)
            if requeued:
                self.table.place(requeued, over[0].name)
            self._changed.notify_all()

    def key_cancelled(self, block: SubmittedBlock, why: str) -> None:
        """Stop the members of a block whose key a client of the cluster has cancelled.

        Parameters
        ----------
        block : SubmittedBlock
            The block.
        why : str
            The reason.
        """
        self._cancelled.stop(block, why)

    def slots_changed(self) -> None:
        """Have tasks that the client holds use the slots that there are now."""
        with self._changed:
            if self._open.in_use:
                self.table.flush_later()

    def values_lost(self, keys: Sequence[BlockKey]) -> None:
        """Record that the results of finished blocks were lost with a worker."""
        with self._changed:
            for key in keys:
                block = self.table.find_block(key)
                if block is not None:
                    self.table.mark_lost(block)

    def worker_died(
        self,
        keys: Sequence[BlockKey],
        details: Mapping[str, Any],
        traces: Sequence[JournaledBlock] | None,
        planned: bool = False,
    ) -> None:
        """Record that a worker has died, and with it all that it had not reported.

        Parameters
        ----------
        keys : sequence of BlockKey
            The blocks that it may have begun.
        details : mapping
            What is known of its death; see `WorkerLost`.
        traces : sequence of JournaledBlock, optional
            What it had done; None if that is unknown.
        planned : bool
            Whether it has left in good order: then this counts as no death.
        """
        with self._changed, self._feeding():
            requeued: list[TaskRecord] = []
            held: list[TaskRecord] = []
            log_loss(details, len(keys))
            done = {trace.block: trace for trace in traces or ()}
            for key in keys:
                block = self.table.find_block(key)
                if block is None:
                    continue
                self.table.mark_lost(block)
                if block.number in self.table.live:
                    returned = held if block.open else requeued
                    trace = done.get(block.number)
                    if trace is not None and trace.entries:
                        report = trace.as_report(str(details.get("worker") or ""))
                        returned += self.table.apply_report(block, report, timed=False)
                    running = None if traces is None else -1 if trace is None else trace.running
                    returned += self.table.recover(block, running, details, planned)
                    self._forget(block)
            for some in (held, requeued):
                some.sort(key=lambda record: record.rank)
            log_reruns([*held, *requeued])
            self._open.hold_again(held, "batch")
            self.table.place(requeued, "batch")
            self._changed.notify_all()
        stored_value.erase_orphans()

    def _forget(self, block: SubmittedBlock) -> None:
        self._open.forget(block)
        self.table.forget(block)
        self._revocation.forget(block)

    def _key_failed(self, block: SubmittedBlock, error: BaseException) -> list[TaskRecord]:
        """Settle or requeue the members of a block whose key failed; returns the requeued ones."""
        # Dask does not run a key that depends on a failed key. But the tasks of this block may
        # still be allowed to run: then they are placed again, without the failed key.
        other_failed = any(other.failed for other in block.waits)
        block.failed = True
        requeued: list[TaskRecord] = []
        if isinstance(error, InputsTooLarge) and self._cancelled.place_in_halves(block):
            return requeued
        for record in block.unfinished_members():
            if other_failed:
                self.table.requeue(block, record)
                requeued.append(record)
            else:
                failure = as_failure(record, error)
                failure.__cause__ = error
                data = pack_error(failure, record.label)
                self.table.settle_member(block, record, Status.FAILED, data)
        return requeued


def _as_cancelled(source: TaskRecord) -> TaskCancelled:
    """Return the exception of a source whose future was cancelled."""
    return TaskCancelled(f"the {source.name} was cancelled")
