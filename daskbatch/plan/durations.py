"""What is known of how long calls take and how much they return.

Does not know when they run; it is told what they took.
"""

from __future__ import annotations

from collections.abc import Hashable

#: How many calls the average remembers, so that it follows a change.
_MEMORY = 200


class Durations:
    """Averages by family: calls of one family can be expected to be alike.

    Examples
    --------
    >>> known = Durations()
    >>> known.seconds("simulate") is None
    True
    >>> known.add("simulate", calls=2, seconds=3.0, largest=100)
    >>> known.seconds("simulate")
    1.5
    """

    def __init__(self) -> None:
        self._known: dict[Hashable, tuple[float, float, int]] = {}

    def add(self, family: Hashable, calls: int, seconds: float, largest: int) -> None:
        """Take in what some calls took together, and the bytes of their largest value."""
        mean, weight, most = self._known.get(family, (0.0, 0.0, 0))
        total = weight + calls
        mean += (seconds / calls - mean) * (calls / total)
        self._known[family] = mean, min(total, _MEMORY), max(most, largest)

    def seconds(self, family: Hashable) -> float | None:
        """Give the average duration; None if nobody knows."""
        found = self._known.get(family)
        return None if found is None else found[0]

    def largest(self, family: Hashable) -> int | None:
        """Give the bytes of the largest value seen; None if nobody knows."""
        found = self._known.get(family)
        return None if found is None else found[2]
