"""The client's state of one open block, and what it sends to it.

Not thread-safe: the dispatcher's lock is held.
"""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import NamedTuple, Protocol

from daskbatch.dispatch.declarations import declared_files
from daskbatch.dispatch.task_record import (
    Phase,
    SubmittedBlock,
    TaskRecord,
    find_root_failure,
)
from daskbatch.plan.hazards import NEEDS
from daskbatch.serialization import stored_value
from daskbatch.serialization.buffers import Buffer
from daskbatch.worker.execution.block import LOCAL, BlockMember, Limits, Link, Source
from daskbatch.worker.handshake import ServerAddress
from daskbatch.worker.open_blocks.messages import (
    END,
    NewMembers,
    OpenMember,
    PeerBlock,
    encode_members,
)

#: After its next report, a block has members for at least this time. A message takes 0.3 ms if the
#: machine is busy.
_MIN_SENT_SECONDS = 0.0005

#: Outcomes of the first members that are not over are awaited soon.
_SOON_MEMBERS = 3

# Looking up a member of an enum takes long.
_DONE = Phase.DONE


class MemberLink(Protocol):
    """The client's end of the connection with an open block."""

    def send(self, *frames: bytes) -> None: ...

    def shut_down(self) -> None: ...


class Urgency(NamedTuple):
    """A held task in a heap: the most urgent comes first.

    Parameters
    ----------
    order : float
        The expected seconds from its begin to the end of the program, negated.
    rank : int
        Its rank: of equally urgent tasks the earlier one comes first.
    number : int
        Different for all entries, so that records are never compared.
    record : TaskRecord
        The task.
    """

    order: float
    rank: int
    number: int
    record: TaskRecord


