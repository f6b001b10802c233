"""Knows which workers a cluster has, and tells when that changes.

Any thread may use it. Listeners are called on Dask's event loop: they must only note it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import weakref
from collections.abc import Callable, Mapping
from time import monotonic
from typing import Any, NamedTuple

from daskbatch.cluster.session import Session
from daskbatch.errors import ServiceLost
from daskbatch.execute.worker import Worker

#: Of what Dask says of a worker: it takes tasks.
_RUNNING = "running"

#: Between two looks whether a worker that does not take tasks does now. Seconds.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 0.02, 1.0

#: A worker that was there at the first look connected long ago, as far as anybody knows.
_LONG_AGO = float("-inf")


class WorkerSet(NamedTuple):
    """The workers at a moment.

    Parameters
    ----------
    threads : mapping of Worker to int
        The workers, by name, and how many threads each has.
    connected : mapping of Worker to float
        When each was seen first, of the clock `time.monotonic`; long ago if at the first look.
    """

    threads: Mapping[Worker, int]
    connected: Mapping[Worker, float]


_NONE = WorkerSet({}, {})


class WorkerWatch:
    """The workers of a cluster, as they come and go.

    Parameters
    ----------
    session : Session
        The connection to the cluster.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._client = session.client
        self._current = _NONE
        self._listeners: list[Callable[[WorkerSet], None]] = []
        #: Notified when workers have come or gone.
        self.changed = threading.Condition()
        self._refreshing = self._stale = False
        #: Whether a worker is there that does not take tasks: it starts, or is paused.
        self._waits = False
        session.add_worker_listener(self)
        self._client.sync(self._look, True)
        if self._waits:
            self.workers_changed()

    def current(self) -> WorkerSet:
        """Return the workers that are there, as far as has been heard."""
        return self._current

    def add_listener(self, listener: Callable[[WorkerSet], None]) -> None:
        """Have a function called at each change, with the workers."""
        with self.changed:
            self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[WorkerSet], None]) -> None:
        """Call a function no longer."""
        with self.changed, contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def workers_changed(self) -> None:
        """Hear that workers have come or gone; any thread may call this."""
        this = weakref.ref(self)
        self._client.loop.add_callback(_refresh, this)

    async def _look(self, first: bool = False) -> None:
        """Ask the scheduler which workers there are."""
        try:
            identity = await self._client.scheduler.identity(n_workers=-1)
        except Exception as error:
            if first:
                raise ServiceLost(
                    f"the scheduler does not say which workers there are: {error}"
                ) from error
            return
        infos = identity["workers"]
        self._waits = any(info.get("status", _RUNNING) != _RUNNING for info in infos.values())
        self._take(infos, first)

    def _take(self, infos: Mapping[str, Mapping[str, Any]], first: bool) -> None:
        threads = {
            Worker(str(info["name"]), address, info["host"]): int(info["nthreads"])
            for address, info in infos.items()
            if info.get("status", _RUNNING) == _RUNNING
        }
        before, now = self._current, _LONG_AGO if first else monotonic()
        self._current = WorkerSet(
            {worker: threads[worker] for worker in sorted(threads)},
            {worker: before.connected.get(worker, now) for worker in threads},
        )
        if threads == before.threads:
            return
        with self.changed:
            listeners = list(self._listeners)
            self.changed.notify_all()
        for listener in listeners:
            listener(self._current)


async def _refresh(this: weakref.ref[WorkerWatch]) -> None:
    watch = this()
    if watch is None:
        return
    watch._stale = True
    if watch._refreshing:
        return
    watch._refreshing = True
    pause = _FIRST_PAUSE_SECONDS
    while watch is not None and (watch._stale or watch._waits):
        if watch._stale:
            pause = _FIRST_PAUSE_SECONDS
        watch._stale = False
        await watch._look()
        if watch._stale or not watch._waits:
            continue
        # Nobody tells when it begins to take tasks.
        watch = None
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        watch = this()
    if watch is not None:
        watch._refreshing = False
