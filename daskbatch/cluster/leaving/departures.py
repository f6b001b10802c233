"""Has workers leave the cluster in good order: the scheduler's part.

A worker leaves in these steps; each is over before the next begins:

1. Dask gives it no further task, and it begins none. What it had not begun runs elsewhere.
2. Its parts of dictionaries and queues move to workers that stay, and then its values.
3. What runs there ends, for which it has `daskbatch.leave-timeout`. What still runs then is
   stopped, and the client decides by the rules for lost workers whether it runs again.
4. The values that were made meanwhile move, and Dask removes the worker.

This takes the place of Dask's `Scheduler.retire_workers`, which refuses workers with actors, and
has running tasks run a second time elsewhere. Nannies that close call the handler
``daskbatch_leave`` (`cluster.nanny_plugin`), and so do workers that get SIGTERM. All runs on the
scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from time import time
from typing import Any, Protocol

from distributed import Scheduler
from distributed.core import Status

from daskbatch import config
from daskbatch.cluster.leaving.recipients import Holding, not_begun, unable_to_leave
from daskbatch.cluster.versions.unfit_workers import usable
from daskbatch.timeouts import Deadline

#: The name under which the scheduler keeps its `Departures`.
_EXTENSION = "daskbatch-departures"

#: How long a worker may take to answer.
_ANSWER_TIMEOUT_SECONDS = 10.0

#: The interval at which a departure looks whether gangs still use slots of the worker.
_POLL_INTERVAL_SECONDS = 0.05

#: What the keys of daskbatch's own actors begin with; see `shared.actor_creation`.
_ACTOR_PREFIX = "daskbatch-"

#: What the stimulus begins with by which a worker retires itself, at the end of its lifetime.
_LIFETIME_STIMULUS = "worker-close-gracefully"

_logger = logging.getLogger("daskbatch")


class Tracker(Protocol):
    """Records what workers have reported about their end: a `worker_loss.WorkerLossTracker`."""

    def knows(self, worker: str) -> bool:
        """Return whether a worker has daskbatch's plugin."""

    def record_leaving(self, worker: str, traces: Mapping[str, bytes]) -> None:
        """Record what runs on a worker that begins nothing more."""

    def record_left(
        self,
        worker: str,
        keys: Mapping[str, Iterable[Any]],
        traces: Mapping[str, bytes],
        stuck: bool,
    ) -> None:
        """Record what still runs on a worker that leaves."""


@dataclass(slots=True, eq=False)
class _Departure:
    """A worker that leaves."""

    address: str
    request: int
    #: Set once it begins nothing more; and once nothing runs there.
    leaving: asyncio.Event = field(default_factory=asyncio.Event)
    left: asyncio.Event = field(default_factory=asyncio.Event)
    #: Moves what it has; returns whether all shards have moved.
    task: asyncio.Task[bool] | None = None


