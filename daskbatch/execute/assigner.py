"""Assigns the ready tasks of a job to the workers: decides which task goes into which `Lane`.

Pure: the caller passes the current time and the localities of the tasks. Only one thread at a
time may use an `Assigner`. A lane is a queue of tasks that a worker runs one after another.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daskbatch.execute.lanes import HELD_UP_SECONDS, Durations, Lane, Lanes
from daskbatch.execute.ready_queue import INDIFFERENT, ReadyQueue, allowed_workers

#: The estimated duration of a task that must be the only task in its lane: larger than any
#: lane's capacity. Seconds.
_EXCLUSIVE_TASK_SECONDS = 1e9


@dataclass(eq=False, slots=True)
class Execution:
    """One execution of a task that is assigned to a lane; it may not have started yet.

    Parameters
    ----------
    task : int
        The position of the task in the job.
    lane : Lane
        The lane that holds the execution.
    kind : hashable
        Tasks of the same kind are expected to take the same time. None for a task that must be
        the only task in its lane.
    estimate : float
        The expected duration. Seconds.
    """

    task: int
    lane: Lane
    kind: Hashable
    estimate: float
    #: Whether the task counts as executing: it is, or was, the first task of its lane.
    begun: bool = False
    #: Whether the scheduler has tried to take the task back from the worker.
    taken_back: bool = False
    #: Whether the scheduler assumes, without confirmation, that the worker died while the task
    #: ran.
    died: bool = False
    #: The engine's record of the call, and the block that the call was first part of.
    record: Any = None
    block: Any = None
    #: The future that completes the task, if the task runs on the driver's side.
    future: Any = None

    @property
    def worker(self) -> Any:
        """The worker that the task is assigned to."""
        return self.lane.worker


class Assigner:
    """Holds the ready tasks of a job and assigns them to the lanes of its workers.

    Only one thread at a time may use it.

    Parameters
    ----------
    ranks : sequence of int
        The rank of each task by priority; the smallest runs first.
    kinds : sequence
        The kind of each task, by which its duration is estimated; None for a task that must be
        the only task in its lane.
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
        self._queue = ReadyQueue()
        self._lanes = Lanes(concurrency)
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
        """Add a worker; `Lane` describes `bulk`."""
        self.workers.append(worker)
        self._lanes.add(worker, bulk)
        self._requeue_constrained()

    def remove_worker(self, worker: Any) -> None:
        """Remove a worker that has left the cluster."""
        self.workers.remove(worker)
        self._lanes.remove(worker)
        self._requeue_constrained()

    def lose_worker(self, worker: Any) -> None:
        """Avoid a worker from now on, because an exception of a task has named it as lost."""
        if worker not in self.lost:
            self.lost.add(worker)
            self.add([*self._queue, *self.stranded])

    def set_locality(self, task: int, locality: Iterable[tuple[Any, int]], more: bool) -> None:
        """Record the locality of a task: its degree of preference for some workers.

        If `more` is true, add it to the recorded locality; otherwise replace that. The next `add`
        of the task applies the change.
        """
        found = {worker: degree for worker, degree in locality if degree}
        known = self._localities.get(task, {}) if more else {}
        if found or known:
            self._localities[task] = {**known, **found}
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
                self._queue.add(task, self._ranks[task])
                continue
            failed_on = self._failed_on.get(task, ())
            allowed = allowed_workers(self.workers, locality, failed_on, self.lost)
            if not allowed:
                self._queue.discard(task)
                self.stranded.add(task)
                continue
            self.stranded.discard(task)
            forbidden = frozenset(self.workers).difference(allowed)
            self._queue.add(task, self._ranks[task], locality, forbidden)

    def ready(self) -> list[int]:
        """Return the ready tasks that are not assigned to a lane yet."""
        return [*self._queue, *self.stranded]

    def discard(self, task: int) -> None:
        """Remove a task that must not run at present."""
        self._queue.discard(task)
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
        """Assign ready tasks to the lanes that have room.

        The tasks of one lane are returned in the order in which they run.

        Parameters
        ----------
        now : float
            The current time of a monotonic clock. Seconds.
        """
        assigned: list[Execution] = []
        if not self._queue:
            return assigned
        ready = len(self._queue)
        # First assign the tasks that prefer a worker, the strongest preference first. Then assign
        # any other tasks, so that no worker is idle.
        lanes = self._lanes.with_room(now)
        if self._localities:
            best_degree = self._queue.best_degree
            heap = [(-best_degree(lane.worker), n, lane) for n, lane in enumerate(lanes)]
            heapq.heapify(heap)
            while heap:
                degree, number, lane = heap[0]
                found = -best_degree(lane.worker)
                if found != degree:
                    heapq.heapreplace(heap, (found, number, lane))  # another lane took it
                    continue
                if not degree:
                    break
                heapq.heappop(heap)
                assigned += self._fill(lane, True, ready, now)
        for lane in lanes:
            if not self._queue:
                break
            assigned += self._fill(lane, False, ready, now)
        return assigned

    def _fill(self, lane: Lane, preferred: bool, ready: int, now: float) -> list[Execution]:
        found: list[Execution] = []
        queue, worker = self._queue, lane.worker
        room, most = lane.room(now), 1
        was_empty = not lane.items
        while room > 0 and len(found) < most:
            task = (
                queue.take_preferred(worker) if preferred else queue.take_other(worker, was_empty)
            )
            if task is None:
                break
            kind = self._kinds[task]
            seconds = self.durations.expect(kind) if lane.bulk else None
            if seconds is None and lane.items:
                self.add([task])  # the task must be the only task in its lane
                break
            if not found:
                most = self._lanes.most_at_once(ready, seconds)
            execution = Execution(
                task, lane, kind, _EXCLUSIVE_TASK_SECONDS if seconds is None else seconds
            )
            lane.put(execution, now)
            found.append(execution)
            room -= execution.estimate
        return found

    def over(self, execution: Execution, now: float) -> None:
        """Remove an execution that is over from its lane."""
        execution.lane.remove(execution, now)

    # -- taking back ----------------------------------------------------------------------

    def may_be_held_up(self) -> bool:
        """Return whether tasks wait behind others in a lane while another lane is empty."""
        return not self._queue and self._lanes.has_empty() and bool(self._lanes.with_waiting())

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
            for lane in self._lanes.with_waiting()
            if now - lane.since >= HELD_UP_SECONDS
            for execution in lane.waiting()
            if not execution.taken_back
        ]
