"""Tells adaptive clusters how many workers tasks could use, also those that share a Dask key.

Dask counts keys. Tasks whose duration is unknown share a few keys at first, so Dask would ask for
one worker for a thousand of them. Clients report how many tasks could run and how long they take;
the target is what it would be if each task were a key. All runs on the scheduler's event loop.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import Any, NamedTuple

import dask
from dask.utils import parse_timedelta
from distributed import Scheduler

#: A client that has not reported for this time wants nothing.
_LIFETIME_SECONDS = 10.0


class Demand(NamedTuple):
    """What the unfinished tasks of a client could use.

    Parameters
    ----------
    tasks : int
        How many of them run, or could run.
    seconds : float
        How long they take, one after another.
    """

    tasks: int
    seconds: float


def wanted_workers(demands: list[Demand], target_seconds: float, workers: int, slots: int) -> int:
    """Return how many workers tasks could use, by the rule of `Scheduler.adaptive_target`.

    Parameters
    ----------
    demands : list of Demand
        What each client could use.
    target_seconds : float
        How long all may take.
    workers, slots : int
        The present workers, and their slots.

    Examples
    --------
    >>> wanted_workers([Demand(1000, 500.0)], 5.0, workers=0, slots=0)
    100
    >>> wanted_workers([Demand(3, 180.0)], 5.0, workers=1, slots=2)
    2
    """
    tasks = sum(demand.tasks for demand in demands)
    seconds = sum(demand.seconds for demand in demands)
    wanted = min(tasks, math.ceil(seconds / target_seconds))
    return math.ceil(wanted * workers / slots) if slots else wanted


class Demands:
    """What clients could use. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler, whose `adaptive_target` is replaced.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: By topic of the client, with the time until which it counts.
        self._demands: dict[str, tuple[Demand, float]] = {}
        self._target_as_dask = scheduler.adaptive_target
        scheduler.adaptive_target = self.adaptive_target
        scheduler.handlers["adaptive_target"] = self.adaptive_target
        scheduler.stream_handlers["daskbatch-demand"] = self._record

    def _record(self, topic: str, tasks: int, seconds: float, **_: Any) -> None:
        self._demands[topic] = Demand(tasks, seconds), monotonic() + _LIFETIME_SECONDS

    def remove(self, topic: str) -> None:
        """Forget a client that has left."""
        self._demands.pop(topic, None)

    def adaptive_target(self, target_duration: Any = None) -> int:
        """Do what `Scheduler.adaptive_target` does, and count each task."""
        by_keys = int(self._target_as_dask(target_duration))
        now = monotonic()
        current = [demand for demand, until in self._demands.values() if until > now]
        if target_duration is None:
            target_duration = dask.config.get("distributed.adaptive.target-duration")
        workers = self._scheduler.workers
        slots = sum(worker.nthreads for worker in workers.values())
        wanted = wanted_workers(current, parse_timedelta(target_duration), len(workers), slots)
        return max(by_keys, wanted)
