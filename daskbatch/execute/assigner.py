"""Decides which ready task goes into which lane of which worker. Pure.

Nothing here knows threads, clocks or what a task does: the time and what tasks say of their
locality are handed in. One thread at a time uses an `Assigner`.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from daskbatch.execute.lanes import HELD_UP_SECONDS, Durations, Lane, Lanes
from daskbatch.execute.ready_queue import INDIFFERENT, ReadyQueue, allowed_workers

#: What a task counts for that has a lane to itself. Seconds.
_ALONE_SECONDS = 1e9


@dataclass(eq=False, slots=True)
class Execution:
    """One execution of a task: given to a lane, and perhaps not begun.

    Parameters
    ----------
    task : int
        The task.
    lane : Lane
        Where it is.
    kind : hashable
        What its duration is learnt by; None for a task that has a lane to itself.
    estimate : float
        How long it is expected to take. Seconds.
    """

    task: int
    lane: Lane
    kind: Hashable
    estimate: float
    #: Whether it counts as executing: it is the first of its lane, or was.
    begun: bool = False
    #: Whether it was asked for back.
    taken_back: bool = False
    #: Whether its worker is taken to have died while it ran, and nobody could say.
    died: bool = False
    #: What it is for the engine, and the block that it was in at first.
    record: Any = None
    block: Any = None
    #: What completes it, if it runs on the driver's side.
    future: Any = None

    @property
    def worker(self) -> Any:
        """The worker that it was given to."""
        return self.lane.worker


class Assigner:
    """The ready tasks of a job, and the lanes of its workers.

    Parameters
    ----------
    ranks : sequence of int
        For each task its place by priority.
    kinds : sequence
        For each task what its duration is learnt by; None if it has a lane to itself.
    concurrency : int
        How many tasks run at a time on each worker.
    durations : Durations, optional
        What is known already of how long tasks take.

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
        #: The workers that were named as lost.
        self.lost: set[Any] = set()
        #: The ready tasks that no worker may take.
        self.stranded: set[int] = set()

    # -- workers --------------------------------------------------------------------------

    def add_worker(self, worker: Any, bulk: bool = True) -> None:
        """Add a worker; see `Lane` for `bulk`."""
        self.workers.append(worker)
        self._lanes.add(worker, bulk)
        self._requeue_constrained()

    def remove_worker(self, worker: Any) -> None:
        """Remove a worker that is gone."""
        self.workers.remove(worker)
        self._lanes.remove(worker)
        self._requeue_constrained()

    def lose_worker(self, worker: Any) -> None:
        """Avoid a worker from now on, since it was named as lost."""
        if worker not in self.lost:
            self.lost.add(worker)
            self.add([*self._queue, *self.stranded])

    def set_locality(self, task: int, locality: Iterable[tuple[Any, int]], more: bool) -> None:
        """Note what a task says of some workers; if `more`, besides what it has said.

        The next `add` of the task takes account of it.
        """
        found = {worker: degree for worker, degree in locality if degree}
        known = self._localities.get(task, {}) if more else {}
        if found or known:
            self._localities[task] = {**known, **found}
        else:
            self._localities.pop(task, None)

    def failed_on(self, task: int, worker: Any) -> None:
        """Note that a task has failed on a worker."""
        self._failed_on[task].append(worker)

    def is_forbidden_everywhere(self, task: int) -> bool:
        """Return whether no worker that is there may take a task."""
        locality = self._localities.get(task)
        return locality is not None and all(locality.get(w, 0) < 0 for w in self.workers)

    # -- tasks ----------------------------------------------------------------------------

    def add(self, tasks: Iterable[int]) -> None:
        """Add tasks that are ready, or put them where they belong now."""
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
        """Return the tasks that wait for a lane."""
        return [*self._queue, *self.stranded]

    def discard(self, task: int) -> None:
        """Remove a task that may not run now."""
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

    # -- what goes where ------------------------------------------------------------------

    def assign(self, now: float) -> list[Execution]:
        """Give ready tasks to lanes that have room; each lane's in the order in which they run.

        Parameters
        ----------
        now : float
            The time. Seconds, of any clock that goes on.
        """
        assigned: list[Execution] = []
        if not self._queue:
            return assigned
        ready = len(self._queue)
        # Preferences of all workers first, the strongest before the others; then whatever keeps
        # them busy.
        lanes = self._lanes.with_room(now)
        if self._localities:
            best_degree = self._queue.best_degree
            heap = [(-best_degree(lane.worker), n, lane) for n, lane in enumerate(lanes)]
            heapq.heapify(heap)
            while heap:
                degree, number, lane = heap[0]
                found = -best_degree(lane.worker)
                if found != degree:
                    heapq.heapreplace(heap, (found, number, lane))  # another has taken it
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
                self.add([task])  # it needs a lane to itself
                break
            if not found:
                most = self._lanes.most_at_once(ready, seconds)
            execution = Execution(task, lane, kind, _ALONE_SECONDS if seconds is None else seconds)
            lane.put(execution, now)
            found.append(execution)
            room -= execution.estimate
        return found

    def over(self, execution: Execution, now: float) -> None:
        """Take an execution out of its lane."""
        execution.lane.remove(execution, now)

    # -- taking back ----------------------------------------------------------------------

    def may_be_held_up(self) -> bool:
        """Return whether tasks wait behind others while a lane has nothing to do."""
        return not self._queue and self._lanes.has_empty() and bool(self._lanes.with_waiting())

    def held_up(self, now: float) -> list[Execution]:
        """Return executions to take back: they wait behind a task that takes long.

        Parameters
        ----------
        now : float
            The time, of the same clock.
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
