"""Divides calls into so many lanes, in each of which one runs after the other.

Does not know how calls are run. It is how no more than so many run at once on a cluster that
has more slots: the calls of a lane wait for each other, and a lane gets more when it is empty;
if there is nothing else, then those that wait behind a call that takes long in another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from time import monotonic

from daskbatch.dispatch.task_record import TaskRecord

#: How long the calls that are put into a lane together should take. Seconds.
_SECONDS = 0.2

#: Short calls follow while others of the lane still run, so that a lane never runs dry. Seconds.
_SHORT = 0.05

#: A lane that has not moved on for so long is held up. Seconds.
_LONG = 0.1

#: How many calls the first look at them takes.
_FIRST = 1


class ConcurrencyLimit:
    """So many lanes.

    Parameters
    ----------
    cap : int
        How many calls may run at once.
    clock : callable
        Says what time it is. Seconds.
    """

    def __init__(self, cap: int, clock: Callable[[], float] = monotonic) -> None:
        self.cap = cap
        self._clock = clock
        self._lanes = [_Lane() for _ in range(cap)]
        self._seconds: float | None = None

    def is_free(self) -> bool:
        """Say whether a lane can be given more."""
        now = self._look()
        return any(self._has_room(lane, now) for lane in self._lanes)

    def take(self, gathered: deque[TaskRecord]) -> list[TaskRecord]:
        """Take calls for the lanes that can be given more, and let them wait for each other."""
        now = self._look()
        taken: list[TaskRecord] = []
        # The emptiest first.
        for depth in (0, 1):
            for lane in self._lanes:
                if gathered and len(lane.helpings) == depth and self._has_room(lane, now):
                    taken += self._give(lane, gathered)
        return taken

    def seconds_to_wait(self) -> float | None:
        """Say in how many seconds a lane counts as held up that has calls for an empty one.

        None is never.
        """
        now = self._look()
        if all(lane.helpings for lane in self._lanes):
            return None
        since = [lane.since for lane in self._lanes if lane.has_several()]
        return max(0.0, min(since) + _LONG - now) if since else None

    def divert(self) -> list[TaskRecord]:
        """Put what waits in lanes that are held up into empty ones; returns these calls.

        The first of each waits no longer for what it only came behind.
        """
        now = self._look()
        empty = [lane for lane in self._lanes if not lane.helpings]
        held_up = [lane for lane in self._lanes if lane.has_several() and lane.is_held_up(now)]
        diverted: list[TaskRecord] = []
        served = held_up[: len(empty)]
        for count, lane in enumerate(served):
            share = len(empty) // (len(served) - count)
            first, *behind = lane.left()
            lane.helpings = deque([[first]])
            for position in range(share):
                piece = behind[: -(-len(behind) // (share - position))]
                behind = behind[len(piece) :]
                if piece:
                    # It still waits for what it takes the results of.
                    piece[0].waits = tuple(each for each in piece[0].waits if each[1])
                    empty.pop().helpings.append(piece)
                    diverted += piece
        self._look()
        return diverted

    def _look(self) -> float:
        """Take in what is over by now; returns what time it is."""
        now = self._clock()
        for lane in self._lanes:
            for helping in lane.look(now):
                self._learn(helping)
        return now

    def _has_room(self, lane: _Lane, now: float) -> bool:
        if not lane.helpings:
            return True
        # A second helping only of short calls.
        short = self._seconds is not None and self._seconds < _SHORT
        return short and len(lane.helpings) == 1 and not lane.is_held_up(now)

    def _give(self, lane: _Lane, gathered: deque[TaskRecord]) -> list[TaskRecord]:
        count = self._share(len(gathered))
        records = [gathered.popleft() for _ in range(count)]
        records = [record for record in records if not record.over]
        last = lane.helpings[-1][-1] if lane.helpings else None
        for record in records:
            if last is not None:
                record.waits += ((last, 0),)
            last = record
        if records:
            lane.helpings.append(records)
        return records

    def _share(self, left: int) -> int:
        """Say how many calls to put into a lane: fewer towards the end, so that all end at once."""
        if self._seconds is None:
            return _FIRST
        most = int(_SECONDS / max(self._seconds, 1e-6))
        return max(1, min(most, left // (2 * self.cap)))

    def _learn(self, records: Sequence[TaskRecord]) -> None:
        mean = sum(record.seconds for record in records) / len(records)
        self._seconds = mean if self._seconds is None else (self._seconds + mean) / 2


class _Lane:
    """Calls of which one runs after the other."""

    def __init__(self) -> None:
        #: What it has been given, and is not over; oldest first.
        self.helpings: deque[list[TaskRecord]] = deque()
        #: The first call that is not over, and since when it has been seen to be that.
        self.first: TaskRecord | None = None
        self.since = 0.0

    def look(self, now: float) -> Iterator[list[TaskRecord]]:
        """Take in what is over by now; returns the helpings that are."""
        first = None
        while self.helpings and first is None:
            first = next((record for record in self.helpings[0] if not record.over), None)
            if first is None:
                yield self.helpings.popleft()
        if first is not self.first:
            self.first, self.since = first, now

    def left(self) -> Iterator[TaskRecord]:
        return (record for helping in self.helpings for record in helping if not record.over)

    def has_several(self) -> bool:
        return len(list(islice(self.left(), 2))) == 2

    def is_held_up(self, now: float) -> bool:
        """Say whether its first call takes long."""
        return self.first is not None and now - self.since >= _LONG
