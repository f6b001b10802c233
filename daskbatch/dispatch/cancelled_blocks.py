"""What becomes of the tasks of a block whose Dask key was refused or cancelled.

Does not know Dask. The key was not cancelled by this client, and the Batch goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from functools import partial
from weakref import WeakKeyDictionary

from daskbatch.dispatch.backend import Backend, Listener
from daskbatch.dispatch.revocation import Revocation
from daskbatch.dispatch.task_record import SubmittedBlock, TaskRecord, find_root_failure
from daskbatch.dispatch.task_table import TaskTable
from daskbatch.errors import (
    BatchError,
    LifecycleError,
    ServiceLost,
    TaskCancelled,
    WorkerLost,
)
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.outcome import BlockResult, Status

#: How long the members of a cancelled key that run may take to stop.
_STOP_TIMEOUT_SECONDS = 30.0

#: How often a refused block looks whether what it waits for has stopped.
_RETRY_INTERVAL_SECONDS = 0.1

#: How often the scheduler may refuse a task before the task fails.
_MAX_REFUSALS = 20

#: How the exception of one task says what has happened to its Batch, its worker or its key.
_FAILURES: tuple[tuple[type[BatchError], str], ...] = (
    (ServiceLost, "was lost with its Batch"),
    (WorkerLost, "was lost"),
    (TaskCancelled, "was cancelled"),
)

_logger = logging.getLogger("daskbatch")


class CancelledBlocks:
    """Places the tasks of refused keys again, and stops those of cancelled ones.

    Parameters
    ----------
    table : TaskTable
        The started tasks, and the lock.
    backend : Backend
        Runs the blocks.
    revocation : Revocation
        Withdraws members.
    listener : Listener
        Is notified when a key is over.
    """

    def __init__(
        self, table: TaskTable, backend: Backend, revocation: Revocation, listener: Listener
    ) -> None:
        self._table = table
        self._backend = backend
        self._revocation = revocation
        self._listener = listener
        #: How often the scheduler has refused a task.
        self._refusals: WeakKeyDictionary[TaskRecord, int] = WeakKeyDictionary()

    def fetch(
        self, block: SubmittedBlock, record: TaskRecord, timeout: float | None
    ) -> BlockResult | None:
        """Return the result of a block; None if it was lost because its key was cancelled.

        The caller does not hold the lock. See `SubmittedBlock.fetch` for the exceptions.
        """
        if self._backend.has_cancelled(block):
            return None
        try:
            return block.fetch(record.label, timeout)
        except (WorkerLost, LifecycleError):
            if self._backend.has_cancelled(block):
                return None
            raise

    def take_back(
        self, blocks: Sequence[SubmittedBlock]
    ) -> tuple[list[SubmittedBlock], list[TaskRecord]]:
        """Requeue the members of refused blocks; settle those that were refused too often.

        A block that waits for one whose key was cancelled, and whose members are still being
        stopped, is taken back later: the scheduler would refuse its tasks again.

        The caller holds the lock.

        Returns
        -------
        tuple of two lists
            The blocks to be forgotten, and the tasks to be placed.
        """
        over: list[SubmittedBlock] = []
        requeued: list[TaskRecord] = []
        for block in blocks:
            block.failed = True
            if any(other.failed and other.unfinished for other in block.waits):
                again = partial(self._listener.keys_refused, [block], ())
                self._backend.call_later(_RETRY_INTERVAL_SECONDS, again)
                continue
            over.append(block)
            for record in block.unfinished_members():
                count = self._refusals[record] = self._refusals.get(record, 0) + 1
                if count < _MAX_REFUSALS or find_root_failure(record) is not None:
                    self._table.requeue(block, record)
                    requeued.append(record)
                    continue
                why = f"Dask's scheduler has refused it {count} times, since it lacks what it needs"
                failure = pack_error(as_failure(record, BatchError(why)), record.label)
                self._table.settle_member(block, record, Status.FAILED, failure)
        requeued.sort(key=lambda record: record.rank)
        return over, requeued

    def place_in_halves(self, block: SubmittedBlock) -> bool:
        """Place the members of a block again whose inputs are too large together.

        Nothing of it has run. The caller holds the lock, and forgets the block. Returns False for a
        single member.
        """
        members = block.unfinished_members()
        if len(members) < 2:
            return False
        half = len(members) // 2
        for some in (members[:half], members[half:]):
            for record in some:
                self._table.requeue(block, record)
            # A submission each: together they would share a block again.
            self._table.place(some, block.name)
        return True

    def stop(self, block: SubmittedBlock, why: str) -> None:
        """Stop the members of a cancelled block; the caller does not hold the lock."""
        error = TaskCancelled(why)
        with self._table.outcomes.changed:
            after_cancelled = any(other.failed for other in block.waits)
            block.failed = True
            members = block.unfinished_members()
            has_begun = block.open and self._table.open_blocks.key_cancelled(block)
        if block.open and not has_begun:
            self._listener.key_finished(block)  # it returns all its members
            return
        if after_cancelled:
            # Dask cancels what comes after a cancelled key, too. None of that has begun.
            self._listener.keys_refused([block], ())
            return
        if members:
            more = f" and {len(members) - 1} more" if len(members) > 1 else ""
            _logger.warning("%s: task %s%s", why, members[0].label, more)
        self._revocation.withdraw({record: as_failure(record, error) for record in members})
        # Dask no longer runs the key. What runs in its thread ends by itself, and is reported.
        over = partial(self._listener.key_finished, block, None, error)
        self._backend.call_later(_STOP_TIMEOUT_SECONDS, over)


def as_failure(record: TaskRecord, error: BaseException) -> BatchError:
    """Return the exception for one task, from the error of its Batch or block."""
    for kind, what in _FAILURES:
        if isinstance(error, kind):
            return kind(f"task {record.label} {what}: {error}")
    return BatchError(f"task {record.label} could not be run: {error}")
