"""Receives outcomes of other open blocks, for members of an open block that wait for them.

The thread that runs the block uses it. What does not arrive counts as deferred: the client decides.
"""

from __future__ import annotations

import contextlib
import pickle
import select
from collections import Counter, deque
from collections.abc import Iterable

from daskbatch.worker.execution.block import LOCAL, BlockMember, Link, Source
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.open_blocks.frame_link import FrameLink, LinkClosed


class PeerOutcomes:
    """The outcomes of members of one other block that have arrived: an input of a block.

    One thread uses it.

    Attributes
    ----------
    values, outputs : dict
        By member; only of those that members of this block still take.
    lost : bool
        False; see `BlockResult`.
    ended : bool
        Whether no more outcomes arrive.
    """

    lost = False

    def __init__(self) -> None:
        self.values: dict[int, bytes] = {}
        self.outputs: dict[int, tuple[str, str]] = {}
        self.ended = False
        self._statuses: dict[int, int] = {}
        #: How many members of this block wait for each member of the other one.
        self._users: Counter[int] = Counter()
        #: How many more of them it was sent for. The client's messages about them come separately.
        self._sent: Counter[int] = Counter()

    def expect(self, member: int) -> None:
        """Record that a member of this block waits for a member of the other one."""
        self._users[member] += 1

    def is_known(self, member: int) -> bool:
        """Return whether an outcome has arrived, or will not."""
        return self.ended or member in self._statuses

    def status(self, member: int) -> int:
        """Return DONE if a member is done, else DEFERRED: then the client decides what follows."""
        return self._statuses.get(member, int(Status.DEFERRED))

    def receive(self, frame: bytes) -> None:
        """Record an outcome that has arrived."""
        # It may arrive before the client's message about the member that waits for it.
        member, status, value, output, count = pickle.loads(frame)
        self._sent[member] += count
        if not (self._sent[member] or self._users[member]):
            self._forget(member)  # those that have waited were given back
            return
        self._statuses[member] = status
        if value is not None:
            self.values[member] = value
        if output is not None:
            self.outputs[member] = output

    def release(self, member: int) -> None:
        """Record that a member which has waited is over: it needs the outcome no longer."""
        self._users[member] -= 1
        self._sent[member] -= 1
        if not (self._users[member] or self._sent[member] > 0):
            self._statuses.pop(member, None)
            self.values.pop(member, None)
            self.outputs.pop(member, None)
            if not self._sent[member]:
                self._forget(member)

    def _forget(self, member: int) -> None:
        del self._users[member], self._sent[member]


class PeerInputs:
    """What one open block receives of others. `attach` may be called by any thread.

    The thread that runs the block calls all else but `add_sources` and `expect`, for which it
    must not run.

    Parameters
    ----------
    inputs : list
        The inputs of the block; grows by one `PeerOutcomes` for each other block.
    """

    def __init__(self, inputs: list[PeerOutcomes]) -> None:
        self._inputs = inputs
        self._by_number: dict[int, PeerOutcomes] = {}
        #: What members wait for, by member.
        self._sources: dict[int, tuple[Source, ...]] = {}
        #: Connections that were accepted, and are not used yet.
        self._attached: deque[tuple[int, FrameLink]] = deque()
        self._links: dict[int, tuple[FrameLink, PeerOutcomes]] = {}
        #: What `wait` waits for; None if that has changed. And the client's connection in it.
        self._poll: select.poll | None = None
        self._other: FrameLink | None = None

    def __bool__(self) -> bool:
        """Return whether any member that is not over waits for others."""
        return bool(self._sources)

    def add_sources(self, numbers: Iterable[int]) -> None:
        """Expect outcomes of blocks, by their numbers; each is the next input."""
        for number in numbers:
            self._by_number[number] = made = PeerOutcomes()
            self._inputs.append(made)

    def expect(self, member: int, link: Link) -> None:
        """Record what a member waits for, if that is a member of another block."""
        found = {each for each in (*link.needs, *link.after) if each[0] != LOCAL}
        found.update(
            each.source
            for each in link.values
            if isinstance(each, BlockMember) and each.source[0] != LOCAL
        )
        if found:
            for position, other in found:
                self._inputs[position].expect(other)
            self._sources[member] = tuple(found)

    def number(self, position: int) -> int:
        """Return the number of the block that has a position."""
        return list(self._by_number)[position]

    def attach(self, number: int, link: FrameLink) -> None:
        """Use a connection with another block."""
        self._attached.append((number, link))

    def missing(self, member: int) -> list[Source]:
        """Return what a member waits for, and has not arrived."""
        sources = self._sources.get(member, ())
        return [each for each in sources if not self._inputs[each[0]].is_known(each[1])]

    def release(self, member: int) -> None:
        """Record that a member is over."""
        for position, other in self._sources.pop(member, ()):
            self._inputs[position].release(other)

    def receive(self) -> None:
        """Take what has arrived; does not wait."""
        for _ in range(len(self._attached)):
            number, link = self._attached.popleft()
            outcomes = self._by_number.get(number)
            if outcomes is None:
                # The client's message about the block is still on the way.
                self._attached.append((number, link))
                continue
            self._links[link.sock.fileno()] = link, outcomes
            self._poll = None
        for descriptor, (link, outcomes) in list(self._links.items()):
            try:
                for frame in link.receive():
                    outcomes.receive(frame)
            except LinkClosed:
                outcomes.ended = True
                del self._links[descriptor]
                self._poll = None
                link.close()

    def wait(self, other: FrameLink | None, seconds: float) -> None:
        """Wait until something arrives, also on the connection with the client."""
        poll = self._poll
        if poll is None or other is not self._other:
            self._other = other
            poll = self._poll = select.poll()
            for descriptor in self._links:
                poll.register(descriptor, select.POLLIN)
            if other is not None:
                with contextlib.suppress(OSError, ValueError):  # it has been closed
                    poll.register(other.sock, select.POLLIN)
        poll.poll(seconds * 1e3)

    def close(self) -> None:
        """Close the connections."""
        for link, _ in self._links.values():
            link.close()
        self._links.clear()
        while self._attached:
            self._attached.popleft()[1].close()
