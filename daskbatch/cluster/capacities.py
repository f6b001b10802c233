"""Records what the workers of a cluster offer, also those that are about to come back.

A nanny starts a new worker in place of one that has died. Until it has, the slots of the dead one
count: a gang that needs all slots of the cluster can run in a moment. All runs on the scheduler's
event loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from time import monotonic, time
from typing import Any

from distributed import Scheduler

from daskbatch.cluster.versions.unfit_workers import usable
from daskbatch.dispatch.requirements import Capacity

#: How long a nanny may take to start a worker.
_RETURN_TIMEOUT_SECONDS = 60.0


class Capacities:
    """What the workers offer. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler of the workers.
    end_of : callable
        Returns when a worker ends, by its address, in seconds since the epoch.
    """

    def __init__(
        self, scheduler: Scheduler, end_of: Callable[[str], float] = lambda address: math.inf
    ) -> None:
        self._scheduler = scheduler
        self._end_of = end_of
        #: The nanny of each worker, by the worker's address.
        self._nannies: dict[str, str] = {}
        self._present: dict[str, Capacity] = {}
        #: By nanny: what its dead worker offered, and until when that counts.
        self._returning: dict[str, tuple[Capacity, float]] = {}
        for address in scheduler.workers:
            self.add_worker(address)

    def add_worker(self, address: str) -> None:
        """Record that a worker has joined."""
        worker = self._scheduler.workers[address]
        self._present[address] = _capacity(worker)
        if worker.nanny:
            self._nannies[address] = worker.nanny
            self._returning.pop(worker.nanny, None)

    def remove_worker(self, address: str, died: bool) -> None:
        """Record that a worker has left; if it died, its nanny starts another one."""
        capacity, nanny = self._present.pop(address, None), self._nannies.pop(address, None)
        if died and capacity is not None and nanny is not None:
            until = monotonic() + _RETURN_TIMEOUT_SECONDS
            self._returning[nanny] = capacity._replace(is_here=False), until

    def all(self) -> list[Capacity]:
        """Return what each worker offers; last those that are about to come back."""
        now = monotonic()
        self._returning = {
            nanny: entry for nanny, entry in self._returning.items() if entry[1] > now
        }
        present = [
            _capacity(each)._replace(seconds=self._end_of(each.address) - time())
            for each in usable(self._scheduler, self._scheduler.workers.values())
        ]
        return present + [capacity for capacity, _ in self._returning.values()]


def _capacity(worker: Any) -> Capacity:
    resources = dict(worker.resources)
    return Capacity(worker.address, worker.host, str(worker.name), resources, worker.nthreads)
