"""Averages of how long calls took, and the largest values that they returned.

Does not know when calls run: the caller reports what they took. Not thread-safe.
"""

from __future__ import annotations

from collections.abc import Hashable

#: The average weighs at most this many earlier calls, so that it follows a change.
_MAX_WEIGHT_CALLS = 200


class Durations:
    """Averages by family. Calls of one family are expected to be alike.

    Examples
    --------
    >>> durations = Durations()
    >>> durations.seconds("simulate") is None
    True
    >>> durations.add("simulate", calls=2, seconds=3.0, largest=100)
    >>> durations.seconds("simulate")
    1.5
    """

    def __init__(self) -> None:
        #: By family: the average duration, its weight in calls, the bytes of the largest value.
        self._families: dict[Hashable, tuple[float, float, int]] = {}

    def add(self, family: Hashable, calls: int, seconds: float, largest: int) -> None:
        """Record the total duration of some calls, and the bytes of their largest value."""
        mean, weight, most = self._families.get(family, (0.0, 0.0, 0))
        total = weight + calls
        mean += (seconds / calls - mean) * (calls / total)
        self._families[family] = mean, min(total, _MAX_WEIGHT_CALLS), max(most, largest)

    def seconds(self, family: Hashable) -> float | None:
        """Return the average duration in seconds; None if no call has been recorded."""
        found = self._families.get(family)
        return None if found is None else found[0]

    def largest(self, family: Hashable) -> int | None:
        """Return the bytes of the largest value; None if no call has been recorded."""
        found = self._families.get(family)
        return None if found is None else found[2]
