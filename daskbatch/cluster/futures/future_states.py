"""Has the sources of Dask futures wait until the futures are done. On the scheduler.

The Dask key of a source requires a resource that no worker has (`lower.PENDING`), so Dask keeps it
in the state ``no-worker``. Once the future's own key is over, the source may run: on a worker that
has the value, if one of these has a free slot. The source is not a dependent of the future's key
for Dask: when a program cancels a key, Dask cancels its dependents, and fails at dependents that no
client wants. All runs on the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import pickle
from time import monotonic, time
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Scheduler

from daskbatch.cluster.versions.unfit_workers import usable
from daskbatch.cluster.worker_loss import is_marked_lost
from daskbatch.dispatch.lower import FUTURE, PENDING

#: How often the scheduler looks for keys that it does not know yet: those of another client may
#: arrive after the source.
_POLL_INTERVAL_SECONDS = 0.05


class FutureStates:
    """The sources that wait for the futures of their keys. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        #: By the future's key: the keys of the sources.
        self._waiting: dict[Any, set[Any]] = {}
        #: Until when a key that is not known yet may arrive.
        self._expected: dict[Any, float] = {}
        #: The future's key of each source that waits.
        self._awaited: dict[Any, Any] = {}
        self._planned = False

    def state(self, key: bytes) -> tuple[str, Any]:
        """Return where the value of a key is; the handler `future_value.STATE_ROUTE`.

        Returns
        -------
        tuple
            "memory" and the addresses of the workers that have it; "erred", exception and
            traceback; "actor", "unknown" or "pending".
        """
        found = self._scheduler.tasks.get(pickle.loads(key))
        if found is None:
            return "unknown", None
        if found.actor:
            return "actor", None
        if found.state == "memory":
            return "memory", [each.address for each in found.who_has or ()]
        if found.state == "erred":
            failed = found.exception_blame or found
            return "erred", (failed.exception, failed.traceback)
        return "pending", None

    def transition(self, key: Any, finish: str) -> None:
        """Note that Dask has moved a key. Dask is in the middle of it: no key is moved here."""
        if finish == "no-worker":
            state = self._scheduler.tasks.get(key)
            annotations = (state.annotations if state is not None else None) or {}
            if (
                FUTURE not in annotations
                or is_marked_lost(state)
                or PENDING not in (state.resource_restrictions or {})
            ):
                return
            awaited = pickle.loads(annotations[FUTURE])
            if awaited not in self._waiting and awaited not in self._scheduler.tasks:
                self._expected[awaited] = monotonic() + _arrival_timeout()
            self._waiting.setdefault(awaited, set()).add(key)
            self._awaited[key] = awaited
            self._retry_later(0.0)
        elif finish in ("memory", "erred", "forgotten"):
            if key in self._waiting:
                self._retry_later(0.0)
            if key in self._awaited:
                self._forget(key)

    def _forget(self, source: Any) -> None:
        awaited = self._awaited.pop(source)
        sources = self._waiting[awaited]
        sources.discard(source)
        if not sources:
            del self._waiting[awaited]
            self._expected.pop(awaited, None)

    def _retry_later(self, seconds: float) -> None:
        if not self._planned:
            self._planned = True
            asyncio.get_running_loop().call_later(seconds, self._retry)

    def _retry(self) -> None:
        self._planned = False
        for awaited, sources in list(self._waiting.items()):
            found = self._scheduler.tasks.get(awaited)
            if found is not None:
                self._expected.pop(awaited, None)
                is_over = found.state in ("memory", "erred") or found.actor
            else:
                is_over = monotonic() > self._expected.get(awaited, 0.0)
            if is_over:
                for source in list(sources):
                    self._forget(source)
                    self._run(source, found)
        if self._expected:
            self._retry_later(_POLL_INTERVAL_SECONDS)

    def _run(self, source: Any, found: Any) -> None:
        """Let a source run, where the value is if a slot is free there."""
        state = self._scheduler.tasks.get(source)
        if state is None or state.state != "no-worker":
            return
        wanted = dict(state.resource_restrictions or {})
        wanted.pop(PENDING, None)
        state.resource_restrictions = wanted or None
        running = self._scheduler.running
        fit = {each.address for each in usable(self._scheduler, running)}
        holders = {
            each.address
            for each in (found.who_has if found is not None else None) or ()
            if each.address in fit and len(each.processing) < each.nthreads
        }
        if holders and len(fit) == len(running):  # else `UnfitWorkers` restricts it
            state.worker_restrictions = holders
            state.loose_restrictions = True
        self._scheduler.transitions({source: "processing"}, f"daskbatch-future-{time()}")


def _arrival_timeout() -> float:
    """Return for how long the key of a future that was not cancelled may be unknown here."""
    return float(parse_timedelta(dask.config.get("daskbatch.link-timeout", default="30s")))
