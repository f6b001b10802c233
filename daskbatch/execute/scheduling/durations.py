"""Estimates how long a task takes, from the durations of earlier tasks of the same kind. Pure.

Several jobs of one context share a `Durations`: each operation is one step of CPython, so several
threads may use it. A lost update only makes an estimate a little older.
"""

from __future__ import annotations

from collections.abc import Hashable

#: The weight of a new duration in the moving average of the durations.
_UPDATE_WEIGHT = 0.3


class Durations:
    """The average duration of the tasks of each kind."""

    def __init__(self) -> None:
        self._means: dict[Hashable, float] = {}
        self._large: set[Hashable] = set()

    def learn(self, kind: Hashable, seconds: float) -> None:
        """Record the duration of a task of a kind. Seconds."""
        if kind is not None:
            mean = self._means.get(kind)
            self._means[kind] = (
                seconds if mean is None else mean + _UPDATE_WEIGHT * (seconds - mean)
            )

    def learn_large(self, kind: Hashable) -> None:
        """Record that a task of a kind has returned a large value.

        From then on, each task of this kind must be the only task in its queue.
        """
        self._large.add(kind)

    def expect(self, kind: Hashable) -> float | None:
        """Return the expected duration of a task; None if it must be the only task in its queue."""
        return None if kind is None or kind in self._large else self._means.get(kind)
