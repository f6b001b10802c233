"""Keeps tasks off the workers that have other software than the scheduler.

Each worker reports its software when it gets the plugin. A worker that joins counts as running
from that report on: it would begin no Dask task earlier. If its software differs, Dask may send it
the tasks of other clients, and each key of ours is restricted to the remaining workers. All runs on
the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from distributed import Scheduler
from distributed.core import Status

from daskbatch.cluster.versions.software import UnfitWorker
from daskbatch.cluster.worker_loss import is_marked_lost
from daskbatch.dispatch.key_names import TOKEN
from daskbatch.dispatch.lower import GANG, TOPIC, WALLTIME
from daskbatch.worker.plugin import PLUGIN_NAME as WORKER_PLUGIN_NAME

_EXTENSION = "daskbatch-unfit-workers"

#: How long a worker may take to report its software: one that joins, and one that is asked about.
_JOIN_TIMEOUT_SECONDS, _ANSWER_TIMEOUT_SECONDS = 30.0, 5.0

#: Restricts a key that no worker can run now. To Dask an empty set is no restriction.
_NO_WORKER = "daskbatch-no-worker"

#: The states of keys that have not begun. A key that is processed may still be stolen.
_UNFINISHED_STATES = ("waiting", "no-worker", "queued", "processing")


class _Wanted(NamedTuple):
    """What the user has restricted a key to.

    Parameters
    ----------
    workers, hosts : frozenset of str
        The workers and the hosts; no restriction if both are empty.
    is_loose : bool
        Whether any other worker will do if none of these is there.
    """

    workers: frozenset[str]
    hosts: frozenset[str]
    is_loose: bool


class UnfitWorkers:
    """The workers that can run no tasks of ours. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    report : callable
        Called with each worker that is found to be unfit.
    """

    def __init__(self, scheduler: Scheduler, report: Callable[[UnfitWorker], None]) -> None:
        self._scheduler = scheduler
        self._report = report
        self._found: dict[str, UnfitWorker] = {}
        #: The workers that have not reported their software yet, and the held messages of those.
        self._silent: set[str] = set(scheduler.workers)
        self._held: dict[str, dict[str, Any]] = {}
        self._changed = asyncio.Event()
        #: What the user has restricted keys to.
        self._wanted: dict[Any, _Wanted] = {}
        self._change_status_as_dask = scheduler.stream_handlers["worker-status-change"]
        scheduler.stream_handlers["worker-status-change"] = self._change_status
        scheduler.stream_handlers["daskbatch-unfit"] = self._record
        scheduler.extensions[_EXTENSION] = self

    def __contains__(self, address: str) -> bool:
        """Return whether a worker is unfit."""
        return address in self._found

    async def all(self, waits: bool = True) -> list[UnfitWorker]:
        """Return the unfit workers.

        Parameters
        ----------
        waits : bool
            Whether to wait until all workers have reported, or have had time to.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + (_ANSWER_TIMEOUT_SECONDS if waits else 0)
        while self._silent and loop.time() < end:
            self._changed.clear()
            try:
                await asyncio.wait_for(self._changed.wait(), end - loop.time())
            except TimeoutError:
                break
        return list(self._found.values())

    # -- workers --------------------------------------------------------------------------

    def add_worker(self, address: str) -> None:
        """Record that a worker has joined, which will report its software."""
        if WORKER_PLUGIN_NAME in self._scheduler.worker_plugins:
            self._silent.add(address)
            loop = asyncio.get_running_loop()
            loop.call_later(_JOIN_TIMEOUT_SECONDS, self.record_fit, address)

    def remove_worker(self, address: str) -> None:
        """Record that a worker has left."""
        self._held.pop(address, None)
        self._found.pop(address, None)
        self._note_report(address)
        self._restrict_all()

    def record_fit(self, address: str) -> None:
        """Record that a worker has the same software as the scheduler."""
        if address in self._silent:
            self._note_report(address)
            self._restrict_all()
            self._release(address)

    def _record(self, host: str, python: str, daskbatch: str, worker: str) -> None:
        """Record that a worker has other software than the scheduler."""
        unfit = self._found[worker] = UnfitWorker(worker, host, python, daskbatch)
        self._note_report(worker)
        self._restrict_all()
        self._report(unfit)
        self._release(worker)

    def _note_report(self, address: str) -> None:
        self._silent.discard(address)
        self._changed.set()

    def _change_status(self, status: str, worker: str, stimulus_id: str) -> None:
        """Hold the message that a worker is running until its software is known."""
        state = self._scheduler.workers.get(worker)
        message = {"status": status, "worker": worker, "stimulus_id": stimulus_id}
        if worker in self._silent and state is not None and state.status is Status.init:
            self._held[worker] = message
        else:
            self._change_status_as_dask(**message)

    def _release(self, address: str) -> None:
        message = self._held.pop(address, None)
        if message is not None:
            self._change_status_as_dask(**message)

    # -- keys -----------------------------------------------------------------------------

    def transition(self, key: Any, finish: str) -> None:
        """Restrict a key that will be sent to a worker next; called while Dask moves the key."""
        if finish == "forgotten":
            self._wanted.pop(key, None)
        elif self._found and finish == "waiting":
            state = self._scheduler.tasks.get(key)
            if state is not None and _is_placed_by_dask(state):
                self._restrict(state)

    def _restrict_all(self) -> None:
        """Restrict all keys that have not begun to the fit workers of now."""
        if not self._found and not self._wanted:
            return
        for key in [key for key in self._wanted if key not in self._scheduler.tasks]:
            del self._wanted[key]
        queued = []
        for state in self._scheduler.tasks.values():
            if state.state in _UNFINISHED_STATES and _is_placed_by_dask(state):
                if state.state == "queued":
                    # Dask keeps keys with restrictions elsewhere.
                    queued.append(state.key)
                else:
                    self._restrict(state)
        if not self._found:
            self._wanted.clear()
        elif queued:
            self._scheduler.transitions(dict.fromkeys(queued, "released"), "daskbatch-unfit")

    def _restrict(self, state: Any) -> None:
        if is_marked_lost(state):
            # Any worker can return that the block is lost.
            wanted = _Wanted(frozenset(), frozenset(), False)
        else:
            found = state.worker_restrictions, state.host_restrictions
            workers, hosts = (frozenset(each or ()) for each in found)
            wanted = _Wanted(workers, hosts, bool(state.loose_restrictions))
            wanted = self._wanted.setdefault(state.key, wanted)
        workers, hosts, is_loose = wanted
        if not self._found:
            state.worker_restrictions, state.host_restrictions = set(workers), set(hosts)
            state.loose_restrictions = is_loose
            return
        fit = {each.address for each in usable(self._scheduler, self._scheduler.workers.values())}
        allowed = fit
        if workers or hosts:
            allowed = fit & workers.union(*(self._workers_of(host) for host in hosts))
        if is_loose:
            allowed = allowed or fit
        state.worker_restrictions, state.host_restrictions = allowed or {_NO_WORKER}, set()
        # Else Dask would take an unfit worker while none of the allowed ones is there.
        state.loose_restrictions = False

    def _workers_of(self, host: str) -> set[str]:
        name = self._scheduler.coerce_hostname(host)
        return set(self._scheduler.host_info.get(name, {}).get("addresses", ()))


def _is_placed_by_dask(state: Any) -> bool:
    """Return whether Dask alone chooses the worker of a key of ours.

    Other modules place those with a walltime, and the gangs, and leave out unfit workers.
    """
    annotations = state.annotations or {}
    if TOPIC in annotations:
        return GANG not in annotations and WALLTIME not in annotations
    return type(state.key) is tuple and str(state.key[0]).startswith(TOKEN)


def usable(scheduler: Scheduler, workers: Iterable[Any]) -> Iterator[Any]:
    """Yield those of some workers, as Dask's scheduler has them, that can run tasks of ours."""
    unfit = scheduler.extensions.get(_EXTENSION, ())
    return (each for each in workers if each.address not in unfit)


def usable_slots(scheduler: Scheduler) -> int:
    """Return how many tasks of ours run at once."""
    return int(sum(each.nthreads for each in usable(scheduler, scheduler.workers.values())))
