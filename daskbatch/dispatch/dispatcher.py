"""Follows every started task of a client from its placing in a block to its outcome.

Does not know Dask: a `Backend` submits, revokes and calls back. It is the one place where
the state of tasks changes.

A started task that is not over is always in one block (`TaskRecord.block`), and only what is
told of that block counts. So a task that comes back *deferred* is simply placed again, now
that more is known of how long its like take, and whatever the old block still says of it
is ignored. Tasks behind it come back by themselves: a block whose input was deferred
defers them.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from daskbatch.dispatch.backend import Key
from daskbatch.dispatch.edges import wait_for_producers
from daskbatch.dispatch.placer import pickle_functions
from daskbatch.dispatch.revocation import Revocation
from daskbatch.dispatch.sigint import uninterrupted
from daskbatch.dispatch.task_record import Group, Phase, SubmittedBlock, TaskRecord
from daskbatch.errors import (
    BatchError,
    LifecycleError,
    ServiceLost,
    WorkerLost,
)
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.block import Report
from daskbatch.worker.execution.journal import Trace
from daskbatch.worker.execution.outcome import BlockResult, Status

#: How long the scheduler may take to tell what a worker that died had done. Seconds.
_TOLD_SECONDS = 30.0


class Dispatcher(Revocation):
    """The started tasks of one client.

    Parameters
    ----------
    backend : Backend
        Where blocks run.
    setting : Setting
        What is the same for all blocks.
    """

    # -- the user's threads ---------------------------------------------------------------

    def submit(self, records: Sequence[TaskRecord], name: str, group: Group | None = None) -> None:
        """Start tasks.

        Parameters
        ----------
        records : sequence of TaskRecord
            Each behind those that it waits for.
        name : str
            What the dashboard calls them.
        group : Group, optional
            What they are the members of.

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
            # What is over already was cancelled before it began; else it was started twice.
            twice = len(new) < len(records) and any(
                Phase.WAITING <= record.phase <= Phase.DONE for record in records
            )
            if twice or (group is not None and group.started):
                raise LifecycleError(
                    f"{group.name if group else records[0].label} has been started"
                )
            if group is not None:
                group.started = True
            if group is not None:
                wait_for_producers(new)  # of earlier ones; its own order is known
            for record in new:
                record.phase = Phase.WAITING
                record.rank = next(self._ranks)
            if group is None:
                wait_for_producers(new)
            self.outcomes.left += len(new)
            self._writers.add(new)
            self._place(new, name, again=False)
            self._changed.notify_all()

    def later(self, function: Callable[[], None], seconds: float = 0.0) -> None:
        """Call a function soon, in a thread that holds no lock of anybody's."""
        self._backend.later(seconds, function)

    def settle_unstarted(self, records: Iterable[TaskRecord], error: Exception | None) -> None:
        """Say what became of tasks that could not be started: cancelled, if of no error."""
        with self._changed:
            for record in records:
                if record.phase < Phase.WAITING:
                    self.outcomes.left += 1
                    if error is None:
                        self.outcomes.settle(record, Phase.CANCELLED)
                    else:
                        self.outcomes.settle(record, Phase.FAILED, pack_error(error, record.label))
            self._changed.notify_all()

    def unfinished(self, group: Group | None = None) -> list[TaskRecord]:
        """Give the started tasks, of a group or of all, that are not over; in their order."""
        with self._changed:
            placed = [p.members_left() for p in self._live.values()]
        records = [c for some in placed for c in some if group is None or c.group is group]
        return sorted(records, key=lambda record: record.rank)

    def give_up(self, error: BaseException | None = None) -> None:
        """Count all that is not over as cancelled, or as failed of an error."""
        with self._changed:
            for block in self._live.values():
                for record in block.members_left():
                    if error is None:
                        self._tell(block, record, Status.CANCELLED)
                    else:
                        failure = pack_error(_as_failure(record, error), record.label)
                        self._tell(block, record, Status.FAILED, failure)
                self._backend.release(block)
            self._live.clear()
            self._changed.notify_all()

    def fetch(self, record: TaskRecord, timeout: float | None = None) -> None:
        """Bring here what a finished task left on its worker; see `SubmittedBlock.fetch`.

        If it was lost with the worker, the task is started again, if it may be; else there is
        nothing to be had any more, and the record has no placement.
        """
        block = record.block
        if block is None:
            return
        self.outcomes.require_here()
        if not block.lost:
            result = block.fetch(record.label, timeout)
            with self._changed:
                if not result.lost:
                    block.hand_out(result)
                    return
                block.lost = self._any_lost = True
        with self._changed:
            if record.over and record.block is block:
                self._place(self._revive(record), block.name)
            self._changed.notify_all()

    # -- what the backend tells -----------------------------------------------------------

    def report(self, data: bytes) -> None:
        """Take in a report from a worker."""
        report: Report = pickle.loads(data)
        with self._changed:
            block = self._live.get(report.block)
            if block is None:
                return
            deferred = self._apply_report(block, report)
            for record in block.members_left([report.running]):
                record.phase = Phase.RUNNING
            first = report.running + 1
            behind = [m for m, s in enumerate(report.rest, first) if s == Status.DEFERRED]
            for record in block.members_left(behind):
                self._give_back(block, record)
                deferred.append(record)
            self._place(deferred, block.name)
            if report.expired:
                self._unstick(block)
            self._changed.notify_all()

    def key_over(
        self,
        block: SubmittedBlock,
        result: BlockResult | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Take in that a block's key is finished, or has failed as a whole.

        Parameters
        ----------
        placement : SubmittedBlock
            The block.
        result : BlockResult, optional
            Its result, if it was needed (`SubmittedBlock.left`) and could be had.
        error : BaseException, optional
            Why there is no result: `ServiceLost`, `WorkerLost`, or what else.
        """
        with self._changed:
            deferred: list[TaskRecord] = []
            if error is not None:
                deferred = self._key_failed(block, error)
            elif result is not None and result.lost:
                # Its worker has died, and it is yet to be told what had run.
                told = partial(self._was_not_told, block)
                self._backend.later(_TOLD_SECONDS, told)
                return
            elif result is not None:
                report = result.as_report(block.number)
                deferred = self._apply_report(block, report, timed=False)
            self._forget(block)
            self._place(deferred, block.name)
            self._changed.notify_all()

    def _was_not_told(self, block: SubmittedBlock) -> None:
        """Go on without having been told what had run of a block: so it all may have."""
        if self._live.get(block.number) is block:
            self.worker_died([block.key], {}, None)

    def values_gone(self, keys: Sequence[Key]) -> None:
        """Take in that what finished blocks returned was lost with a worker."""
        with self._changed:
            for key in keys:
                block = self._placed.get(key)
                if block is not None:
                    block.lost = self._any_lost = True

    def worker_died(
        self, keys: Sequence[Key], why: Mapping[str, Any], traces: Sequence[Trace] | None
    ) -> None:
        """Take in that a worker has died, and with it what it had not reported.

        Parameters
        ----------
        keys : sequence of Key
            The blocks that it may have begun.
        why : mapping
            What is known of its death; see `WorkerLost`.
        traces : sequence of Trace, optional
            What it had done; None if nobody knows.
        """
        with self._changed:
            deferred: list[TaskRecord] = []
            done = {trace.block: trace for trace in traces or ()}
            for key in keys:
                block = self._placed.get(key)
                if block is None:
                    continue
                block.lost = self._any_lost = True
                if block.number in self._live:
                    trace = done.get(block.number)
                    if trace is not None and trace.entries:
                        deferred += self._apply_report(block, trace.as_report(), timed=False)
                    running = None if traces is None else -1 if trace is None else trace.running
                    deferred += self._recover(block, running, why)
                    self._forget(block)
            deferred.sort(key=lambda record: record.rank)
            self._place(deferred, "batch")
            self._changed.notify_all()

    def _key_failed(self, block: SubmittedBlock, error: BaseException) -> list[TaskRecord]:
        # Dask does not run what depends on a key that failed, though it may well be allowed
        # to run: it is placed again, without that key.
        innocent = any(other.failed for other in block.waits)
        block.failed = True
        deferred = []
        for record in block.members_left():
            if innocent:
                self._give_back(block, record)
                deferred.append(record)
            else:
                failure = _as_failure(record, error)
                failure.__cause__ = error
                self._tell(block, record, Status.FAILED, pack_error(failure, record.label))
        return deferred


def _as_failure(record: TaskRecord, error: BaseException) -> BatchError:
    for kind, what in ((ServiceLost, "was lost with its Batch"), (WorkerLost, "was lost")):
        if isinstance(error, kind):
            return kind(f"task {record.label} {what}: {error}")
    return BatchError(f"task {record.label} could not be run: {error}")
