"""Which of the tasks that are ready goes to which worker. Pure.

Nothing here knows threads, time or what a task does. One thread at a time uses a `ReadyQueue`.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from typing import TypeVar

W = TypeVar("W", bound=Hashable)

#: Nothing is known of most tasks.
INDIFFERENT: Mapping[object, int] = {}

_NOWHERE: frozenset[object] = frozenset()


class ReadyQueue:
    """The tasks that may run, in the order in which each worker takes them.

    A worker takes first what prefers it, the strongest preference first. Then it takes what
    prefers no worker; then what prefers another one, since a preference must not keep a worker
    idle. Among equals the smallest rank is the first. What is forbidden is never taken.

    Adding and taking cost the logarithm of the number of tasks, for each set of workers that
    tasks are kept from.

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
        #: The valid entry of each task; heaps may have older ones.
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
        forbidden: frozenset[W] = _NOWHERE,  # type: ignore[assignment]
    ) -> None:
        """Add a task, or put it elsewhere.

        Parameters
        ----------
        task : int
            The task.
        rank : int
            A smaller one is taken first.
        locality : mapping
            The workers that it prefers, with numbers from 1: the more the better.
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
        """Remove a task, if it is there."""
        self._current.pop(task, None)

    def best_degree(self, worker: Hashable) -> int:
        """Return how much the next task that prefers a worker prefers it; 0 if there is none."""
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
            Whether it takes tasks that prefer a worker: another one, usually.
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
    """Say which workers may take a task.

    A task goes back to a worker on which it has failed, or that was named as lost, only where
    there is no other.

    Parameters
    ----------
    workers : sequence
        Those that are there.
    locality : mapping
        The locality of the task; below 0 is forbidden.
    failed_on : sequence
        Where it has failed by itself, the last one last.
    lost : collection
        Those that were named as lost.

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
        found = [worker for worker in kept if worker not in avoided]
        if found:
            return found
    for avoided in (failed_on, failed_on[-1:]):
        found = [worker for worker in allowed if worker not in avoided]
        if found:
            return found
    return allowed
