"""Watches which workers a cluster has, and notifies listeners when they change.

Any thread may use a `WorkerWatch`. Listeners are called on Dask's event loop, so they must return
at once: they record the change, and do nothing else.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, NamedTuple

from daskbatch.cluster.growth.orders import are_workers_on_order
from daskbatch.cluster.session import Session
from daskbatch.cluster.versions.software import UnfitWorker
from daskbatch.errors import ServiceLost
from daskbatch.execute.workers.worker import Worker
from daskbatch.threads import Condition

#: The status by which Dask's scheduler marks a worker that accepts tasks.
_RUNNING_STATUS = "running"

#: The first and the longest time between two queries whether a worker accepts tasks by now.
_MIN_POLL_INTERVAL_SECONDS, _MAX_POLL_INTERVAL_SECONDS = 0.02, 1.0

#: The connect time of a worker that the first query found: it is unknown, and counts as long ago.
_UNKNOWN_CONNECT_TIME = float("-inf")


class WorkerSet(NamedTuple):
    """The workers of a cluster at one time.

    Parameters
    ----------
    threads : mapping of Worker to int
        The number of threads of each worker; the workers are sorted by name.
    connected : mapping of Worker to float
        When each was seen first, by the clock `time.monotonic`; minus infinity if the first query
        found it.
    by_address : mapping of str to Worker
        All connected workers, also those that accept no tasks because they are starting or paused.
    departed : sequence of Worker
        The latest workers that have left. A nanny may be about to restart one of them. Then it
        has the same name, and is no longer contained.
    has_unfit : bool
        Whether there are workers with other software. They run nothing, and are left out above.
    """

    threads: Mapping[Worker, int]
    connected: Mapping[Worker, float]
    by_address: Mapping[str, Worker]
    departed: Sequence[Worker]
    has_unfit: bool = False


_NO_WORKERS = WorkerSet({}, {}, {}, ())

#: How many of the workers that have left a watch remembers.
_MAX_DEPARTED_WORKERS = 64


class WorkerWatch:
    """The workers that a cluster has now, and the listeners to each change of them.

    Any thread may use it.

    Parameters
    ----------
    session : Session
        The connection to the cluster.
    """

    def __init__(self, session: Session) -> None:
        self._session = session
        self._client = session.client
        self._current = _NO_WORKERS
        self._listeners: list[Callable[[WorkerSet], None]] = []
        #: Notified when workers have joined or left.
        self.changed = Condition()
        self._refreshing = self._stale = False
        #: Whether a connected worker does not accept tasks, because it is starting or paused.
        self._has_unready_worker = False
        session.add_worker_listener(self)
        self._client.sync(self._query, True)
        if self._has_unready_worker:
            self.workers_changed()

    def current(self) -> WorkerSet:
        """Return the workers that the latest query found."""
        return self._current

    def describe_missing(self) -> str:
        """Return why the cluster has no worker that can run tasks, as far as that is known."""
        return self._session.describe_missing_workers()

    def are_workers_on_order(self) -> bool:
        """Return whether workers were asked for that have not joined yet."""
        return are_workers_on_order(self._client)

    def add_listener(self, listener: Callable[[WorkerSet], None]) -> None:
        """Add a function to call at each change, with the workers."""
        with self.changed:
            self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[WorkerSet], None]) -> None:
        """Remove a listener; a function that is not a listener is ignored."""
        with self.changed, contextlib.suppress(ValueError):
            self._listeners.remove(listener)

    def workers_changed(self) -> None:
        """Query the workers again, because some have joined or left; any thread may call this."""
        this = weakref.ref(self)
        self._client.loop.add_callback(_refresh, this)

    async def _query(self, first: bool = False) -> None:
        """Query Dask's scheduler for the workers."""
        try:
            scheduler = self._client.scheduler
            identity, unfit = await asyncio.gather(
                scheduler.identity(n_workers=-1), scheduler.daskbatch_unfit(waits=False)
            )
        except Exception as error:
            if first:
                raise ServiceLost(
                    f"Dask's scheduler has not returned the list of workers: {error}"
                ) from error
            return
        addresses = {UnfitWorker(*each).address for each in unfit}
        workers = identity["workers"]
        infos = {each: info for each, info in workers.items() if each not in addresses}
        self._has_unready_worker = any(
            info.get("status", _RUNNING_STATUS) != _RUNNING_STATUS for info in infos.values()
        )
        self._update(infos, first, len(infos) < len(workers))

    def _update(self, infos: Mapping[str, Mapping[str, Any]], first: bool, has_unfit: bool) -> None:
        by_address = {
            address: Worker(str(info["name"]), address, info["host"])
            for address, info in infos.items()
        }
        threads = {
            by_address[address]: int(info["nthreads"])
            for address, info in infos.items()
            if info.get("status", _RUNNING_STATUS) == _RUNNING_STATUS
        }
        before, now = self._current, _UNKNOWN_CONNECT_TIME if first else monotonic()
        self._current = WorkerSet(
            {worker: threads[worker] for worker in sorted(threads)},
            {worker: before.connected.get(worker, now) for worker in threads},
            by_address,
            _departed(before, by_address),
            has_unfit,
        )
        if threads == before.threads and has_unfit == before.has_unfit:
            return
        with self.changed:
            listeners = list(self._listeners)
            self.changed.notify_all()
        for listener in listeners:
            listener(self._current)


def _departed(before: WorkerSet, by_address: Mapping[str, Worker]) -> Sequence[Worker]:
    names = {worker.name for worker in by_address.values()}
    gone = (each for address, each in before.by_address.items() if address not in by_address)
    found = {worker.name: worker for worker in (*before.departed, *gone)}
    return [worker for name, worker in found.items() if name not in names][-_MAX_DEPARTED_WORKERS:]


async def _refresh(this: weakref.ref[WorkerWatch]) -> None:
    watch = this()
    if watch is None:
        return
    watch._stale = True
    if watch._refreshing:
        return
    watch._refreshing = True
    interval = _MIN_POLL_INTERVAL_SECONDS
    while watch is not None and (watch._stale or watch._has_unready_worker):
        if watch._stale:
            interval = _MIN_POLL_INTERVAL_SECONDS
        watch._stale = False
        await watch._query()
        if watch._stale or not watch._has_unready_worker:
            continue
        # Dask reports no event when a worker begins to accept tasks.
        watch = None
        await asyncio.sleep(interval)
        interval = min(2 * interval, _MAX_POLL_INTERVAL_SECONDS)
        watch = this()
    if watch is not None:
        watch._refreshing = False
