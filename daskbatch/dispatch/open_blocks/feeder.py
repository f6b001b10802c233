"""Feeds open blocks: holds the tasks of fine-grained graphs, and sends each as soon as it is ready.

A list scheduler (Graham, SIAM J. Appl. Math. 17(2), 1969): whenever an open block has room, it
receives the ready task with the longest way to the end. A task that waits only for members of one
open block may be sent to it ahead, behind them.

All is called with the dispatcher's lock held. The *client* decides, so each task that becomes ready
goes by way of the client; see `plan.grain` for when that pays. What cannot be a member of an open
block (a child process, a gang, large arguments for another host) is placed in an ordinary block
once it is ready.
"""

from __future__ import annotations

import heapq
import itertools
import uuid
from collections.abc import Callable, Hashable, Sequence

from daskbatch.describe.spec import Options
from daskbatch.dispatch.lower import Setting, lower_open_block
from daskbatch.dispatch.open_blocks.eligibility import Eligibility, has_values
from daskbatch.dispatch.open_blocks.held import HeldTasks
from daskbatch.dispatch.open_blocks.next_task import NextTask
from daskbatch.dispatch.open_blocks.open_block import (
    MemberLink,
    OpenBlock,
    Urgency,
    is_held,
    only_awaited_block,
)
from daskbatch.dispatch.open_blocks.pause import Pause
from daskbatch.dispatch.open_blocks.protocols import LinkMaker, OpenSubmitter, Table
from daskbatch.dispatch.open_blocks.streams import Streams
from daskbatch.dispatch.task_record import SubmittedBlock, TaskRecord
from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import ClosedReport, OpenedReport, SilentPeerReport
from daskbatch.worker.execution.outcome import Status

#: A task is not sent behind those that it waits for if another block has nothing to do, and the
#: block has more members than that one, by more than this number. Else one slot would run all of a
#: graph whose tasks wait for neighbours.
_MAX_LEAD = 1

#: For how long independent tasks share Dask keys after an open block had to give way.
_CROWDED_SECONDS = 2.0

#: An open block receives at most this many members.
_MAX_MEMBERS = 10_000

_PICKLED_NONE = pickling.dumps(None)


