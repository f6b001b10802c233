"""Divides calls into so many lanes, in each of which one runs after the other.

Does not know how calls are run. It is how no more than so many run at once on a cluster that
has more slots: the calls of a lane wait for each other, and a lane gets more when it is empty.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from daskbatch.dispatch.cell import Cell

#: How long the calls that are put into a lane together should take. Seconds.
_SECONDS = 0.2

#: Short calls follow while others of the lane still run, so that a lane never runs dry. Seconds.
_SHORT = 0.05

#: How many calls the first look at them takes.
_FIRST = 1


class Lanes:
    """So many lanes.

    Parameters
    ----------
    cap : int
        How many calls may run at once.
    """

    def __init__(self, cap: int) -> None:
        self.cap = cap
        #: What each has been given, and is not over; oldest first.
        self._lanes: list[deque[list[Cell]]] = [deque() for _ in range(cap)]
        self._seconds: float | None = None

    def is_free(self) -> bool:
        """Say whether a lane can be given more."""
        deepest = 1 if self._is_short() else 0
        return any(self._depth(lane) <= deepest for lane in self._lanes)

    def take(self, gathered: deque[Cell]) -> list[Cell]:
        """Take calls for the lanes that can be given more, and let them wait for each other."""
        taken: list[Cell] = []
        # The emptiest first; a second helping only of short calls.
        for deepest in (0, 1) if self._is_short() else (0,):
            for lane in self._lanes:
                if gathered and self._depth(lane) == deepest:
                    taken += self._give(lane, gathered)
        return taken

    def _is_short(self) -> bool:
        return self._seconds is not None and self._seconds < _SHORT

    def _give(self, lane: deque[list[Cell]], gathered: deque[Cell]) -> list[Cell]:
        count = self._share(len(gathered))
        cells = [gathered.popleft() for _ in range(count)]
        cells = [cell for cell in cells if not cell.over]
        last = lane[-1][-1] if lane else None
        for cell in cells:
            if last is not None:
                cell.waits += ((last, 0),)
            last = cell
        if cells:
            lane.append(cells)
        return cells

    def _share(self, left: int) -> int:
        """Say how many calls to put into a lane: fewer towards the end, so that all end at once."""
        if self._seconds is None:
            return _FIRST
        most = int(_SECONDS / max(self._seconds, 1e-6))
        return max(1, min(most, left // (2 * self.cap)))

    def _depth(self, lane: deque[list[Cell]]) -> int:
        while lane and all(cell.over for cell in lane[0]):
            self._learn(lane.popleft())
        return len(lane)

    def _learn(self, cells: Sequence[Cell]) -> None:
        mean = sum(cell.seconds for cell in cells) / len(cells)
        self._seconds = mean if self._seconds is None else (self._seconds + mean) / 2
