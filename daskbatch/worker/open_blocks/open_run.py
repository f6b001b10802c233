"""Runs an open block: a `ThreadRun` that waits for more members instead of ending.

The members arrive on a direct connection with the client, and their outcomes leave on it as soon
as they are there. In all else they are members like others: claims, journal, time limits, capture.

The block *closes* when the client ends it, when no member has arrived for a while, when the time
of the block is up and others wait for its slot, when a member has run for too long or waits, when
the values are too large, or when the connection breaks. From then on no member begins. The client
places those that it has sent, and that have not begun, again.
"""

from __future__ import annotations

import socket
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from time import perf_counter
from typing import Any, Protocol

from daskbatch.worker.execution import surroundings
from daskbatch.worker.execution.block import (
    LOCAL,
    BlockSpec,
    ClosedReport,
    Report,
    SilentPeerReport,
    Source,
)
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.execution.thread_run import ThreadRun
from daskbatch.worker.handshake import ServerAddress
from daskbatch.worker.open_blocks.forwarding import Forwarding
from daskbatch.worker.open_blocks.frame_link import FrameLink, LinkClosed
from daskbatch.worker.open_blocks.messages import (
    END,
    NewMembers,
    decode_members,
    encode_report,
)
from daskbatch.worker.open_blocks.peer_inputs import PeerInputs, PeerOutcomes

#: How long an open block without members keeps its slot: if nothing else wants the slot, and if
#: something does.
_IDLE_SECONDS = 0.5
_IDLE_SECONDS_IF_WANTED = 0.002

#: How long the client may take to connect: likewise.
_CONNECT_SECONDS = 5.0
_CONNECT_SECONDS_IF_WANTED = 2.0

#: How long a member waits for members of other blocks: if others follow it, and if none does. Then
#: the client places it again.
_PEER_SECONDS_IF_FOLLOWED = 0.005
_PEER_SECONDS = 0.1

#: How often a waiting block looks whether its slot is wanted.
_POLL_INTERVAL_SECONDS = 0.004

#: The block receives this in place of its budget, which does not end it if no other task waits. It
#: is not infinite: that would keep the members behind one that waits from being deferred.
_NO_BUDGET_SECONDS = 1e9

#: While members follow each other quickly, outcomes are sent at this interval.
_SEND_INTERVAL_SECONDS = 0.0002


class SlotWatch(Protocol):
    """What an open block needs of its worker. Any thread may call it."""

    def is_wanted(self) -> bool:
        """Return whether other tasks wait for the slot."""

    def is_connected(self) -> bool:
        """Return whether the worker belongs to a cluster: else it must begin nothing."""

    def connect(self, address: ServerAddress) -> socket.socket:
        """Connect to the server of another worker's open blocks."""


