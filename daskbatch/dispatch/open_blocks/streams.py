"""Finds held tasks that are sent to an open block while what they wait for runs in other ones.

The workers then send each other the outcomes (`worker.open_blocks.forwarding`), and the client is
not on the way. A slot waits for such a task, so it is sent only while all that it waits for is
short, and has been sent.

A task that writes is not sent in this way. Until the client knows the outcome of what it waits for,
that may be lost with its worker, and run again: it must then find what it reads.

Not thread-safe: the dispatcher's lock is held.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable

from daskbatch.dispatch.open_blocks.eligibility import Eligibility, has_values
from daskbatch.dispatch.open_blocks.held import HeldTasks
from daskbatch.dispatch.open_blocks.open_block import OpenBlock, Urgency, is_held
from daskbatch.dispatch.open_blocks.pause import Pause
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.plan.hazards import NEEDS

#: What a task waits for is expected to run for at most this time.
_MAX_SECONDS = 0.002

#: An open block exchanges outcomes with at most this many others: each takes a connection.
_MAX_PEERS = 16

# Looking up a member of an enum takes long.
_DONE = Phase.DONE


class Streams:
    """The tasks that may be sent before what they wait for is over.

    Not thread-safe.

    Parameters
    ----------
    held : HeldTasks
        The tasks that wait at the client.
    eligibility : Eligibility
        Which tasks may be members.
    expected : callable
        Returns how long a task is expected to run, if that is known.
    find : callable
        Returns the open block with a number, if there is one.
    """

    def __init__(
        self,
        held: HeldTasks,
        eligibility: Eligibility,
        expected: Callable[[TaskRecord], float | None],
        find: Callable[[int], OpenBlock | None],
    ) -> None:
        self._held = held
        self._eligibility = eligibility
        self._expected = expected
        self._find = find
        #: By placement, heaps.
        self._waiting: dict[Hashable, list[Urgency]] = {}
        #: Unfinished members that wait for other blocks, or for such members.
        self._sent: set[TaskRecord] = set()
        self._pause = Pause()

    def __bool__(self) -> bool:
        """Return whether any task was sent before what it waits for, and is not over."""
        return bool(self._sent)

    def note(self, record: TaskRecord, urgency: Callable[[TaskRecord], Urgency]) -> bool:
        """Record that a task was sent; returns whether other ones may be sent now.

        Parameters
        ----------
        record : TaskRecord
            A member of an open block.
        urgency : callable
            Returns the entry of a task in a heap.
        """
        if self._sent and record.waits and self.follows_stream(record):
            self._sent.add(record)
        found = False
        if self._pause.lasts:
            return found
        for waiting in self._held.waiting_for(record):
            if (
                is_held(waiting)
                and not waiting.writes
                and waiting.call is not None
                and self._awaited(waiting)
                and self._eligibility.may_be_member(waiting)
                and has_values(waiting, streamed=True)
            ):
                heap = self._waiting.setdefault(waiting.options.placement_key, [])
                heapq.heappush(heap, urgency(waiting))
                found = True
        return found

    def follows_stream(self, record: TaskRecord) -> bool:
        """Return whether a task waits for a member that was sent before what that waits for."""
        sent = self._sent
        return bool(sent) and any(before in sent for before, _ in record.waits)

    def first(self, found: OpenBlock) -> tuple[TaskRecord, set[OpenBlock]] | None:
        """Return the most urgent task for an open block that may be sent now, if there is one.

        With it the other open blocks, which run what it waits for.
        """
        heap = self._waiting.get(found.placement)
        while heap:
            record = heap[0].record
            if is_held(record) and self._eligibility.can_be_sent(record):
                blocks = self._awaited(record)
                if blocks and found.num_peers < _MAX_PEERS:
                    return record, blocks
            heapq.heappop(heap)
        return None

    def send(self, record: TaskRecord) -> None:
        """Record that a task is sent before what it waits for is over."""
        self._sent.add(record)

    def over(self, record: TaskRecord) -> None:
        """Record that a task is over, or will be placed again."""
        if record in self._sent:
            self._sent.discard(record)
            if record.phase == _DONE:
                self._pause.succeed()

    def was_silent(self) -> None:
        """Record that the outcome of a task that is over has not arrived at another block."""
        self._pause.fail()  # the workers may not reach each other

    def forget_waiting(self) -> None:
        """Record that no task is held."""
        self._waiting.clear()

    def clear(self) -> None:
        """Forget all."""
        self._waiting.clear()
        self._sent.clear()

    def _awaited(self, record: TaskRecord) -> set[OpenBlock] | None:
        """Return the open blocks that have all that a task waits for; None if it cannot be sent."""
        blocks: set[OpenBlock] = set()
        for before, why in record.waits:
            if before.phase < _DONE:
                block = before.block
                found = None if block is None or not block.open else self._find(block.number)
                if found is None or not found.is_open or found.address is None:
                    return None
                seconds = self._expected(before)
                if seconds is None or seconds > _MAX_SECONDS or found.num_peers > _MAX_PEERS:
                    return None
                blocks.add(found)
            elif before.waits or (before.phase > _DONE and why & NEEDS):
                return None  # it was cancelled, and its own waits count; or this task does not run
        if any(each.placement == record.options.placement_key for each in blocks):
            return None  # it is sent once it is ready, or behind what it waits for
        return blocks
