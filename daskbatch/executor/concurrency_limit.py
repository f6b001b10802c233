"""Limits how many calls run at once on a cluster with more slots.

The calls form as many *chains* as calls may run at once; each call is ordered after the previous
one of its chain. An idle chain takes new calls, or, if there are none, the calls
queued behind a long-running one. Sequences take calls in *portions*, which shrink towards the end
as in guided self-scheduling (Polychronopoulos and Kuck, 1987), so that all chains end at about
the same time. Not thread-safe: the caller holds the lock under which tasks are settled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from time import monotonic

from daskbatch.dispatch.task_record import TaskRecord

#: How long the calls of one portion should take together.
_PORTION_SECONDS = 0.2

#: Shorter calls are put into a chain while its last portion still runs, so that the worker's
#: slot does not idle between portions.
_SHORT_CALL_SECONDS = 0.05

#: A chain whose first call runs longer than this is delayed.
_DELAYED_AFTER_SECONDS = 0.1

#: The number of calls in a portion before any run time is known.
_FIRST_PORTION_CALLS = 1


class ConcurrencyLimit:
    """Orders calls so that no more than a given number run at once; not thread-safe.

    Parameters
    ----------
    max_running : int
        How many calls may run at once.
    clock : callable
        Returns the current time in seconds.
    """

    def __init__(self, max_running: int, clock: Callable[[], float] = monotonic) -> None:
        self.max_running = max_running
        self._clock = clock
        self._chains = [_Chain() for _ in range(max_running)]
        #: The mean run time of calls, if any has run.
        self._mean_seconds: float | None = None

    @property
    def is_idle(self) -> bool:
        """Whether no call is in a chain."""
        return not any(chain.portions for chain in self._chains)

    def is_free(self) -> bool:
        """Say whether a chain has room for more calls."""
        now = self._refresh()
        return any(self._has_room(chain, now) for chain in self._chains)

    def take(self, queued: deque[TaskRecord]) -> list[TaskRecord]:
        """Remove calls from a queue, and append them to the chains that have room.

        Returns the calls, with what each waits for.
        """
        now = self._refresh()
        taken: list[TaskRecord] = []
        # Fill the empty chains first.
        for depth in (0, 1):
            for chain in self._chains:
                if queued and len(chain.portions) == depth and self._has_room(chain, now):
                    taken += self._append_portion(chain, queued)
        return taken

    def seconds_to_wait(self) -> float | None:
        """Return the seconds until `divert` can move calls to an empty chain; None for never."""
        now = self._refresh()
        if all(chain.portions for chain in self._chains):
            return None
        since = [chain.since for chain in self._chains if chain.has_several()]
        return max(0.0, min(since) + _DELAYED_AFTER_SECONDS - now) if since else None

    def divert(self) -> list[TaskRecord]:
        """Move the calls queued in delayed chains to empty ones, and return these calls.

        The first call of each moved portion no longer waits for the call that it was ordered
        after.
        """
        now = self._refresh()
        empty = [chain for chain in self._chains if not chain.portions]
        delayed = [chain for chain in self._chains if chain.has_several() and chain.is_delayed(now)]
        diverted: list[TaskRecord] = []
        served = delayed[: len(empty)]
        for count, chain in enumerate(served):
            share = len(empty) // (len(served) - count)
            first, *behind = chain.unfinished()
            chain.portions = deque([[first]])
            for position in range(share):
                portion = behind[: -(-len(behind) // (share - position))]
                behind = behind[len(portion) :]
                if portion:
                    # It still waits for the calls whose results it takes: their reason is not 0.
                    portion[0].waits = tuple(each for each in portion[0].waits if each[1])
                    empty.pop().portions.append(portion)
                    diverted += portion
        self._refresh()
        return diverted

    def _refresh(self) -> float:
        """Remove the portions that are over from all chains; return the current time."""
        now = self._clock()
        for chain in self._chains:
            for portion in chain.pop_finished(now):
                self._learn(portion)
        return now

    def _has_room(self, chain: _Chain, now: float) -> bool:
        if not chain.portions:
            return True
        # Only short calls get a second portion ahead of time.
        is_short = self._mean_seconds is not None and self._mean_seconds < _SHORT_CALL_SECONDS
        return is_short and len(chain.portions) == 1 and not chain.is_delayed(now)

    def _append_portion(self, chain: _Chain, queued: deque[TaskRecord]) -> list[TaskRecord]:
        count = self._portion_size(len(queued))
        records = [queued.popleft() for _ in range(count)]
        records = [record for record in records if not record.over]
        previous = chain.portions[-1][-1] if chain.portions else None
        for record in records:
            if previous is not None:
                # The reason 0 orders the calls, and lets one run even if the other fails.
                record.waits += ((previous, 0),)
            previous = record
        if records:
            chain.portions.append(records)
        return records

    def _portion_size(self, queued_calls: int) -> int:
        """Return how many calls to put into a chain: fewer towards the end."""
        if self._mean_seconds is None:
            return _FIRST_PORTION_CALLS
        most = int(_PORTION_SECONDS / max(self._mean_seconds, 1e-6))
        return max(1, min(most, queued_calls // (2 * self.max_running)))

    def _learn(self, records: Sequence[TaskRecord]) -> None:
        """Update the mean run time by that of a finished portion."""
        mean = sum(record.seconds for record in records) / len(records)
        known = self._mean_seconds
        self._mean_seconds = mean if known is None else (known + mean) / 2


class _Chain:
    """Calls of which each is ordered after the previous one; not thread-safe."""

    def __init__(self) -> None:
        #: The portions that are not over, oldest first.
        self.portions: deque[list[TaskRecord]] = deque()
        #: The first call that is not over, and when this was first seen.
        self.first: TaskRecord | None = None
        self.since = 0.0

    def pop_finished(self, now: float) -> Iterator[list[TaskRecord]]:
        """Remove and yield the portions that are over."""
        first = None
        while self.portions and first is None:
            first = next((record for record in self.portions[0] if not record.over), None)
            if first is None:
                yield self.portions.popleft()
        if first is not self.first:
            self.first, self.since = first, now

    def unfinished(self) -> Iterator[TaskRecord]:
        return (record for portion in self.portions for record in portion if not record.over)

    def has_several(self) -> bool:
        """Say whether calls wait behind the first one."""
        return len(list(islice(self.unfinished(), 2))) == 2

    def is_delayed(self, now: float) -> bool:
        """Say whether the first call has been running for long."""
        return self.first is not None and now - self.since >= _DELAYED_AFTER_SECONDS
