"""Decides how many tasks a worker receives at a time. Pure.

A worker has one queue for each task that may run on it at the same time; it runs the tasks of one
queue one after another. A queue receives many short tasks at a time, and fewer towards the end of
the job, so that all queues end at about the same time (guided self-scheduling: Polychronopoulos
and Kuck, 1987). Only one thread at a time may use a `WorkerQueues` object.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Protocol

#: The capacity of a queue: how long its tasks should take together. Seconds.
_QUEUE_CAPACITY_SECONDS = 0.1

#: A queue whose tasks take less than this together receives more before it is empty. Seconds.
_REFILL_BELOW_SECONDS = 0.05

#: A queue is held up when the same unfinished task has been its first for this time. Seconds.
HELD_UP_SECONDS = 0.1

#: The time that it takes to send more tasks to a queue, approximately. Seconds.
_REFILL_DELAY_SECONDS = 0.01


class QueuedTask(Protocol):
    """An entry of a `WorkerQueue`: a task that is assigned to the worker."""

    kind: Hashable
    estimate: float


class WorkerQueue:
    """A queue of tasks that a worker runs one after another.

    Parameters
    ----------
    worker : hashable
        The worker that runs the tasks.
    number : int
        The number of the queue among the queues of the worker.
    bulk : bool
        Whether the queue may hold more than one task at a time.
    """

    def __init__(self, worker: Any, number: int, bulk: bool) -> None:
        self.worker = worker
        self.number = number
        self.bulk = bulk
        #: The unfinished tasks, in order. A dict, because any of them may be removed.
        self.items: dict[QueuedTask, None] = {}
        #: The time at which the present first task became the first. Seconds of the caller's clock.
        self.since = 0.0
        #: The expected duration of all tasks together. Seconds.
        self.load = 0.0

    @property
    def head(self) -> Any:
        """The task that runs or will run next; None if the queue is empty."""
        return next(iter(self.items), None)

    def put(self, item: QueuedTask, now: float) -> None:
        """Add a task at the end."""
        if not self.items:
            self.since, self.load = now, 0.0
        self.items[item] = None
        self.load += item.estimate

    def remove(self, item: QueuedTask, now: float) -> None:
        """Remove a task that is over or was taken back."""
        if item in self.items:
            # A task that is not the first was taken back. Then `since` stays as it is, so that
            # others behind the same first task can be taken back soon.
            self.since = now if next(iter(self.items)) is item else self.since
            del self.items[item]
            self.load -= item.estimate

    def room(self, now: float) -> float:
        """Return how many seconds of short tasks the queue can still receive; 0 if none."""
        if self.items:
            busy = (
                not self.bulk
                or self.load >= _REFILL_BELOW_SECONDS
                or now - self.since >= HELD_UP_SECONDS
            )
            return 0.0 if busy else _QUEUE_CAPACITY_SECONDS - self.load
        return _QUEUE_CAPACITY_SECONDS

    def waiting(self) -> list[Any]:
        """Return all tasks except the first."""
        return list(self.items)[1:]


class WorkerQueues:
    """The queues of all workers of a job.

    Parameters
    ----------
    concurrency : int
        The number of queues of each worker.
    """

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._by_worker: dict[Any, list[WorkerQueue]] = {}

    def add(self, worker: Any, bulk: bool = True) -> None:
        """Add a worker; `WorkerQueue` describes `bulk`."""
        self._by_worker[worker] = [
            WorkerQueue(worker, number, bulk) for number in range(self._concurrency)
        ]

    def remove(self, worker: Any) -> None:
        """Remove a worker that has left the cluster."""
        self._by_worker.pop(worker, None)

    def __len__(self) -> int:
        return self._concurrency * len(self._by_worker)

    def __iter__(self) -> Iterator[WorkerQueue]:
        # One queue of each worker first, so that a few tasks are spread over all workers.
        for number in range(self._concurrency):
            for queues in self._by_worker.values():
                yield queues[number]

    def with_room(self, now: float) -> list[WorkerQueue]:
        """Return the queues that can receive tasks, the empty ones first."""
        found = [queue for queue in self if queue.room(now) > 0]
        return sorted(found, key=lambda queue: bool(queue.items))

    def most_at_once(self, ready: int, seconds: float | None) -> int:
        """Return how many ready tasks one queue may receive at most.

        Parameters
        ----------
        ready : int
            The number of ready tasks.
        seconds : float, optional
            The expected duration of one of them.
        """
        queues = max(1, len(self))
        # Divide very short tasks evenly among the queues: to send more tasks later would take
        # longer than to run them.
        very_short = 0 if seconds is None else int(_REFILL_DELAY_SECONDS / max(seconds, 1e-6))
        return max(1, ready // (2 * queues), min(-(-ready // queues), very_short))

    def has_empty(self) -> bool:
        """Return whether any queue is empty."""
        return any(not queue.items for queue in self)

    def with_waiting(self) -> list[WorkerQueue]:
        """Return the queues that hold more than one task."""
        return [queue for queue in self if len(queue.items) > 1]
