"""Decides which ready task a worker takes next, and which workers may take a task. Pure.

Only one thread at a time may use a `ReadyQueue`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

W = TypeVar("W", bound=Hashable)

#: The locality of a task that prefers no worker, as most tasks do.
INDIFFERENT: Mapping[object, int] = {}

_NO_WORKERS: frozenset[object] = frozenset()


class ReadyQueue:
    """The tasks that may run, in the order in which each worker takes them.

    A worker first takes the tasks that prefer it, the strongest preference first. Then it takes
    the tasks that prefer no worker. Then it takes the tasks that prefer another worker, since a
    preference must not keep a worker idle. Among equal tasks it takes the one with the smallest
    rank. A worker never takes a task for which it is forbidden.

    To add a task costs the logarithm of the number of tasks for each worker that it prefers. To
    take one costs that logarithm for each different set of forbidden workers. Not thread-safe.

    Examples
    --------
    >>> queue = ReadyQueue()
    >>> queue.add(0, rank=0)
    >>> queue.add(1, rank=1, locality={"here": 2})
    >>> queue.take("here"), queue.take("here"), queue.take("here")
    (1, 0, None)
    """

    def __init__(self) -> None:
        self._entries = itertools.count()
        #: The valid entry of each task; the heaps may hold older ones, which are skipped.
        self._current: dict[int, int] = {}
        self._preferred: dict[Hashable, list[tuple[int, int, int, int]]] = {}
        self._others: dict[frozenset[object], list[tuple[bool, int, int, int]]] = {}

    def __len__(self) -> int:
        return len(self._current)

    def __iter__(self) -> Iterator[int]:
        return iter(list(self._current))

    def __contains__(self, task: object) -> bool:
        return task in self._current

    def add(
        self,
        task: int,
        rank: int,
        locality: Mapping[W, int] = INDIFFERENT,  # type: ignore[assignment]
        forbidden: frozenset[W] = _NO_WORKERS,  # type: ignore[assignment]
    ) -> None:
        """Add a task, or replace its rank and its workers.

        Parameters
        ----------
        task : int
            The task.
        rank : int
            The task with the smallest rank is taken first.
        locality : mapping
            The workers that it prefers, with numbers from 1: a larger one is preferred more.
        forbidden : frozenset
            The workers that must not take it.
        """
        entry = self._current[task] = next(self._entries)
        prefers = False
        for worker, degree in locality.items():
            if degree > 0 and worker not in forbidden:
                prefers = True
                heap = self._preferred.setdefault(worker, [])
                heapq.heappush(heap, (-degree, rank, entry, task))
        heapq.heappush(self._others.setdefault(forbidden, []), (prefers, rank, entry, task))

    def discard(self, task: int) -> None:
        """Remove a task, if the queue has it."""
        self._current.pop(task, None)

    def best_degree(self, worker: Hashable) -> int:
        """Return the strongest preference of a task for a worker; 0 if no task prefers it."""
        heap = self._preferred.get(worker)
        while heap:
            degree, _, entry, task = heap[0]
            if self._current.get(task) == entry:
                return -degree
            heapq.heappop(heap)
        return 0

    def take_preferred(self, worker: Hashable) -> int | None:
        """Take the next task that prefers a worker, if there is one."""
        if not self.best_degree(worker):
            return None
        task = heapq.heappop(self._preferred[worker])[3]
        del self._current[task]
        return task

    def take_other(self, worker: Hashable, strangers: bool = True) -> int | None:
        """Take the next task that a worker may run, preferred or not, if there is one.

        Parameters
        ----------
        worker : hashable
            The worker.
        strangers : bool
            Whether it may take a task that prefers a worker, which is usually another one.
        """
        best: list[tuple[bool, int, int, int]] | None = None
        for forbidden, heap in self._others.items():
            if worker in forbidden:
                continue
            while heap and self._current.get(heap[0][3]) != heap[0][2]:
                heapq.heappop(heap)
            if heap and heap[0][0] and not strangers:
                continue
            if heap and (best is None or heap[0] < best[0]):
                best = heap
        if best is None:
            return None
        task = heapq.heappop(best)[3]
        del self._current[task]
        return task

    def take(self, worker: Hashable) -> int | None:
        """Take the next task for a worker, if there is one."""
        task = self.take_preferred(worker)
        return self.take_other(worker) if task is None else task


def allowed_workers(
    workers: Sequence[W],
    locality: Mapping[W, int],
    failed_on: Sequence[W],
    lost: Collection[W],
) -> list[W]:
    """Return the workers that may take a task.

    A task goes to a worker on which it has failed, or which was named as lost, only if no other
    worker may take it.

    Parameters
    ----------
    workers : sequence
        The workers of the job.
    locality : mapping
        The locality of the task; a worker with a number below 0 is forbidden.
    failed_on : sequence
        The workers on which the task's own code has failed, the latest at the end.
    lost : collection
        The workers that were named as lost.

    Examples
    --------
    >>> allowed_workers(["a", "b"], {}, failed_on=["a"], lost=())
    ['b']
    >>> allowed_workers(["a"], {}, failed_on=["a"], lost=())
    ['a']
    >>> allowed_workers(["a", "b"], {"b": -1}, failed_on=["a"], lost=())
    ['a']
    """
    allowed = [worker for worker in workers if locality.get(worker, 0) >= 0]
    kept = [worker for worker in allowed if worker not in lost]
    for avoided in (failed_on, failed_on[-1:], ()):
        candidates = [worker for worker in kept if worker not in avoided]
        if candidates:
            return candidates
    for avoided in (failed_on, failed_on[-1:]):
        candidates = [worker for worker in allowed if worker not in avoided]
        if candidates:
            return candidates
    return allowed