class OpenBlock:
    """A block that is submitted without members, and receives them while it runs.

    Not thread-safe.

    Parameters
    ----------
    block : SubmittedBlock
        The block; its list of records grows.
    records : list of TaskRecord
        That list.
    placement : hashable
        What its members have in common; see `Options.placement_key`.
    can_be_sent : callable
        Returns whether a held task may be sent still.

    Attributes
    ----------
    link : MemberLink, optional
        The connection; None until the block runs and the client has connected.
    address : ServerAddress, optional
        Where other open blocks can connect to it; None until it runs.
    closed : bool
        Whether no more members are sent.
    has_slot : bool
        Whether it has a slot, or will have one: not while its last member waits for other tasks.
    """

    def __init__(
        self,
        block: SubmittedBlock,
        records: list[TaskRecord],
        placement: Hashable,
        can_be_sent: Callable[[TaskRecord], bool],
    ) -> None:
        self.block = block
        self.records = records
        self.placement = placement
        self._can_be_sent = can_be_sent
        self.link: MemberLink | None = None
        self.address: ServerAddress | None = None
        self.closed = False
        self.has_slot = True
        #: The members whose values nothing refers to any longer. Appending needs no lock.
        self.dropped: deque[int] = deque()
        self._functions: dict[bytes, int] = {}
        self._surroundings: bytes | None = None
        #: How long each of its members is expected to run, at least.
        self._seconds = array("f")
        #: What will be sent by the next `send`.
        self._new_functions: list[bytes] = []
        self._new_members: list[OpenMember] = []
        self._new_sources: list[int] = []
        self._new_peers: list[PeerBlock] = []
        self._new_forwards: list[tuple[int, int]] = []
        #: By their numbers, the other open blocks that send it outcomes, and that receive some:
        #: their positions.
        self._sources: dict[int, int] = {}
        self._peers: dict[int, int] = {}
        #: Held tasks that only wait for members of this block.
        self._behind: list[Urgency] = []

    @property
    def is_open(self) -> bool:
        """Whether members can be sent."""
        return self.link is not None and not self.closed

    def add_behind(self, urgency: Urgency) -> None:
        """Record that a held task waits only for a member of this block."""
        heapq.heappush(self._behind, urgency)

    def first_behind(self) -> Urgency | None:
        """Return the first held task that waits only for unfinished members of this block."""
        while self._behind:
            first = self._behind[0]
            record = first.record
            # If one that it needs has failed, it does not run; `OpenBlocks` finds that later.
            if (
                is_held(record)
                and only_awaited_block(record) is self.block
                and find_root_failure(record) is None
                and self._can_be_sent(record)
            ):
                return first
            heapq.heappop(self._behind)
        return None

    @property
    def num_peers(self) -> int:
        """The number of other open blocks that it exchanges outcomes with."""
        return len(self._sources) + len(self._peers)

    def add(
        self,
        record: TaskRecord,
        seconds: float | None,
        others: Callable[[int], OpenBlock] | None = None,
    ) -> None:
        """Make a held task a member; `send` sends it.

        Parameters
        ----------
        record : TaskRecord
            The task.
        seconds : float, optional
            How long it is expected to run; None if that is not known.
        others : callable, optional
            Returns the open block with a number, for a task that waits for members of others.
            Those are to be sent their part, too.
        """
        self._seconds.append(seconds or 0.0)
        before, block = record.block, self.block
        assert before is not None
        link = self._link_of(record, others)
        before.unfinished -= 1
        record.block, record.member = block, len(self.records)
        self.records.append(record)
        block.unfinished += 1
        call, options = record.call, record.options
        assert call is not None
        assert isinstance(record.function, bytes)
        index = self._functions.get(record.function)
        if index is None:
            index = self._functions[record.function] = len(self._functions)
            self._new_functions.append(record.function)
        limits = None
        if options.retries or options.timeout or options.cwd or options.env:
            limits = Limits(options.retries, options.timeout, options.cwd, options.env)
        declared = declared_files(record, -1) if record.reads or record.writes else None
        self._new_members.append(OpenMember(index, call.data, record.name, link, limits, declared))

    def _link_of(
        self, record: TaskRecord, others: Callable[[int], OpenBlock] | None
    ) -> Link | None:
        needs: list[Source] = []
        after: list[Source] = []
        positions: dict[TaskRecord, int] = {}
        if record.waits:
            for before, why in record.unfinished_waits().items():
                position = LOCAL
                if others is not None and before.block is not self.block:
                    assert before.block is not None
                    position = positions[before] = self._expect(others(before.block.number), before)
                (needs if why & NEEDS else after).append((position, before.member))
        call = record.call
        assert call is not None
        if not (needs or after or call.references or call.buffers):
            return None
        values = tuple(_values(call.references, positions))
        return Link(tuple(needs), tuple(after), values, tuple(map(_reference, call.buffers)))

    def _expect(self, other: OpenBlock, before: TaskRecord) -> int:
        """Have another block send it the outcome of a member; return the position of the block."""
        number = other.block.number
        position = self._sources.get(number)
        if position is None:
            position = self._sources[number] = len(self._sources)
            self._new_sources.append(number)
        other.forward(before.member, self)
        return position

    def forward(self, member: int, to: OpenBlock) -> None:
        """Have the outcome of a member sent to another block, once it is over."""
        number = to.block.number
        position = self._peers.get(number)
        if position is None:
            assert to.address is not None
            position = self._peers[number] = len(self._peers)
            self._new_peers.append(PeerBlock(number, to.address))
        self._new_forwards.append((member, position))

    @property
    def seconds_ahead(self) -> float:
        """How long it has members at least, once it has reported again; as far as it is known."""
        # Its unfinished members are the last ones.
        stop = len(self._seconds) - len(self._new_members)
        start = len(self._seconds) - self.block.unfinished + 1
        return sum(self._seconds[start:stop]) if start < stop else 0.0

    def send_if_due(self, surroundings: bytes | None) -> None:
        """Send the members that were added, unless those that it has will last for a while.

        A message takes the client as long as all else that it does for a member. So it waits while
        the block will report once more before it has too few.
        """
        if not (self._new_members or self._new_forwards):
            return
        if self.seconds_ahead < _MIN_SENT_SECONDS or (
            self._new_forwards and self._forwards_are_due()
        ):
            self.send(surroundings)

    def _forwards_are_due(self) -> bool:
        """Whether a member whose outcome another block awaits may be over soon."""
        # Its unfinished members are the last ones, and those that were not sent come last.
        soon = len(self.records) - self.block.unfinished + _SOON_MEMBERS
        unsent = len(self.records) - len(self._new_members)
        return any(member < soon and member < unsent for member, _ in self._new_forwards)

    def send(self, surroundings: bytes | None) -> None:
        """Send the members that were added."""
        if not (self._new_members or self._new_forwards):
            return
        changed = None if surroundings == self._surroundings else surroundings
        self._surroundings = surroundings
        dropped = [self.dropped.popleft() for _ in range(len(self.dropped))]
        message = NewMembers(
            *(self._new_functions, self._new_members, changed, dropped),
            *(self._new_sources, self._new_peers, self._new_forwards),
        )
        self._new_functions, self._new_members = [], []
        self._new_sources, self._new_peers, self._new_forwards = [], [], []
        assert self.link is not None
        self.link.send(encode_members(message))

    def end(self) -> None:
        """Send no more members; the block ends when those that it has are over."""
        self.closed = True
        if self.link is not None:
            self.link.send(END)

    def drop(self) -> None:
        """Close the connection."""
        self.closed = True
        if self.link is not None:
            self.link.shut_down()


def is_held(record: TaskRecord) -> bool:
    """Return whether a task waits at the client to be sent."""
    block = record.block
    return block is not None and block.held and record.phase < _DONE


def only_awaited_block(record: TaskRecord) -> SubmittedBlock | None:
    """Return the block that has all tasks that a task still waits for; None if there is none."""
    found: SubmittedBlock | None = None
    for before, _ in record.waits:
        if before.phase < _DONE:
            block = before.block
            if block is None or (found is not None and block is not found):
                return None
            found = block
        elif before.waits:  # it was cancelled, and its own waits count
            blocks = {each.block for each in record.unfinished_waits()}
            return blocks.pop() if len(blocks) == 1 else None
    return found


def _reference(buffer: Buffer) -> bytes:
    """Return where the worker finds a buffer, which is in memory of this host."""
    stored = stored_value.buffer_value(buffer)
    assert stored is not None
    return bytes(stored)


def _values(
    references: Iterable[tuple[TaskRecord, str]], positions: Mapping[TaskRecord, int]
) -> Iterable[BlockMember | bytes | str]:
    for producer, part in references:
        if producer.phase < _DONE:
            yield BlockMember((positions.get(producer, LOCAL), producer.member), part)
        elif part == "result":
            assert producer.value is not None
            yield producer.value
        else:
            assert producer.output is not None
            yield producer.output[part == "stderr"]
