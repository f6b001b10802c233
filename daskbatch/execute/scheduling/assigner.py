"""Assigns the ready tasks of a job to workers: decides which task goes into which `WorkerQueue`.

Pure: the caller passes the current time and the localities of the tasks. Only one thread at a
time may use an `Assigner`.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from daskbatch.execute.scheduling.durations import Durations
from daskbatch.execute.scheduling.execution import Execution
from daskbatch.execute.scheduling.ready_queue import INDIFFERENT, ReadyQueue, allowed_workers
from daskbatch.execute.scheduling.worker_queues import (
    HELD_UP_SECONDS,
    WorkerQueue,
    WorkerQueues,
)

#: The estimated duration of a task that must be the only task in its queue: larger than any
#: queue's capacity. Seconds.
_EXCLUSIVE_TASK_SECONDS = 1e9


class Assigner:
    """Holds the ready tasks of a job and assigns them to the queues of its workers.

    Only one thread at a time may use it.

    Parameters
    ----------
    ranks : sequence of int
        The rank of each task by priority; the smallest runs first.
    kinds : sequence
        The kind of each task, by which its duration is estimated; None for a task that must be
        the only task in its queue.
    concurrency : int
        How many tasks run at the same time on each worker.
    durations : Durations, optional
        The durations measured so far, for example by earlier jobs.

    Examples
    --------
    >>> assigner = Assigner([0, 1], [None, None], concurrency=1)
    >>> assigner.add_worker("a")
    >>> assigner.add([0, 1])
    >>> [(each.task, each.worker) for each in assigner.assign(now=0.0)]
    [(0, 'a')]
    """

    def __init__(
        self,
        ranks: Sequence[int],
        kinds: Sequence[Hashable],
        concurrency: int,
        durations: Durations | None = None,
    ) -> None:
        self._ranks = ranks
        self._kinds = kinds
        self._ready = ReadyQueue()
        self._queues = WorkerQueues(concurrency)
        self.durations = Durations() if durations is None else durations
        self.workers: list[Any] = []
        self._localities: dict[int, dict[Any, int]] = {}
        self._failed_on: defaultdict[int, list[Any]] = defaultdict(list)
        #: The workers that a `DependenciesFailed` or `FailedDependency` has named as lost; the
        #: job avoids them.
        self.lost: set[Any] = set()
        #: The ready tasks that no connected worker may run.
        self.stranded: set[int] = set()

    # -- workers --------------------------------------------------------------------------

    def add_worker(self, worker: Any, bulk: bool = True) -> None:
        """Add a worker; `WorkerQueue` describes `bulk`."""
        self.workers.append(worker)
        self._queues.add(worker, bulk)
        self._requeue_constrained()

    def remove_worker(self, worker: Any) -> None:
        """Remove a worker that has left the cluster."""
        self.workers.remove(worker)
        self._queues.remove(worker)
        self._requeue_constrained()

    def lose_worker(self, worker: Any) -> None:
        """Avoid a worker from now on, because an exception of a task has named it as lost."""
        if worker not in self.lost:
            self.lost.add(worker)
            self.add([*self._ready, *self.stranded])

    def set_locality(self, task: int, locality: Iterable[tuple[Any, int]], more: bool) -> None:
        """Record the locality of a task: its degree of preference for some workers.

        If `more` is true, add it to the recorded locality; otherwise replace that. The next `add`
        of the task applies the change.
        """
        found = {worker: degree for worker, degree in locality if degree}
        recorded = self._localities.get(task, {}) if more else {}
        if found or recorded:
            self._localities[task] = {**recorded, **found}
        else:
            self._localities.pop(task, None)

    def failed_on(self, task: int, worker: Any) -> None:
        """Record that a task has failed on a worker."""
        self._failed_on[task].append(worker)

    def is_forbidden_everywhere(self, task: int) -> bool:
        """Return whether the locality of a task forbids every connected worker."""
        locality = self._localities.get(task)
        return locality is not None and all(locality.get(w, 0) < 0 for w in self.workers)

    # -- tasks ----------------------------------------------------------------------------

    def add(self, tasks: Iterable[int]) -> None:
        """Add ready tasks to the queue; tasks that are in it already are queued anew."""
        for task in tasks:
            locality: Mapping[Any, int] = self._localities.get(task, INDIFFERENT)
            if not (locality or self.lost or task in self._failed_on):
                self._ready.add(task, self._ranks[task])
                continue
            failed_on = self._failed_on.get(task, ())
            allowed = allowed_workers(self.workers, locality, failed_on, self.lost)
            if not allowed:
                self._ready.discard(task)
                self.stranded.add(task)
                continue
            self.stranded.discard(task)
            forbidden = frozenset(self.workers).difference(allowed)
            self._ready.add(task, self._ranks[task], locality, forbidden)

    def ready(self) -> list[int]:
        """Return the ready tasks that are not assigned to a queue yet."""
        return [*self._ready, *self.stranded]

    def discard(self, task: int) -> None:
        """Remove a task that must not run at present."""
        self._ready.discard(task)
        self.stranded.discard(task)

    def _requeue_constrained(self) -> None:
        waiting = self.ready()
        if self.lost:
            self.add(waiting)
        else:
            self.add(
                task for task in waiting if task in self._localities or task in self._failed_on
            )

    # -- assignment -----------------------------------------------------------------------

    def assign(self, now: float) -> list[Execution]:
        """Assign ready tasks to the queues that have room.

        The tasks of one queue are returned in the order in which they run.

        Parameters
        ----------
        now : float
            The current time of a monotonic clock. Seconds.
        """
        assigned: list[Execution] = []
        if not self._ready:
            return assigned
        ready = len(self._ready)
        # First assign the tasks that prefer a worker, the strongest preference first. Then assign
        # any other tasks, so that no worker is idle.
        queues = self._queues.with_room(now)
        if self._localities:
            best_degree = self._ready.best_degree
            heap = [(-best_degree(queue.worker), n, queue) for n, queue in enumerate(queues)]
            heapq.heapify(heap)
            while heap:
                degree, number, queue = heap[0]
                found = -best_degree(queue.worker)
                if found != degree:
                    heapq.heapreplace(heap, (found, number, queue))  # another queue took it
                    continue
                if not degree:
                    break
                heapq.heappop(heap)
                assigned += self._fill(queue, True, ready, now)
        for queue in queues:
            if not self._ready:
                break
            assigned += self._fill(queue, False, ready, now)
        return assigned

    def _fill(self, queue: WorkerQueue, preferred: bool, ready: int, now: float) -> list[Execution]:
        found: list[Execution] = []
        ready_queue, worker = self._ready, queue.worker
        room, most = queue.room(now), 1
        was_empty = not queue.items
        while room > 0 and len(found) < most:
            if preferred:
                task = ready_queue.take_preferred(worker)
            else:
                task = ready_queue.take_other(worker, was_empty)
            if task is None:
                break
            kind = self._kinds[task]
            seconds = self.durations.expect(kind) if queue.bulk else None
            if seconds is None and queue.items:
                self.add([task])  # the task must be the only task in its queue
                break
            if not found:
                most = self._queues.most_at_once(ready, seconds)
            execution = Execution(
                task, queue, kind, _EXCLUSIVE_TASK_SECONDS if seconds is None else seconds
            )
            queue.put(execution, now)
            found.append(execution)
            room -= execution.estimate
        return found

    def over(self, execution: Execution, now: float) -> None:
        """Remove an execution that is over from its queue."""
        execution.queue.remove(execution, now)

    # -- taking back ----------------------------------------------------------------------

    def may_be_held_up(self) -> bool:
        """Return whether tasks wait behind others in a queue while another queue is empty."""
        return not self._ready and self._queues.has_empty() and bool(self._queues.with_waiting())

    def held_up(self, now: float) -> list[Execution]:
        """Return the executions to take back, because they wait behind a long task.

        Parameters
        ----------
        now : float
            The current time, of the clock used for `assign`. Seconds.
        """
        if not self.may_be_held_up():
            return []
        return [
            execution
            for queue in self._queues.with_waiting()
            if now - queue.since >= HELD_UP_SECONDS
            for execution in queue.waiting()
            if not execution.taken_back
        ]
