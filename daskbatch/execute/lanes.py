"""Decides how many tasks a worker receives at a time. Pure.

A worker has as many lanes as tasks may run on it at the same time. A lane is a queue of tasks
that the worker runs one after another. A lane receives many short tasks at a time, and fewer
towards the end of the job, so that all lanes end at about the same time (guided self-scheduling:
Polychronopoulos and Kuck, 1987). Only one thread at a time may use a `Lanes` object.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Protocol

#: The capacity of a lane: how long its tasks should take together. Seconds.
_LANE_CAPACITY_SECONDS = 0.1

#: A lane whose tasks take less than this together receives more before it is empty. Seconds.
_REFILL_BELOW_SECONDS = 0.05

#: A lane is held up when the same unfinished task has been its first for this time. Seconds.
HELD_UP_SECONDS = 0.1

#: The time that it takes to send more tasks to a lane, approximately. Seconds.
_REFILL_DELAY_SECONDS = 0.01

#: The weight of a new duration in the moving average of the durations.
_UPDATE_WEIGHT = 0.3


class LaneItem(Protocol):
    """An entry of a lane: a task that is assigned to the worker."""

    kind: Hashable
    estimate: float


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

        From then on, each task of this kind must be the only task in its lane.
        """
        self._large.add(kind)

    def expect(self, kind: Hashable) -> float | None:
        """Return the expected duration of a task; None if it must be the only task in its lane."""
        return None if kind is None or kind in self._large else self._means.get(kind)


class Lane:
    """A queue of tasks that a worker runs one after another.

    Parameters
    ----------
    worker : hashable
        The worker that runs the tasks.
    number : int
        The number of the lane among the lanes of the worker.
    bulk : bool
        Whether the lane may hold more than one task at a time.
    """

    def __init__(self, worker: Any, number: int, bulk: bool) -> None:
        self.worker = worker
        self.number = number
        self.bulk = bulk
        #: The unfinished tasks, in order. A dict, because any of them may be removed.
        self.items: dict[LaneItem, None] = {}
        #: The time at which the present first task became the first. Seconds of the caller's clock.
        self.since = 0.0
        #: The expected duration of all tasks together. Seconds.
        self.load = 0.0

    @property
    def head(self) -> Any:
        """The task that runs or will run next; None if the lane is empty."""
        return next(iter(self.items), None)

    def put(self, item: LaneItem, now: float) -> None:
        """Add a task at the end."""
        if not self.items:
            self.since, self.load = now, 0.0
        self.items[item] = None
        self.load += item.estimate

    def remove(self, item: LaneItem, now: float) -> None:
        """Remove a task that is over or was taken back."""
        if item in self.items:
            # A task that is not the first was taken back. Then `since` stays as it is, so that
            # others behind the same first task can be taken back soon.
            self.since = now if next(iter(self.items)) is item else self.since
            del self.items[item]
            self.load -= item.estimate

    def room(self, now: float) -> float:
        """Return how many seconds of short tasks the lane can still receive; 0 if none."""
        if self.items:
            busy = (
                not self.bulk
                or self.load >= _REFILL_BELOW_SECONDS
                or now - self.since >= HELD_UP_SECONDS
            )
            return 0.0 if busy else _LANE_CAPACITY_SECONDS - self.load
        return _LANE_CAPACITY_SECONDS

    def waiting(self) -> list[Any]:
        """Return all tasks except the first."""
        return list(self.items)[1:]


class Lanes:
    """The lanes of all workers of a job.

    Parameters
    ----------
    concurrency : int
        The number of lanes of each worker.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._by_worker: dict[Any, list[Lane]] = {}

    def add(self, worker: Any, bulk: bool = True) -> None:
        """Add a worker; `Lane` describes `bulk`."""
        self._by_worker[worker] = [
            Lane(worker, number, bulk) for number in range(self._concurrency)
        ]

    def remove(self, worker: Any) -> None:
        """Remove a worker that has left the cluster."""
        self._by_worker.pop(worker, None)

    def __len__(self) -> int:
        return self._concurrency * len(self._by_worker)

    def __iter__(self) -> Iterator[Lane]:
        # One lane of each worker first, so that a few tasks are spread over all workers.
        for number in range(self._concurrency):
            for lanes in self._by_worker.values():
                yield lanes[number]

    def with_room(self, now: float) -> list[Lane]:
        """Return the lanes that can receive tasks, the empty ones first."""
        found = [lane for lane in self if lane.room(now) > 0]
        return sorted(found, key=lambda lane: bool(lane.items))

    def most_at_once(self, ready: int, seconds: float | None) -> int:
        """Return how many ready tasks one lane may receive at most.

        Parameters
        ----------
        ready : int
            The number of ready tasks.
        seconds : float, optional
            The expected duration of one of them.
        """
        lanes = max(1, len(self))
        # Divide very short tasks evenly among the lanes: to send more tasks later would take
        # longer than to run them.
        very_short = 0 if seconds is None else int(_REFILL_DELAY_SECONDS / max(seconds, 1e-6))
        return max(1, ready // (2 * lanes), min(-(-ready // lanes), very_short))

    def has_empty(self) -> bool:
        """Return whether any lane is empty."""
        return any(not lane.items for lane in self)

    def with_waiting(self) -> list[Lane]:
        """Return the lanes that hold more than one task."""
        return [lane for lane in self if len(lane.items) > 1]
