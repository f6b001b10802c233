"""Moves blocks that wait behind a long one to workers that have a free slot.

Dask expects a key to take as long as keys of its name have taken on average, and moves keys only
from workers where it expects more than 0.2 seconds of work (`WorkStealing.balance`). So a call of
a function that mostly takes a moment would wait behind a call that lasts, even if a worker is idle.
All runs on the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

from distributed import Scheduler
from distributed.scheduler import TaskState, WorkerState

from daskbatch.cluster.worker_loss import topic_of

#: The interval of checks, and how long a key has to wait at least until it is moved.
_CHECK_INTERVAL_SECONDS = 0.05

#: The checks take at most this part of the scheduler's time.
_MAX_PART_OF_TIME = 0.02

#: Of many idle workers, so many are compared for one key; as many as Dask compares.
_MAX_COMPARED_WORKERS = 20


class WaitingKeys:
    """The blocks that wait on a worker while another worker is idle. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    is_needed : callable
        Returns whether there is any Batch; the checks end when there is none.
    """

    def __init__(self, scheduler: Scheduler, is_needed: Callable[[], bool]) -> None:
        self._scheduler = scheduler
        self._is_needed = is_needed
        #: Since when each of them waits.
        self._since: dict[TaskState, float] = {}
        self._check: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Check from now on, for as long as there is a Batch. Again has no effect."""
        if self._check is None:
            self._check_later(_CHECK_INTERVAL_SECONDS)

    def _check_later(self, seconds: float) -> None:
        self._check = asyncio.get_running_loop().call_later(seconds, self._run)

    def _run(self) -> None:
        self._check = None
        if not self._is_needed():
            self._since.clear()
            return
        began = monotonic()
        try:
            self.move()
        finally:
            cost = monotonic() - began
            self._check_later(max(_CHECK_INTERVAL_SECONDS, cost / _MAX_PART_OF_TIME))

    def move(self) -> None:
        """Ask workers for keys that have waited for as long as it takes to move them.

        A key has waited in vain for at most twice as long as the best decision would take (as in
        the ski rental problem: Karlin et al., Competitive snoopy caching, 1988). Its worker
        refuses if it has begun the key.
        """
        stealing = self._scheduler.extensions.get("stealing")
        slots = {
            worker: count
            for worker in self._scheduler.idle.values()
            if (count := worker.nthreads - len(worker.processing) + len(worker.long_running)) > 0
        }
        if stealing is None or not slots or len(slots) == len(self._scheduler.workers):
            self._since.clear()
            return
        now = monotonic()
        # Sorted by priority alone: states have no order.
        waiting = sorted(self._waiting(sum(slots.values())), key=_priority)
        self._since = {each: self._since.get(each, now) for each in waiting}
        for state in waiting:
            waited = now - self._since[state]
            if waited < _CHECK_INTERVAL_SECONDS or state in stealing.in_flight:
                continue
            worker = self._best_worker(state, slots)
            if worker is not None and self._scheduler.get_comm_cost(state, worker) <= waited:
                stealing.move_task_request(state, state.processing_on, worker)
                slots[worker] -= 1
                if not slots[worker]:
                    del slots[worker]

    def _waiting(self, count: int) -> Iterator[TaskState]:
        """Yield the blocks that probably wait: of each worker, at most so many."""
        for worker in self._scheduler.workers.values():
            if len(worker.processing) - len(worker.long_running) <= worker.nthreads:
                continue
            sent = [each for each in worker.processing if each not in worker.long_running]
            first = heapq.nsmallest(worker.nthreads + count, sent, key=_priority)
            for state in first[worker.nthreads :]:
                if topic_of(self._scheduler, state.key) is not None:
                    yield state

    def _best_worker(self, state: TaskState, slots: dict[WorkerState, int]) -> WorkerState | None:
        """Return the worker that has most of the inputs of a key, among those that may run it."""
        valid = self._scheduler.valid_workers(state)
        fitting = [each for each in slots if valid is None or each in valid]
        return min(
            fitting[:_MAX_COMPARED_WORKERS],
            key=lambda worker: float(self._scheduler.get_comm_cost(state, worker)),
            default=None,
        )


def _priority(state: TaskState) -> Any:
    return state.priority