class OpenBlocks:
    """The held tasks and the open blocks of one client. Not thread-safe.

    Parameters
    ----------
    table : Table
        The started tasks.
    submitter : OpenSubmitter
        Submits the Dask keys.
    setting : Setting
        The settings of all blocks.
    links : LinkMaker, optional
        Connects to open blocks; without it, no task is held.
    """

    def __init__(
        self, table: Table, submitter: OpenSubmitter, setting: Setting, links: LinkMaker | None
    ) -> None:
        self._table = table
        self._submitter = submitter
        self._setting = setting
        self._eligibility = Eligibility(table, submitter, setting.inline_limit)
        self._links = links
        #: Called with each block of held tasks that has no members left.
        self.on_empty: Callable[[SubmittedBlock], None] = lambda block: None
        #: Whether the caller calls `flush` at its end.
        self.flushes_soon = False
        #: The tasks that wait at the client.
        self.held = HeldTasks()
        #: The blocks of held tasks.
        self._held_blocks: list[SubmittedBlock] = []
        #: Held tasks that have become ready; and those that wait for one other task.
        self._turned_ready: list[TaskRecord] = []
        self._almost_ready: list[TaskRecord] = []
        #: By placement: a heap of the ready tasks, and the open blocks.
        self._ready: dict[Hashable, list[Urgency]] = {}
        self._entries = itertools.count()
        self._open: dict[Hashable, list[OpenBlock]] = {}
        self._by_number: dict[int, OpenBlock] = {}
        self._options: dict[Hashable, Options] = {}
        #: The tasks that are sent before what they wait for is over, and the blocks to send to.
        self._streams = Streams(
            self.held, self._eligibility, table.expected_seconds, self._by_number.get
        )
        self._to_send: dict[OpenBlock, None] = {}
        self._next = NextTask(self.held, table.expected_seconds)
        #: What the script had changed when it last started tasks.
        self._surroundings: bytes | None = None
        #: After open blocks have ended before they opened, or a connection could not be made or
        #: was cut, the ordinary way is taken.
        self._pause = Pause()
        #: While others want the slots, opening a block for each of its turns takes too long.
        self._crowded = Pause(_CROWDED_SECONDS)
        #: Whether the last attempt to connect has succeeded.
        self.is_connected = False

    # -- tasks that are placed --------------------------------------------------------------

    @property
    def in_use(self) -> bool:
        """Whether any task is held, or any block is open."""
        return bool(self._held_blocks or self._by_number)

    @property
    def awaits_outcomes(self) -> bool:
        """Whether `over` is to be called."""
        return bool(self.held) or bool(self._streams)

    @property
    def has_idle(self) -> bool:
        """Whether an open block has no member that is not over."""
        return any(each.is_open and not each.block.unfinished for each in self._by_number.values())

    @property
    def is_paused(self) -> bool:
        """Whether the ordinary way is taken, since connections have failed."""
        return self._pause.lasts

    def hold(self, records: Sequence[TaskRecord], name: str, others: int) -> Sequence[TaskRecord]:
        """Hold those tasks that are to be sent to open blocks; returns the other ones.

        Parameters
        ----------
        records : sequence of TaskRecord
            Waiting tasks in no block, each after those that it waits for.
        name : str
            Their name on Dask's dashboard.
        others : int
            The number of other unfinished tasks.
        """
        if self._links is None:
            return records
        chosen = self._suits(records, others)
        if not chosen:
            self._end_idle()
            if not self.in_use:
                return records
        held: dict[TaskRecord, None] = {}
        rest = []
        for record in records:
            # Also for what it waits for by way of a task that is over, such as a cancelled one.
            if chosen or any(
                before in held
                or (before.block is not None and (before.block.held or before.block.open))
                for before in (record.unfinished_waits() if record.waits else ())
            ):
                held[record] = None
            else:
                rest.append(record)
        self._hold_all(list(held), name)
        self._end_producers_of(rest)
        return rest

    def hold_again(self, records: Sequence[TaskRecord], name: str) -> None:
        """Hold members that an open block has returned without running them."""
        for record in records:
            self._streams.over(record)
        self._hold_all(records, name)

    def _suits(self, records: Sequence[TaskRecord], others: int) -> bool:
        if self.is_paused:
            return False
        slots = max(1, self._submitter.slots)
        if any(record.waits for record in records):
            return self._eligibility.suits_graph(records, slots)
        ours = sum(found.block.unfinished for found in self._by_number.values())
        ours += sum(block.unfinished for block in self._held_blocks)
        if len(records) + others <= slots + ours and len(records) + ours <= 2 * slots:
            # Single calls, one after another: each finds a block that is open.
            return self._eligibility.suits_calls(records)
        if self._crowded.lasts:
            return False
        return self._eligibility.suits_independent(records, slots, len(records) + ours)

    def _hold_all(self, records: Sequence[TaskRecord], name: str) -> None:
        if not records:
            return
        if self._setting.surroundings is not None:
            self._surroundings = self._setting.surroundings.changes()
        block = SubmittedBlock(self._table.next_number(), list(records))
        block.held = True
        block.key = (f"{name}-held", block.number)
        for member, record in enumerate(records):
            record.block, record.member = block, member
        self._table.live[block.number] = block
        self._held_blocks.append(block)
        self._table.unsuccessful.hold(records)
        self._turned_ready += self.held.add(records, self._eligibility.expected_seconds(records))
        self._schedule_flush()

    # -- what happens to tasks --------------------------------------------------------------

    def over(self, record: TaskRecord) -> None:
        """Record that a task is over."""
        self._streams.over(record)
        was_held = self.held.remove(record)
        ready, almost = self.held.over(record)
        if was_held or ready or almost:
            self._turned_ready += ready
            self._almost_ready += almost
            self._schedule_flush()

    def settled(self, block: SubmittedBlock, start: int, stop: int) -> None:
        """Hold the members of an open block weakly that a report has settled."""
        found = self._by_number.get(block.number)
        dropped = None if found is None else found.dropped.append
        block.hold_weakly(range(start, stop), dropped)

    def _schedule_flush(self) -> None:
        if not self.flushes_soon:
            self.flushes_soon = True
            self._table.flush_later()

    def flush(self) -> None:
        """Send what is ready; called at the end of each change, with the lock held."""
        self.flushes_soon = True  # settling tasks here schedules nothing
        try:
            while True:
                if self.is_paused:
                    self._release_held()
                self._sort_ready()
                again = False
                for placement in list(self._ready):
                    again = self._assign(placement) or again
                if not (self._turned_ready or again):
                    break
            for found in self._to_send:
                if not found.closed:
                    found.send_if_due(self._surroundings)
            self._to_send.clear()
            if not self.held:
                self._streams.forget_waiting()
            self._drop_empty()
        finally:
            self.flushes_soon = False

    def _sort_ready(self) -> None:
        """Queue the tasks that have become ready; place those that cannot be members."""
        crowded = self._crowded.lasts
        while self._turned_ready:
            turned, self._turned_ready = self._turned_ready, []
            ordinary: dict[str, list[TaskRecord]] = {}
            again: dict[str, list[TaskRecord]] = {}
            for record in turned:
                block = record.block
                if block is None or not is_held(record):
                    continue
                revived = self._table.revive_lost(record)
                if revived is not None:
                    self._table.requeue(block, record)
                    self.held.remove(record)
                    again.setdefault(block.name, []).extend((*revived, record))
                elif not self._table.may_run(record):
                    block.unfinished -= 1
                    record.block = None
                elif record.call is None:
                    self._table.settle_member(block, record, Status.DONE, _PICKLED_NONE)
                elif (
                    self._eligibility.may_be_member(record)
                    and has_values(record)
                    and not (crowded and self._is_independent(record))
                ):
                    placement = record.options.placement_key
                    self._options[placement] = record.options
                    heapq.heappush(self._ready.setdefault(placement, []), self._urgency(record))
                else:
                    self._table.requeue(block, record)
                    self.held.remove(record)
                    ordinary.setdefault(block.name, []).append(record)
            for name, some in again.items():
                some.sort(key=lambda record: record.rank)
                self._hold_all(some, name)
            for name, some in ordinary.items():
                some.sort(key=lambda record: record.rank)
                self._table.place_in_blocks(some, name)
                self._end_producers_of(some)
        almost, self._almost_ready = self._almost_ready, []
        for record in almost:
            block = only_awaited_block(record)
            if block is not None and block.open:
                found = self._by_number.get(block.number)
                if found is not None and found.is_open:
                    self._put_behind(found, record)

    def _is_independent(self, record: TaskRecord) -> bool:
        return not (record.waits or self.held.waiting_for(record)) and (
            self._eligibility.is_not_short(record)
        )

    def _give_way(self) -> None:
        """Have the ready tasks looked at again."""
        self._crowded.begin()
        for ready in self._ready.values():
            self._turned_ready += (each.record for each in ready)
            ready.clear()

    def _end_producers_of(self, records: Sequence[TaskRecord]) -> None:
        """End the open blocks that have values which tasks of ordinary blocks take.

        The key of such a task waits for the whole open block.
        """
        for record in records:
            for producer in record.producers:
                block = producer.block
                found = None if block is None else self._by_number.get(block.number)
                if found is not None and found.is_open:
                    found.end()

    def _put_behind(self, found: OpenBlock, record: TaskRecord) -> None:
        if (
            is_held(record)
            and record.call is not None
            and record.options.placement_key == found.placement
            and self._eligibility.may_be_member(record)
            and has_values(record, found.block)
            and not (record.writes and self._streams.follows_stream(record))
        ):
            found.add_behind(self._urgency(record))

    def _urgency(self, record: TaskRecord) -> Urgency:
        return Urgency(-self.held.level(record), record.rank, next(self._entries), record)

    # -- open blocks ------------------------------------------------------------------------

    def _assign(self, placement: Hashable) -> bool:
        """Give tasks to open blocks, and open more if there are too few.

        Returns whether more tasks, perhaps of other placements, may be sent now.
        """
        ready = self._ready[placement]
        blocks = [each for each in self._open.get(placement, ()) if each.is_open]
        rooms = [(each.block.unfinished, each.block.number, each) for each in blocks]
        heapq.heapify(rooms)
        #: The fewest members of a block for which there is no task.
        fewest = _MAX_MEMBERS
        again = False
        while rooms:
            count, number, found = heapq.heappop(rooms)
            behind = found.first_behind() if count <= fewest + _MAX_LEAD else None
            record = None
            if ready or behind is not None:
                record = self._next.ready(ready, behind, count, len(blocks))
            if record is None:
                streamed = self._streams.first(found)
                if streamed is None or not self._next.has_room_to_wait(streamed[0], count):
                    fewest = min(fewest, count)
                    continue
                record, others = streamed
                self._streams.send(record)
                self._to_send.update(dict.fromkeys(others))
                found.add(record, self._table.expected_seconds(record), self._by_number.__getitem__)
            elif self._eligibility.can_be_sent(record):
                found.add(record, self._table.expected_seconds(record))
            else:
                self._turned_ready.append(record)  # it is placed in an ordinary block
                heapq.heappush(rooms, (count, number, found))
                continue
            self.held.remove(record)
            if len(self._open) > 1:
                again = self._streams.note(record, self._urgency) or again
            for waiting in self.held.waits_for_one(record):
                self._put_behind(found, waiting)
            if len(found.records) >= _MAX_MEMBERS:
                found.send(self._surroundings)
                found.end()
            else:
                heapq.heappush(rooms, (count + 1, number, found))
        self._to_send.update(dict.fromkeys(blocks))
        while ready and not is_held(ready[0].record):
            heapq.heappop(ready)
        again = self._open_more(placement, len(ready)) or again
        # Kept while a block is open, for tasks that are sent ahead.
        if not ready and not any(each.is_open for each in self._open[placement]):
            del self._ready[placement]
        return again

    def _open_more(self, placement: Hashable, ready: int) -> bool:
        """Open blocks for ready tasks; returns whether that has failed: all are to be released."""
        blocks = self._open.setdefault(placement, [])
        if not ready:
            return False
        with_slots = sum(each.has_slot for each in blocks)
        usable = [each for each in blocks if not each.closed]
        busy = sum(1 for each in usable if each.block.unfinished)
        # One that has closed keeps its slot until its key is over. If another key were submitted
        # before, Dask could queue it behind an open block, which would have to close for it.
        wanted = min(ready + busy - len(usable), max(1, self._submitter.slots) - with_slots)
        for _ in range(wanted):
            records: list[TaskRecord] = []
            block = SubmittedBlock(self._table.next_number(), records)
            block.open = block.long = True
            name = uuid.uuid4().hex[:16]
            lowered = lower_open_block(block, self._options[placement], name, self._setting)
            try:
                self._submitter.submit(lowered, again=bool(blocks))
            except Exception:  # placed in the ordinary way, each task receives the error
                self._pause.begin()
                return True
            self._table.add_block(block)
            found = OpenBlock(block, records, placement, self._eligibility.can_be_sent)
            blocks.append(found)
            self._by_number[block.number] = found
        return False

    def _end_idle(self) -> None:
        """End the open blocks without members: other tasks need their slots."""
        for found in self._by_number.values():
            if found.is_open and not found.block.unfinished:
                found.end()

    def opened(self, report: OpenedReport) -> None:
        """Connect to an open block that has begun."""
        found = self._by_number.get(report.block)
        if found is not None and found.link is None and self._links is not None:
            found.address = report.address
            self._links.connect(report.block, report.address)

    def link_opened(self, number: int, link: MemberLink) -> None:
        """Use the connection with an open block."""
        found = self._by_number.get(number)
        if found is None or found.link is not None:
            link.shut_down()
            return
        found.link = link
        self._pause.succeed()
        self.is_connected = True
        if found.closed:
            found.end()
        else:
            self._ready.setdefault(found.placement, [])

    def link_lost(self, number: int, was_cut: bool) -> None:
        """Record that a connection has closed, or could not be made.

        Parameters
        ----------
        number : int
            The open block.
        was_cut : bool
            Whether the worker could not be reached, or was silent.
        """
        found = self._by_number.get(number)
        if found is not None:
            found.drop()
            if was_cut:
                self.is_connected = False
                self._pause.begin()
                self._schedule_flush()

    def peer_was_silent(self, report: SilentPeerReport) -> None:
        """Record that an outcome of one open block did not arrive at another one in time."""
        found = self._by_number.get(report.peer)
        # Else it runs for longer than expected, or the slot was lost.
        if found is not None and not found.block.unfinished_members([report.member]):
            self._streams.was_silent()

    def closed(self, block: SubmittedBlock, report: ClosedReport) -> list[TaskRecord]:
        """Record that an open block takes no more members; returns those that it never received."""
        found = self._by_number.get(block.number)
        if found is None:
            return []
        found.closed = True
        if report.waits:
            found.has_slot = False
            self._schedule_flush()  # what it waits for may be held
        if report.gave_way:
            self._give_way()
        return self._take_back(block, found.records[report.received :])

    def _take_back(self, block: SubmittedBlock, records: Sequence[TaskRecord]) -> list[TaskRecord]:
        unsent = [each for each in records if each.block is block and not each.over]
        for each in unsent:
            self._table.requeue(block, each)
        return unsent

    def key_finished(self, block: SubmittedBlock) -> list[TaskRecord]:
        """Record that the key of an open block is over; returns the members that never began."""
        found = self._remove(block)
        return [] if found is None else self._take_back(block, found.records)

    def key_cancelled(self, block: SubmittedBlock) -> bool:
        """Send an open block no more members; returns whether it has begun.

        Its key was cancelled. Dask does not stop a key that runs: the caller stops its members.
        """
        found = self._by_number.get(block.number)
        if found is None or found.link is None:
            return False
        if found.is_open:
            found.end()
        return True

    def forget(self, block: SubmittedBlock) -> None:
        """Drop an open block, which is over."""
        self._remove(block)

    def _remove(self, block: SubmittedBlock) -> OpenBlock | None:
        found = self._by_number.pop(block.number, None)
        if found is None:
            return None
        self._open[found.placement].remove(found)
        if found.link is None and not found.closed and self._pause.fail():
            self.is_connected = False
        found.drop()
        self._schedule_flush()
        return found

    def _release_held(self) -> None:
        """Place all held tasks in ordinary blocks."""
        held = [
            (block, record) for block in self._held_blocks for record in block.unfinished_members()
        ]
        for block, record in held:
            self._table.requeue(block, record)
            self.held.remove(record)
        self._turned_ready.clear()
        self._ready.clear()
        if held:
            records = sorted((record for _, record in held), key=lambda record: record.rank)
            self._table.place_in_blocks(records, held[0][0].name)

    def _drop_empty(self) -> None:
        if any(not block.unfinished for block in self._held_blocks):
            empty = [block for block in self._held_blocks if not block.unfinished]
            self._held_blocks = [block for block in self._held_blocks if block.unfinished]
            for block in empty:
                self.on_empty(block)

    def clear(self) -> None:
        """Forget all: the client ends."""
        for found in self._by_number.values():
            found.drop()
        for each in (self._by_number, self._open, self._ready, self._streams, self.held):
            each.clear()
        for some in (self._held_blocks, self._turned_ready, self._almost_ready):
            some.clear()
