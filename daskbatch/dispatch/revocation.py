"""Takes started tasks back: to cancel them, to refuse them, or to place them anew.

Does not know what a backend does to keep them from running; it asks, and is answered.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence

from daskbatch.dispatch.backend import Members
from daskbatch.dispatch.task_record import (
    Group,
    Phase,
    SubmittedBlock,
    TaskRecord,
    blocks_behind,
    by_block,
)
from daskbatch.dispatch.task_table import TaskTable
from daskbatch.errors import SpecError
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.outcome import Status

#: How long tasks that wait behind a stuck block are gathered before they are taken back.
_UNSTICK_SECONDS = 0.05

#: How often is looked whether an answer can still come. Seconds.
_LOOK_SECONDS = 0.2


class Revocation(TaskTable):
    """What of a `Dispatcher` takes tasks back."""

    def cancel(self, records: Sequence[TaskRecord], begun: bool = True) -> list[TaskRecord]:
        """Cancel what is not over; returns those that will not complete, once it is known.

        Parameters
        ----------
        records : sequence of TaskRecord
            The tasks.
        begun : bool
            Whether those that have begun are stopped, too.
        """
        self.outcomes.require_here()
        with self._changed:
            started = []
            for record in records:
                if record.phase < Phase.WAITING:
                    self.outcomes.left += 1
                    self.outcomes.settle(record, Phase.CANCELLED)
                else:
                    started.append(record)
            self._changed.notify_all()
        while started:
            started = self._cancel_started(started, begun)
        with self._changed:
            return [c for c in records if c.phase == Phase.CANCELLED or c in self._stopping]

    def count_stopping(self, group: Group) -> int:
        """Say how many members of a group run, and are being stopped."""
        with self._changed:
            return sum(record.group is group for record in self._stopping)

    def refuse(self, reasons: Mapping[TaskRecord, str]) -> None:
        """Count tasks as failed that no worker can run."""
        with self._changed:
            placed = {record: record.block for record in reasons if record.block is not None}
            members = by_block(placed)
            self._revoked.update(members)

        def then(revoked: Members, _: Members) -> None:
            with self._changed:
                for record, block in placed.items():
                    if record.block is block and record.member in revoked.get(block.number, ()):
                        error = SpecError(f"task {record.label} {reasons[record]}")
                        data = pack_error(error, record.label)
                        self._tell(block, record, Status.FAILED, data)
                self._changed.notify_all()
            self._let_go(placed.values())

        if members:
            self._backend.revoke(members, Status.CANCELLED, then)

    def place_anew(self, records: Iterable[TaskRecord]) -> None:
        """Place those of some tasks elsewhere that have not begun: they wait for less now."""
        with self._changed:
            members = by_block(record for record in records if record.phase == Phase.WAITING)
            self._revoked.update(members)
        if members:
            self._backend.revoke(members, Status.DEFERRED, self._taken_back)

    def _cancel_started(self, records: Iterable[TaskRecord], begun: bool) -> list[TaskRecord]:
        """Cancel what is not over; returns what has been placed elsewhere meanwhile."""
        answered = threading.Event()
        revoked: Members = {}
        stopping: Members = {}

        def then(not_begun: Members, stopped: Members) -> None:
            nonlocal revoked, stopping
            revoked, stopping = not_begun, stopped
            answered.set()

        with self._changed:
            asked = {record: record.block for record in records if not record.over}
            members = by_block(asked)
            self._revoked.update(members)
            live = dict(self._live)
        if not members:
            return []
        self._backend.revoke(members, Status.CANCELLED, then, begun)
        while not answered.wait(_LOOK_SECONDS):
            # Whoever ends the client meanwhile has settled them all.
            if all(record.over for record in asked):
                return []
        with self._changed:
            for number, confirmed in revoked.items():
                for record in live[number].members_left(confirmed):
                    self._tell(live[number], record, Status.CANCELLED)
            for number, stopped in stopping.items():
                # What comes after them must wait until they have really ended.
                self._stopping.update(live[number].members_left(stopped))
            self._changed.notify_all()
            elsewhere = [c for c, at in asked.items() if not c.over and c.block is not at]
        self._let_go(live[number] for number in revoked)
        return elsewhere

    def _let_go(self, blocks: Iterable[SubmittedBlock]) -> None:
        """Take back what waits for blocks of which nothing is left, and spare the cluster those.

        Nobody knows whether they would ever have run.
        """
        with self._changed:
            empty = [block for block in set(blocks) if not block.left]
            self._stuck.update(empty)
        if empty:
            self._take_back()
        with self._changed:
            for block in empty:
                self._drop_if_empty(block)

    # -- stuck blocks ---------------------------------------------------------------------

    def _unstick(self, block: SubmittedBlock) -> None:
        """Take back what waits for a block's key, but perhaps not for what runs in it."""
        block.long = True
        if not self._stuck:
            self._backend.later(_UNSTICK_SECONDS, self._take_back)
        self._stuck.add(block)

    def _take_back(self) -> None:
        with self._changed:
            behind = blocks_behind(self._stuck, self._live.values())
            self._stuck.clear()
            members = by_block(record for each in behind for record in each.members_left())
            self._revoked.update(members)
        if members:
            self._backend.revoke(members, Status.DEFERRED, self._taken_back)

    def _taken_back(self, revoked: Members, _: Members) -> None:
        with self._changed:
            deferred: list[TaskRecord] = []
            names: set[str] = set()
            blocks = [self._live[number] for number in revoked if number in self._live]
            for block in blocks:
                for record in block.members_left(revoked[block.number]):
                    self._give_back(block, record)
                    deferred.append(record)
                    names.add(block.name)
            # All at once, since one may wait for another.
            deferred.sort(key=lambda record: record.rank)
            self._place(deferred, names.pop() if len(names) == 1 else "batch")
            self._changed.notify_all()
        # Others may have been placed behind these while they were being taken back.
        self._let_go(blocks)