class OpenRun(ThreadRun):
    """An open block. `Progress` says what other threads may call.

    Parameters
    ----------
    spec : BlockSpec
        The block, without members.
    inputs : sequence
        Empty: no Dask key is an input of an open block.

    Attributes
    ----------
    watch : SlotWatch, optional
        The worker's slot; set before the call.
    """

    def __init__(self, spec: BlockSpec, inputs: Sequence[Any]) -> None:
        self._slice = spec.budget
        received: list[PeerOutcomes] = []
        # Lists and dictionaries of this run, which grow.
        super().__init__(
            spec._replace(
                functions=[],
                calls=[],
                labels=[],
                links={},
                limits={},
                declared={},
                budget=_NO_BUDGET_SECONDS,
            ),
            received,
        )
        self._forwarding = Forwarding(self.log, spec.topic, spec.block, spec.share_limit)
        self._peers = PeerInputs(received)
        self._silent: deque[SilentPeerReport] = deque()
        self.watch: SlotWatch | None = None
        self.closed = False
        #: Whether the running member has released the slot; and what was reported of that with the
        #: end of the block; None before.
        self._waits = False
        self._reported_waits: bool | None = None
        self._gave_way = False
        self._link: FrameLink | None = None
        self._link_was_lost = False
        self._attached = threading.Event()
        #: Held while members are added, and while the block closes.
        self._member_lock = threading.Lock()
        #: Held while reports are taken and sent, so that they stay in order.
        self._deliver_lock = threading.Lock()
        self._delivered_at = 0.0
        #: When the running member began; None between members.
        self._call_began: float | None = None

    # -- the thread that runs the block ---------------------------------------------------

    def __call__(self) -> BlockResult:
        try:
            return super().__call__()
        finally:
            self._close()
            self.deliver(final=True)
            link, self._link = self._link, None
            if link is not None:
                link.close()
            self._forwarding.close()
            self._peers.close()

    def _members(self) -> Iterator[int]:
        calls = self.spec.calls
        member = 0
        while True:
            if member and self._forwarding:
                self._forwarding.send(member - 1)  # before all else: a slot may wait for it
            resumed = perf_counter()
            self._call_began = None
            if self._peers:
                self._peers.release(member - 1)
            if not self.closed and self._time_is_up(resumed):
                self.running = member - 1
                self.defer_rest()
            if member >= len(calls):
                self.running = -1
                if not self._wait_for_member(member):
                    return
            elif resumed - self._delivered_at > _SEND_INTERVAL_SECONDS:
                self.deliver()
            if self._peers:
                self._wait_for_peers(member)
            self._call_began = perf_counter()
            # The time since the last member is not this member's.
            self.preparation = self._call_began - resumed
            yield member
            member += 1

    def _time_is_up(self, now: float) -> bool:
        watch = self.watch
        if watch is None:
            return False
        self._gave_way = now - self.began > self._slice and watch.is_wanted()
        return self._gave_way or not watch.is_connected()

    def _wait_for_peers(self, member: int) -> None:
        """Wait until a member can begin that waits for members of other blocks.

        Not for long: the client then places the member again.
        """
        self._peers.receive()
        missing = self._peers.missing(member)
        if not missing:
            return
        self.running = -1
        self.deliver()
        began = perf_counter()
        while missing:
            waited = perf_counter() - began
            if self._gives_up(member, waited):
                if waited > _PEER_SECONDS_IF_FOLLOWED:
                    self._silent += (
                        SilentPeerReport(self.spec.block, self._peers.number(position), other)
                        for position, other in missing
                    )
                return  # what is missing counts as deferred
            self._peers.wait(None if self.closed else self._link, _POLL_INTERVAL_SECONDS)
            self._peers.receive()
            missing = self._peers.missing(member)
            if missing and self._link is not None:
                self._take_members()

    def _gives_up(self, member: int, waited: float) -> bool:
        if self.claims.given(member) != Status.DONE:
            return True  # it was revoked
        watch = self.watch
        if watch is not None:
            if not watch.is_connected():
                return True
            if waited > _IDLE_SECONDS_IF_WANTED and watch.is_wanted():
                return True
        followed = len(self.spec.calls) > member + 1
        return waited > (_PEER_SECONDS_IF_FOLLOWED if followed else _PEER_SECONDS)

    def _status_of(self, source: Source) -> int:
        position, member = source
        if position == LOCAL:
            return self.log.statuses[member]
        outcomes: PeerOutcomes = self.inputs[position]
        return outcomes.status(member)

    def _wait_for_member(self, member: int) -> bool:
        """Wait until a member has arrived; False if the block has closed, and none will."""
        self.deliver(final=True)
        self.slow_arguments = None
        idle_since = perf_counter()
        while True:
            if self._link is not None:
                self._take_members()
            if len(self.spec.calls) > member:
                return True
            if self.closed:
                return False
            idle = perf_counter() - idle_since
            wanted = self.watch is not None and self.watch.is_wanted()
            if self._link is None:
                limit = _CONNECT_SECONDS_IF_WANTED if wanted else _CONNECT_SECONDS
            else:
                limit = _IDLE_SECONDS_IF_WANTED if wanted else _IDLE_SECONDS
            connected = self.watch is None or self.watch.is_connected()
            if idle > limit or not connected:
                self._close()
            elif self._link is None:
                self._attached.wait(_POLL_INTERVAL_SECONDS)
            else:
                self._link.wait(_POLL_INTERVAL_SECONDS)

    # -- any thread -----------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no member runs at the moment."""
        return self._call_began is None

    def attach(self, link: FrameLink) -> bool:
        """Use a connection with the client; False if the block has closed, or has one."""
        with self._member_lock:
            if self.closed or self._link is not None:
                return False
            self._link = link
        self._attached.set()
        return True

    def attach_peer(self, number: int, link: FrameLink) -> bool:
        """Use a connection with another block; False if this one has ended, or will soon."""
        if self.closed and not self._peers:
            return False
        self._peers.attach(number, link)
        return True

    def _take_members(self) -> None:
        """Add the members that have arrived; close the block if no more will."""
        link = self._link
        if link is None:
            return  # the block has ended
        with self._member_lock:
            try:
                for frame in link.receive():
                    if self.closed:
                        continue  # the client knows, or will know, that it was not received
                    if frame == END:
                        self.closed = True
                        break
                    self._add(decode_members(frame))
            except LinkClosed:
                self.closed = True

    def _add(self, new: NewMembers) -> None:
        spec = self.spec
        surroundings.apply(new.surroundings)
        for member in new.dropped:
            self.log.drop_value(member)
        if new.sources:
            self._peers.add_sources(new.sources)
        if new.peers and self.watch is not None:
            self._forwarding.connect(new.peers, self.watch.connect)
        if new.forwards:
            self._forwarding.add(new.forwards)
        spec.functions.extend(new.functions)  # type: ignore[attr-defined]
        self._functions.extend([None] * len(new.functions))
        for function, data, name, link, limits, declared in new.members:
            member = len(spec.calls)
            spec.labels.append(name)  # type: ignore[attr-defined]
            if link is not None:
                spec.links[member] = link  # type: ignore[index]
                if self.inputs:
                    self._peers.expect(member, link)
            if limits is not None:
                spec.limits[member] = limits  # type: ignore[index]
            if declared is not None:
                spec.declared[member] = declared  # type: ignore[index]
            # Last: other threads take the length of `calls` for the number of members.
            spec.calls.append((function, data))  # type: ignore[attr-defined]

    def _close(self) -> None:
        with self._member_lock:
            self.closed = True

    def defer_rest(self) -> None:
        self._close()
        super().defer_rest()

    def slot_released(self) -> None:
        self._waits = True
        super().slot_released()

    def stop_all(self) -> None:
        self._close()
        super().stop_all()

    def tick(self) -> None:
        began, link = self._call_began, self._link
        if (
            began is not None
            and not self.closed
            and len(self.spec.calls) > self.running + 1
            and perf_counter() - began > self._slice
        ):
            self.defer_rest()  # the members behind it would wait
        if link is not None:
            # Also once it is closed: the client must not believe that the link is cut.
            self._take_members()
            if not link.keep_alive():
                link.close()
                self.defer_rest()
        if self._forwarding:
            self._forwarding.flush()
        super().tick()

    def reports(self) -> list[Report]:
        # Read first: what is deferred is in the reports, then.
        closed, waits = self.closed, self._waits
        found = super().reports()
        while self._silent:
            found.append(self._silent.popleft())
        if closed and self._reported_waits is not waits:
            self._reported_waits = waits
            found.append(ClosedReport(self.spec.block, len(self.spec.calls), self._gave_way, waits))
        return found

    def deliver(self, final: bool = False) -> bool:
        """Send the new reports on the connection; False if it cannot be used.

        Parameters
        ----------
        final : bool
            Whether to wait until all is sent. Otherwise this never waits.
        """
        link = self._link
        if link is None:
            return False
        if not self._deliver_lock.acquire(blocking=final):
            return True  # another thread does this
        try:
            if not link.broken:
                self._delivered_at = perf_counter()
                link.send(*map(encode_report, self.reports()))
                while final and not link.flush() and link.keep_alive():
                    link.wait(_POLL_INTERVAL_SECONDS, sending=True)
                if final and link.has_unsent:
                    link.close()  # the client does not read: as if the connection were cut
            if link.broken:
                self._link_lost()
                return False
            return True
        finally:
            self._deliver_lock.release()

    def _link_lost(self) -> None:
        """Report again, by way of the scheduler, what the connection may have lost; once."""
        if not self._link_was_lost:
            self._link_was_lost = True
            self._close()
            self._reported_waits = None
            self.report_again()
