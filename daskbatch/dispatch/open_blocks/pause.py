"""Keeps a way from being taken for a while after it has failed several times in a row.

Not thread-safe: the dispatcher's lock is held.
"""

from __future__ import annotations

from time import monotonic

#: How many failures in a row begin a pause.
_MAX_FAILURES = 3


class Pause:
    """The pauses of one way. Not thread-safe.

    Parameters
    ----------
    seconds : float
        How long a pause lasts.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._failures = 0
        self._until = 0.0

    @property
    def lasts(self) -> bool:
        """Whether the way is not to be taken now."""
        return monotonic() < self._until

    def succeed(self) -> None:
        """Record that the way leads to its end."""
        self._failures = 0

    def fail(self) -> bool:
        """Record that it does not; returns whether a pause begins."""
        self._failures += 1
        if self._failures < _MAX_FAILURES:
            return False
        self.begin()
        return True

    def begin(self) -> None:
        """Begin a pause."""
        self._failures = 0
        self._until = monotonic() + self._seconds
