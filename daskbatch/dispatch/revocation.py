"""Withdraws started tasks from the cluster: to cancel them, to refuse them, or to place them anew.

The backend prevents members from running, and answers which members it could prevent. Any thread
may use it. A caller must not hold the lock, except where a docstring says that it does.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from daskbatch.dispatch.backend import Backend, Members
from daskbatch.dispatch.task_record import (
    Group,
    Phase,
    SubmittedBlock,
    TaskRecord,
    dependent_blocks,
    members_by_block,
)
from daskbatch.dispatch.task_table import TaskTable
from daskbatch.errors import SpecError
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.outcome import Status

#: How long tasks that wait behind a stuck block are collected before they are withdrawn.
_UNSTICK_DELAY_SECONDS = 0.05

#: The interval at which a waiting `cancel` checks whether an answer can still arrive.
_CHECK_INTERVAL_SECONDS = 0.2


class Revocation:
    """Withdraws the tasks of a table. Any thread may use it.

    Parameters
    ----------
    table : TaskTable
        The started tasks, and the lock.
    backend : Backend
        Runs the blocks.
    """

    def __init__(self, table: TaskTable, backend: Backend) -> None:
        self._table = table
        self._backend = backend
        self._changed = table.outcomes.changed
        #: The blocks whose keys will not finish soon, though other blocks wait for them.
        self._stuck: set[SubmittedBlock] = set()
        #: The numbers of the blocks that the backend remembers revocations of.
        self._revoked: set[int] = set()

    def cancel(self, records: Sequence[TaskRecord], begun: bool = True) -> list[TaskRecord]:
        """Cancel tasks that are not over, and wait for the answer.

        Parameters
        ----------
        records : sequence of TaskRecord
            The tasks.
        begun : bool
            Whether running tasks are stopped as well.

        Returns
        -------
        list of TaskRecord
            The tasks that will not complete.
        """
        self._table.outcomes.require_own_process()
        with self._changed:
            started = []
            for record in records:
                if record.phase < Phase.WAITING:
                    self._table.settle(record, Phase.CANCELLED)
                else:
                    started.append(record)
            self._changed.notify_all()
        while started:
            started = self._cancel_started(started, begun)
        stopping = self._table.stopping
        with self._changed:
            return [each for each in records if each.phase == Phase.CANCELLED or each in stopping]

    def count_stopping(self, group: Group) -> int:
        """Return the number of members of a group that run and are being stopped."""
        with self._changed:
            return sum(record.group is group for record in self._table.stopping)

    def refuse(self, reasons: Mapping[TaskRecord, str]) -> None:
        """Settle tasks that no worker can run as failed, for the given reasons."""
        with self._changed:
            placed = {record: record.block for record in reasons if record.block is not None}
            members = members_by_block(placed)
            self._revoked.update(members)

        def then(revoked: Members, _: Members) -> None:
            with self._changed:
                for record, block in placed.items():
                    if record.block is block and record.member in revoked.get(block.number, ()):
                        error = SpecError(f"task {record.label} {reasons[record]}")
                        data = pack_error(error, record.label)
                        self._table.settle_member(block, record, Status.FAILED, data)
                self._changed.notify_all()
            self._release_empty(placed.values())

        if members:
            self._backend.revoke(members, Status.CANCELLED, then)

    def withdraw(self, errors: Mapping[TaskRecord, Exception | None]) -> None:
        """Cancel tasks that are not over, or have them fail; the answer comes later.

        Parameters
        ----------
        errors : mapping
            For each task the exception that it fails with; None to cancel it.
        """
        with self._changed:
            placed = {
                record: record.block
                for record in errors
                if record.block is not None and not record.over
            }
            members = members_by_block(placed)
            self._revoked.update(members)

        def then(revoked: Members, stopping: Members) -> None:
            with self._changed:
                for record, block in placed.items():
                    if record.block is not block or record.over:
                        continue
                    if record.member in revoked.get(block.number, ()):
                        self._settle_withdrawn(block, record, errors[record])
                    elif record.member in stopping.get(block.number, ()):
                        self._table.stopping.add(record)
                self._changed.notify_all()
            self._release_empty(placed.values())

        if members:
            self._backend.revoke(members, Status.CANCELLED, then)

    def _settle_withdrawn(
        self, block: SubmittedBlock, record: TaskRecord, error: Exception | None
    ) -> None:
        if error is None:
            self._table.settle_member(block, record, Status.CANCELLED)
        else:
            data = pack_error(error, record.label)
            self._table.settle_member(block, record, Status.FAILED, data)

    def place_anew(self, records: Iterable[TaskRecord]) -> None:
        """Place the tasks that have not begun in new blocks: they wait for fewer tasks now."""
        with self._changed:
            members = members_by_block(
                record for record in records if record.phase == Phase.WAITING
            )
            self._revoked.update(members)
        if members:
            self._backend.revoke(members, Status.DEFERRED, self._place_withdrawn)

    def unstick(self, block: SubmittedBlock) -> None:
        """Withdraw the tasks in blocks that wait for a block's key, to place them anew.

        The block has expired: its key will not finish soon, but a waiting task may need only
        members that are over. The caller holds the lock; the tasks are withdrawn a moment later.
        """
        block.long = True
        if not self._stuck:
            self._backend.call_later(_UNSTICK_DELAY_SECONDS, self._withdraw_behind_stuck)
        self._stuck.add(block)

    def forget(self, block: SubmittedBlock) -> None:
        """Drop what was needed of a block until it was over; the caller holds the lock."""
        self._stuck.discard(block)
        if block.number in self._revoked:
            self._revoked.discard(block.number)
            self._backend.forget([block.number])

    def _cancel_started(self, records: Iterable[TaskRecord], begun: bool) -> list[TaskRecord]:
        """Cancel started tasks; returns those that moved to other blocks meanwhile."""
        answered = threading.Event()
        revoked: Members = {}
        stopping: Members = {}

        def then(not_begun: Members, stopped: Members) -> None:
            nonlocal revoked, stopping
            revoked, stopping = not_begun, stopped
            answered.set()

        with self._changed:
            asked = {record: record.block for record in records if not record.over}
            members = members_by_block(asked)
            self._revoked.update(members)
            live = dict(self._table.live)
        if not members:
            return []
        self._backend.revoke(members, Status.CANCELLED, then, begun)
        while not answered.wait(_CHECK_INTERVAL_SECONDS):
            # If another thread has ended the client meanwhile, it has settled all tasks.
            if all(record.over for record in asked):
                return []
        with self._changed:
            for number, confirmed in revoked.items():
                for record in live[number].unfinished_members(confirmed):
                    self._table.settle_member(live[number], record, Status.CANCELLED)
            for number, stopped in stopping.items():
                # The tasks after these must wait until these have really ended.
                self._table.stopping.update(live[number].unfinished_members(stopped))
            self._changed.notify_all()
            moved = [
                record
                for record, block in asked.items()
                if not record.over and record.block is not block
            ]
        self._release_empty(live[number] for number in revoked)
        return moved

    def _release_empty(self, blocks: Iterable[SubmittedBlock]) -> None:
        """Withdraw what waits for blocks without unfinished members, and release the blocks.

        Such a block may never run, so the tasks behind it must not wait for its key.
        """
        with self._changed:
            # An open block may receive other members.
            empty = [block for block in set(blocks) if not block.unfinished and not block.open]
            self._stuck.update(empty)
        if empty:
            self._withdraw_behind_stuck()
        with self._changed:
            for block in empty:
                self._release_if_empty(block)

    def _release_if_empty(self, block: SubmittedBlock) -> None:
        if not block.unfinished and not block.is_needed:
            # It still runs if other blocks need its key. So the backend keeps its revocations.
            self._revoked.discard(block.number)
            self._backend.release(block)

    def _withdraw_behind_stuck(self) -> None:
        """Withdraw the tasks of all blocks that wait for a stuck one."""
        with self._changed:
            behind = dependent_blocks(self._stuck, self._table.live.values())
            self._stuck.clear()
            members = members_by_block(
                record for block in behind for record in block.unfinished_members()
            )
            self._revoked.update(members)
        if members:
            self._backend.revoke(members, Status.DEFERRED, self._place_withdrawn)

    def _place_withdrawn(self, revoked: Members, _: Members) -> None:
        """Place tasks in new blocks, once the backend has confirmed that they will not run."""
        live = self._table.live
        with self._changed:
            requeued: list[TaskRecord] = []
            names: set[str] = set()
            blocks = [live[number] for number in revoked if number in live]
            for block in blocks:
                for record in block.unfinished_members(revoked[block.number]):
                    self._table.requeue(block, record)
                    requeued.append(record)
                    names.add(block.name)
            # All in one call, because one may wait for another.
            requeued.sort(key=lambda record: record.rank)
            self._table.place(requeued, names.pop() if len(names) == 1 else "batch")
            self._changed.notify_all()
        # Others may have been placed behind these blocks while these were being withdrawn.
        self._release_empty(blocks)
