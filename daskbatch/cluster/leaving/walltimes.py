"""Has tasks with a walltime run only on workers that stay long enough.

The Dask key of such a task requires a resource that no worker has (`lower.UNFITTED`). So Dask keeps
it in the state ``no-worker``, until a worker is there that stays as long as the task takes; then
the key is restricted to these workers, and Dask runs it. A key that arrives too late at its worker
comes back to the client, which submits the task again. All runs on the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from time import time
from typing import Any

from distributed import Scheduler

from daskbatch.cluster.versions.unfit_workers import usable
from daskbatch.cluster.worker_loss import is_marked_lost
from daskbatch.dispatch.lower import UNFITTED, WALLTIME


def fitting(walltime: float, ends: Mapping[str, float], now: float) -> set[str]:
    """Return the workers that stay at least for some seconds.

    Parameters
    ----------
    walltime : float
        The seconds.
    ends : mapping
        When each worker ends, in seconds since the epoch.
    now : float
        The time now.

    Examples
    --------
    >>> fitting(60, {"a": 1030.0, "b": 2000.0}, now=1000.0)
    {'b'}
    """
    return {worker for worker, end in ends.items() if end - now >= walltime}


class Walltimes:
    """The keys that wait for a worker that stays long enough. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    end_of : callable
        Returns when a worker ends, by its address.
    """

    def __init__(self, scheduler: Scheduler, end_of: Callable[[str], float]) -> None:
        self._scheduler = scheduler
        self._end_of = end_of
        #: The keys that wait, each with the workers that it was restricted to by the user.
        self._waiting: dict[Any, frozenset[str]] = {}
        self._planned = False

    def transition(self, key: Any, finish: str) -> None:
        """Note that Dask has moved a key. Dask is in the middle of it: no key is moved here."""
        if finish == "no-worker":
            state = self._scheduler.tasks.get(key)
            annotations = (state.annotations if state is not None else None) or {}
            if WALLTIME not in annotations or is_marked_lost(state):
                return
            if UNFITTED in (state.resource_restrictions or {}):
                self._waiting[key] = frozenset(state.worker_restrictions or ())
            elif key in self._waiting:
                # The workers that it was sent to have gone.
                self._hold(state)
            self.retry_soon()
        elif finish in ("memory", "erred", "forgotten"):
            self._waiting.pop(key, None)

    def _hold(self, state: Any) -> None:
        state.resource_restrictions = {**(state.resource_restrictions or {}), UNFITTED: 1}
        state.worker_restrictions = set(self._waiting[state.key]) or None

    def retry_soon(self) -> None:
        """Look soon whether keys that wait can run: workers have joined, for example."""
        if self._waiting and not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_soon(self._retry)

    def _retry(self) -> None:
        self._planned = False
        now = time()
        running = self._scheduler.running
        fit_workers = usable(self._scheduler, running)
        ends = {each.address: self._end_of(each.address) for each in fit_workers}
        for key, allowed in list(self._waiting.items()):
            state = self._scheduler.tasks.get(key)
            if state is None:
                del self._waiting[key]
                continue
            if state.state != "no-worker" or UNFITTED not in (state.resource_restrictions or {}):
                continue
            fit = fitting(state.annotations[WALLTIME], ends, now)
            if allowed:
                fit &= allowed
            if not fit:
                continue
            wanted = dict(state.resource_restrictions)
            del wanted[UNFITTED]
            state.resource_restrictions = wanted or None
            if allowed or len(fit) < len(running):
                state.worker_restrictions = fit
            self._scheduler.transitions({key: "processing"}, f"daskbatch-walltime-{now}")
