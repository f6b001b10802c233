"""How many tasks a worker is given at a time: lanes, and how much goes into each. Pure.

A worker has as many lanes as tasks may run on it at once; the tasks of a lane run one after
another. Short tasks are put into a lane many at a time, fewer towards the end, so that all
lanes end together (guided self-scheduling: Polychronopoulos and Kuck, 1987).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Protocol

#: How long the tasks that wait in a lane should take together. Seconds.
_FULL_SECONDS = 0.1

#: A lane whose tasks take less than this in all is given more before it is empty. Seconds.
_LOW_SECONDS = 0.05

#: A lane whose first task has not been over for this long is held up. Seconds.
HELD_UP_SECONDS = 0.1

#: It takes about this long to give a lane more. Seconds.
_SOON_SECONDS = 0.01

#: How much a new duration counts beside those before.
_WEIGHT = 0.3


class LaneItem(Protocol):
    """What a lane holds: a task that was given to its worker."""

    kind: Hashable
    estimate: float


class Durations:
    """How long tasks of each kind have taken."""

    def __init__(self) -> None:
        self._means: dict[Hashable, float] = {}
        self._large: set[Hashable] = set()

    def learn(self, kind: Hashable, seconds: float) -> None:
        """Note how long a task of a kind has taken. Seconds."""
        if kind is not None:
            mean = self._means.get(kind)
            self._means[kind] = seconds if mean is None else mean + _WEIGHT * (seconds - mean)

    def learn_large(self, kind: Hashable) -> None:
        """Note that a task of a kind has returned much: its like have a lane to themselves."""
        self._large.add(kind)

    def expect(self, kind: Hashable) -> float | None:
        """Return how long a task of a kind takes; None if it is to have a lane to itself."""
        return None if kind is None or kind in self._large else self._means.get(kind)


class Lane:
    """The tasks that a worker was given to run one after another.

    Parameters
    ----------
    worker : hashable
        The worker.
    bulk : bool
        Whether it takes more than one task at a time.
    """

    def __init__(self, worker: Any, number: int, bulk: bool) -> None:
        self.worker = worker
        self.number = number
        self.bulk = bulk
        #: Those that are not over, in order; a dict, since any may leave.
        self.items: dict[LaneItem, None] = {}
        #: When the first of them became the first. Seconds of a clock of the caller's.
        self.since = 0.0
        self.load = 0.0

    @property
    def head(self) -> Any:
        """The task that runs, or is about to; None if there is none."""
        return next(iter(self.items), None)

    def put(self, item: LaneItem, now: float) -> None:
        """Add a task."""
        if not self.items:
            self.since, self.load = now, 0.0
        self.items[item] = None
        self.load += item.estimate

    def remove(self, item: LaneItem, now: float) -> None:
        """Remove a task that is over, or was taken back."""
        if item in self.items:
            # Even if it was not the first: then it was taken back, and others may be soon.
            self.since = now if next(iter(self.items)) is item else self.since
            del self.items[item]
            self.load -= item.estimate

    def room(self, now: float) -> float:
        """Return for how many seconds of short tasks there is room; 0 if for none."""
        if self.items:
            busy = not self.bulk or self.load >= _LOW_SECONDS or now - self.since >= HELD_UP_SECONDS
            return 0.0 if busy else _FULL_SECONDS - self.load
        return _FULL_SECONDS

    def waiting(self) -> list[Any]:
        """Return the tasks behind the first."""
        return list(self.items)[1:]


class Lanes:
    """The lanes of all workers of a job.

    Parameters
    ----------
    concurrency : int
        How many each worker has.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._by_worker: dict[Any, list[Lane]] = {}

    def add(self, worker: Any, bulk: bool = True) -> None:
        """Add a worker; see `Lane`."""
        self._by_worker[worker] = [
            Lane(worker, number, bulk) for number in range(self._concurrency)
        ]

    def remove(self, worker: Any) -> None:
        """Remove a worker that is gone."""
        self._by_worker.pop(worker, None)

    def __len__(self) -> int:
        return self._concurrency * len(self._by_worker)

    def __iter__(self) -> Iterator[Lane]:
        # First one lane of each worker, so that few tasks are spread over all of them.
        for number in range(self._concurrency):
            for lanes in self._by_worker.values():
                yield lanes[number]

    def with_room(self, now: float) -> list[Lane]:
        """Return the lanes that take tasks: the empty ones first."""
        found = [lane for lane in self if lane.room(now) > 0]
        return sorted(found, key=lambda lane: bool(lane.items))

    def most_at_once(self, ready: int, seconds: float | None) -> int:
        """Return how many of the tasks that are ready one lane takes at most.

        Parameters
        ----------
        ready : int
            How many are ready.
        seconds : float, optional
            How long one of them is expected to take.
        """
        lanes = max(1, len(self))
        # What is done in no time is divided evenly: another round would take longer.
        soon = 0 if seconds is None else int(_SOON_SECONDS / max(seconds, 1e-6))
        return max(1, ready // (2 * lanes), min(-(-ready // lanes), soon))

    def has_empty(self) -> bool:
        """Return whether a lane has nothing to do."""
        return any(not lane.items for lane in self)

    def with_waiting(self) -> list[Lane]:
        """Return the lanes with tasks behind the first."""
        return [lane for lane in self if len(lane.items) > 1]