class Departures:
    """The workers that leave a cluster. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler, whose `retire_workers` is replaced.

    Attributes
    ----------
    tracker : Tracker, optional
        Receives what workers report. None if no Batch has been made on the cluster.
    movers : list of callable
        Each moves what it knows of away from a worker, and returns whether all could be moved.
    users : list of callable
        Each returns whether something uses slots of a worker, of which the worker does not know.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._departures: dict[str, _Departure] = {}
        self._requests = itertools.count()
        self.tracker: Tracker | None = None
        self.movers: list[Callable[[str], Awaitable[bool]]] = []
        self.users: list[Callable[[str], bool]] = []
        self._retire_as_dask = scheduler.retire_workers
        scheduler.retire_workers = self.retire
        scheduler.handlers["retire_workers"] = self.retire
        scheduler.handlers["daskbatch_leave"] = self.leave
        scheduler.stream_handlers["daskbatch-leaving"] = self._record_leaving
        scheduler.stream_handlers["daskbatch-left"] = self._record_left

    def is_leaving(self, address: str) -> bool:
        """Return whether a worker leaves."""
        return address in self._departures

    def remove_worker(self, address: str) -> None:
        """Note that a worker has gone, whether it was leaving or not."""
        departure = self._departures.pop(address, None)
        if departure is not None:
            departure.leaving.set()
            departure.left.set()

    # -- handlers -------------------------------------------------------------------------

    async def retire(
        self,
        workers: list[str] | None = None,
        *,
        names: list[Any] | None = None,
        close_workers: bool = False,
        remove: bool = True,
        stimulus_id: str | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Do what `Scheduler.retire_workers` does, and lose nothing; see there.

        A worker that retires itself leaves in any case, even if no other one can take what it has.
        """
        if (workers is not None or names is not None) and (
            kwargs or (workers is not None and names is not None)
        ):
            # Dask's own method says what is wrong.
            return await self._retire_as_dask(workers=workers, names=names, **kwargs)  # type: ignore[no-any-return]
        if names is not None:
            wanted = {str(name) for name in names}
            found = [w.address for w in self._scheduler.workers.values() if str(w.name) in wanted]
        elif workers is not None:
            found = [address for address in workers if address in self._scheduler.workers]
        else:
            found = self._scheduler.workers_to_close(**kwargs)
        stimulus_id = stimulus_id or f"retire-workers-{time()}"
        must = stimulus_id.startswith(_LIFETIME_STIMULUS)
        unable = set() if must else self._unable(found)
        able = [address for address in found if address not in unable]
        moved = await self._depart_all(able)
        for address in able:
            if address not in moved and not must:
                self._stay(address)
        retired: dict[str, Any] = await self._retire_as_dask(
            workers=found, close_workers=close_workers, remove=remove, stimulus_id=stimulus_id
        )
        for address in able:
            if address not in retired and not must:
                self._stay(address)
        return retired

    async def leave(self, worker: str) -> None:
        """Have a worker leave whose process is about to end, whatever becomes of its data.

        Parameters
        ----------
        worker : str
            Its address; that of a worker that has left is no error.
        """
        if worker not in self._scheduler.workers:
            return
        stimulus_id = f"daskbatch-leave-{time()}"
        await self._depart_all([worker])
        await self._retire_as_dask(
            workers=[worker], close_workers=False, remove=True, stimulus_id=stimulus_id
        )
        # If Dask refuses since nothing can take its values, they are lost as with a death.
        await self._scheduler.remove_worker(
            worker, expected=True, close=False, stimulus_id=stimulus_id
        )

    def _unable(self, found: Collection[str]) -> set[str]:
        """Return the workers that cannot leave without a loss."""
        leaving = {self._scheduler.workers[address] for address in found}
        staying = [
            each.address
            for each in usable(self._scheduler, self._scheduler.running)
            if each not in leaving and not self.is_leaving(each.address)
        ]
        holdings = {}
        for each in leaving:
            drop_absent_actors(each)
            keys = [ts if isinstance(ts, str) else ts.key for ts in each.actors]
            ours = [key for key in keys if str(key).startswith(_ACTOR_PREFIX)]
            unique = any(
                not (ts.who_has or set()) - leaving for ts in each.has_what if not ts.actor
            )
            holdings[each.address] = Holding(unique, bool(ours), len(ours) < len(keys))
        return unable_to_leave(holdings, staying)

    # -- one departure --------------------------------------------------------------------

    async def _depart_all(self, addresses: Iterable[str]) -> set[str]:
        """Do steps 1 to 3 for workers; returns those whose shards have all moved."""
        # All of them before any moves: a worker that leaves must not take what another one has.
        departures = [self._begin(address) for address in addresses]
        answers = await asyncio.gather(
            *(asyncio.shield(each.task) for each in departures if each.task is not None)
        )
        return {each.address for each, moved in zip(departures, answers, strict=True) if moved}

    def _begin(self, address: str) -> _Departure:
        departure = self._departures.get(address)
        if departure is None:
            departure = self._departures[address] = _Departure(address, next(self._requests))
            self._set_status(address, Status.closing_gracefully)
            _logger.info("worker %s leaves", address)
            departure.task = asyncio.ensure_future(self._depart(departure))
        return departure

    def _set_status(self, address: str, status: Status) -> None:
        """Set the status of a worker here and there, as Dask does."""
        worker = self._scheduler.workers.get(address)
        if worker is None or worker.status == status:
            return
        stimulus_id = f"daskbatch-leave-{time()}"
        self._scheduler.handle_worker_status_change(status, worker, stimulus_id)
        self._scheduler.worker_send(
            address,
            {"op": "worker-status-change", "status": status.name, "stimulus_id": stimulus_id},
        )

    async def _depart(self, departure: _Departure) -> bool:
        address = departure.address
        deadline = Deadline(config.get_optional_seconds("leave-timeout"))
        answers = self.tracker is not None and self.tracker.knows(address)
        if answers:
            self._scheduler.worker_send(
                address,
                {
                    "op": "daskbatch-leave",
                    "request": departure.request,
                    "seconds": deadline.remaining(),
                },
            )
            await _wait(departure.leaving, _ANSWER_TIMEOUT_SECONDS)
        moved = await self._move_shared(address)
        if moved:
            # Already now: the time may not suffice once all has ended.
            await self._retire_as_dask(workers=[address], close_workers=False, remove=False)
        while any(uses(address) for uses in self.users) and not deadline.passed:
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
        if answers:
            remaining = deadline.remaining()
            limit = None if remaining is None else remaining + _ANSWER_TIMEOUT_SECONDS
            await _wait(departure.left, limit)
        return moved

    async def _move_shared(self, address: str) -> bool:
        """Move the parts of dictionaries and queues that a worker has; return whether all moved."""
        moved = True
        for move in self.movers:
            try:
                moved = await move(address) and moved
            except Exception:
                _logger.exception("what worker %s has could not be moved", address)
                moved = False
        return moved

    def _stay(self, address: str) -> None:
        """Have a worker go on that could not leave."""
        departure = self._departures.pop(address, None)
        if departure is None or address not in self._scheduler.workers:
            return
        _logger.warning("worker %s stays: no other worker can take what it has", address)
        self._scheduler.worker_send(address, {"op": "daskbatch-stay", "request": departure.request})
        self._set_status(address, Status.running)

    # -- answers of the worker ------------------------------------------------------------

    def _record_leaving(
        self, request: int, executing: Collection[Any], traces: Mapping[str, bytes], worker: str
    ) -> None:
        """Have what a worker has not begun run elsewhere, since it begins nothing more."""
        if self.tracker is not None:
            self.tracker.record_leaving(worker, traces)
        departure, state = self._departures.get(worker), self._scheduler.workers.get(worker)
        if departure is None or departure.request != request or state is None:
            return
        stimulus_id = f"daskbatch-leaving-{time()}"
        reschedule = self._scheduler.stream_handlers["reschedule"]
        for key in not_begun([task.key for task in state.processing], executing):
            reschedule(key=key, worker=worker, stimulus_id=stimulus_id)
        departure.leaving.set()

    def _record_left(
        self,
        request: int,
        keys: Mapping[str, Iterable[Any]],
        traces: Mapping[str, bytes],
        stuck: bool,
        worker: str,
    ) -> None:
        """Record that nothing of daskbatch runs on a worker any longer, but for what is stuck."""
        if self.tracker is not None:
            self.tracker.record_left(worker, keys, traces, stuck)
        departure = self._departures.get(worker)
        if departure is not None and departure.request == request:
            departure.left.set()


def drop_absent_actors(worker: Any) -> None:
    """Have Dask's scheduler forget the actors of a worker that are not there.

    Dask records an actor when its worker is to make it. It keeps the record if the actor is
    cancelled before it is made, and then never lets the worker retire.
    """
    for task in list(worker.actors):
        if not isinstance(task, str) and not (
            task.processing_on is worker or worker in (task.who_has or ())
        ):
            worker.actors.discard(task)


async def _wait(event: asyncio.Event, seconds: float | None) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), seconds)


def departures_of(scheduler: Scheduler) -> Departures:
    """Return the departures of a scheduler; the first call replaces its `retire_workers`."""
    found = scheduler.extensions.get(_EXTENSION)
    if found is None:
        found = scheduler.extensions[_EXTENSION] = Departures(scheduler)
    assert isinstance(found, Departures)
    return found
