"""The scheduler's plugin for shared objects: knows them all, and which workers have their shards.

Only this plugin changes the layout of a shard, and each change has a new epoch. The primary of a
shard has the plugin remove a backup, or add one. So two workers never serve a shard at the same
time. See `shared.store.replication`.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Scheduler, SchedulerPlugin
from distributed.comm import get_address_host
from distributed.core import Status

from daskbatch.cluster.leaving.departures import departures_of, drop_absent_actors
from daskbatch.cluster.scheduler_plugin import SHARED_PLUGIN_NAME
from daskbatch.cluster.versions.unfit_workers import usable
from daskbatch.shared.actor_admission import ActorNotMade, describe_actor
from daskbatch.shared.answering import answering
from daskbatch.shared.data import routes
from daskbatch.shared.data.messages import Layout, ObjectInfo, ObjectOptions, Replica
from daskbatch.shared.placement import missing_replicas, spread, to_drop
from daskbatch.shared.sizes import size_of
from daskbatch.timeouts import Deadline
from daskbatch.worker.handshake import ServerAddress

#: The name of a client that Dask records as one that wants the actors, so that they stay until they
#: are released.
_ACTORS_CLIENT = "daskbatch-shared"

#: How many objects that have ended are remembered, to tell them from unknown ones.
_MAX_CLOSED_OBJECTS = 10_000

#: How long a client may take to make an object.
_CREATION_TIMEOUT_SECONDS = 120.0

#: The pause before a backup is built again, or an actor called again, after a failure.
_RETRY_SECONDS = 2.0

#: For how long other workers are preferred to one that could not take a backup or did not answer.
_AVOID_WORKER_SECONDS = 60.0

#: How many workers are asked, when an object is created, whether they answer; how long they may
#: take; and how long those that do not are avoided: they may be frozen, or cut off.
_MAX_ASKED, _ANSWER_TIMEOUT_SECONDS, _AVOID_SILENT_SECONDS = 64, 1.0, 10.0

#: How long shards may take to move away from a worker, and how often the scheduler looks.
_MOVE_TIMEOUT_SECONDS, _MOVE_POLL_INTERVAL_SECONDS = 120.0, 0.02

#: How long after a worker has joined shards are spread: others may join at the same time.
_SPREAD_DELAY_SECONDS = 0.5

#: The states of workers that can take a shard; one that is being initialized will run soon.
_ABLE_STATUSES = (Status.init, Status.running)


@dataclass(slots=True, eq=False)
class _Object:
    """A shared object as the scheduler knows it; only the event loop uses it."""

    uid: str
    options: ObjectOptions
    name: str | None
    #: The Dask client or the Batch with which the object ends.
    owner: str | None
    #: By shard; empty until the client has made all actors.
    layouts: list[Layout] = field(default_factory=list)
    #: The workers on which backups are being built, by shard.
    joining: dict[int, str] = field(default_factory=dict)
    #: The workers from which a shard is to move, though they stay, by shard; and where it is to go.
    moving: dict[int, tuple[str, str]] = field(default_factory=dict)
    #: The next attempt to build backups that could not be built.
    retry: asyncio.TimerHandle | None = None
    #: When a layout changes, it is set and replaced by a new one.
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    created: float = field(default_factory=time.monotonic)

    @property
    def info(self) -> ObjectInfo:
        return ObjectInfo(self.uid, self.options, self.name, tuple(self.layouts))

    def notify(self) -> None:
        """Wake the handlers that wait for a change of a layout."""
        self.changed.set()
        self.changed = asyncio.Event()


class SharedRegistry(SchedulerPlugin):  # type: ignore[misc]
    """The shared objects of a cluster.

    All methods run in the scheduler's event loop. The plugin adds these handlers to the scheduler;
    `shared.data.routes` has their names as constants. Each takes its arguments as one pickle of a
    dict, and returns its answer as a pickle:

    ``daskbatch_shared_begin_creation(uid, options, name, owner)``
        Reserves an object; returns the addresses of workers for it, none if there is no worker.
        If there is an object of this name, returns its `ObjectInfo`.
    ``daskbatch_shared_describe_actor(worker, key, seconds)``
        Waits until an actor is there; returns its `ServerAddress`, or the reason why it is not.
    ``daskbatch_shared_finish_creation(uid, shards)``
        Takes the replicas of each shard; returns the `ObjectInfo`, or None if the object was closed
        meanwhile.
    ``daskbatch_shared_find(uid)``
        Returns the `ObjectInfo`; "closed" for an object that has ended, "" for an unknown one.
    ``daskbatch_shared_await_layout(uid, index, epoch, seconds)``
        Waits until a shard's layout is newer than an epoch, or the time is up; returns the
        `Layout`, or "closed" or "" as `find` does.
    ``daskbatch_shared_remove_backup(uid, index, epoch, key)``
        For the primary: removes a backup that does not answer; returns the `Layout` or "closed".
    ``daskbatch_shared_add_backup(uid, index, epoch, replica)``
        For the primary: counts a backup that is complete; returns the `Layout`, "closed" or
        "too late".
    ``daskbatch_shared_backup_failed(uid, index, worker, reason)``
        For the primary: a backup could not be built on a worker; returns the `Layout` or "closed".
    ``daskbatch_shared_close(uid)``
        Ends an object; returns None.
    """

    name = SHARED_PLUGIN_NAME
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._objects: dict[str, _Object] = {}
        self._closed: dict[str, None] = {}
        #: By worker that failed to take a backup: until when others are preferred to it.
        self._avoided_until: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._departures = departures_of(scheduler)
        self._departures.movers.append(self.move_from)
        self._spreading: asyncio.TimerHandle | None = None
        handlers: dict[str, Callable[..., Any]] = {
            routes.BEGIN_CREATION: self._begin_creation,
            routes.DESCRIBE_ACTOR: self._describe_actor,
            routes.FINISH_CREATION: self._finish_creation,
            routes.FIND: self._find,
            routes.AWAIT_LAYOUT: self._await_layout,
            routes.REMOVE_BACKUP: self._remove_backup,
            routes.ADD_BACKUP: self._add_backup,
            routes.BACKUP_FAILED: self._backup_failed,
            routes.CLOSE: self._close,
        }
        for route, handler in handlers.items():
            scheduler.handlers[route] = _unpickling(handler)

    # -- creation and end -----------------------------------------------------------------

    async def _begin_creation(
        self, uid: str, options: ObjectOptions, name: str | None, owner: str | None
    ) -> ObjectInfo | Sequence[str]:
        """Return the object of a name, or the workers on which the client is to make it."""
        while name is not None:
            found = next((each for each in self._objects.values() if each.name == name), None)
            if found is None:
                break
            if found.layouts:
                return found.info
            # Another client is making it.
            remaining = found.created + _CREATION_TIMEOUT_SECONDS - time.monotonic()
            if remaining <= 0:
                self._end(found)
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(found.changed.wait(), remaining)
        workers = self._workers()
        if workers:
            # Before anything is awaited: another client may create an object of this name.
            self._objects[uid] = _Object(uid, options, name, owner)
            workers = await self._without_silent(workers, options.replicas)
        return workers

    async def _without_silent(self, workers: list[str], least: int) -> list[str]:
        """Leave out workers that do not answer at the moment, but keep `least`."""
        now = time.monotonic()
        silent = {each for each in workers if self._avoided_until.get(each, 0.0) > now}
        asked = [each for each in workers if each not in silent][:_MAX_ASKED]
        if len(workers) > 1:
            answered = await answering(self._scheduler, asked, _ANSWER_TIMEOUT_SECONDS)
            for worker in set(asked) - answered:
                silent.add(worker)
                self._avoided_until[worker] = time.monotonic() + _AVOID_SILENT_SECONDS
        able = [each for each in workers if each not in silent]
        spare = [each for each in workers if each in silent]
        return able + spare[: max(0, least - len(able))] if able else workers

    def _workers(self) -> list[str]:
        """Return the workers that can take a shard, first those that have fewest."""
        load: dict[str, int] = {}
        for each in self._objects.values():
            for layout in each.layouts:
                for replica in layout.replicas:
                    load[replica.worker] = load.get(replica.worker, 0) + 1
        workers = usable(self._scheduler, self._scheduler.workers.values())
        able = [each.address for each in workers if each.status in _ABLE_STATUSES]
        return sorted(able, key=lambda address: load.get(address, 0))

    async def _describe_actor(self, worker: str, key: str, seconds: float) -> ServerAddress | str:
        """Return the address of an actor's server once it is there, or why it will not be."""
        try:
            return await describe_actor(self._scheduler, worker, key, seconds)
        except ActorNotMade as error:
            return str(error)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

    async def _finish_creation(
        self, uid: str, shards: Sequence[Sequence[Replica]]
    ) -> ObjectInfo | None:
        """Record the replicas of an object's shards; None if it was ended meanwhile."""
        found = self._objects.get(uid)
        if found is None:
            return None
        replicas = [each for shard in shards for each in shard]
        self._keep_actors(replicas)
        found.layouts = [Layout(1, tuple(shard)) for shard in shards]
        await asyncio.gather(*(self._send_layout(layout) for layout in found.layouts))
        found.notify()
        for worker in {each.worker for each in replicas} - set(self._scheduler.workers):
            self._remove_worker(worker)
        # A worker may leave, or others may have joined, since the client was told the workers.
        self._add_missing_backups(found)
        return found.info

    def _keep_actors(self, replicas: Sequence[Replica]) -> None:
        """Have Dask keep actors until they are released."""
        keys = [each.key for each in replicas]
        self._scheduler.client_desires_keys(keys=keys, client=_ACTORS_CLIENT)

    def _find(self, uid: str) -> ObjectInfo | str:
        """Return an object; "closed" if it has ended, "" if it is not known."""
        found = self._objects.get(uid)
        if found is not None and found.layouts:
            return found.info
        return "closed" if uid in self._closed else ""

    async def _await_layout(self, uid: str, index: int, epoch: int, seconds: float) -> Layout | str:
        """Return the layout of a shard once it is newer than an epoch, or when time is up."""
        deadline = Deadline(seconds)
        while True:
            found = self._objects.get(uid)
            if found is None or not found.layouts:
                return "closed" if uid in self._closed else ""
            if found.layouts[index].epoch > epoch or deadline.passed:
                return found.layouts[index]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(found.changed.wait(), deadline.remaining())

    async def _close(self, uid: str) -> None:
        found = self._objects.get(uid)
        if found is not None:
            await self._end(found)

    def _end(self, found: _Object) -> asyncio.Task[None]:
        """End an object. Its clients learn of it when they use it next."""
        self._objects.pop(found.uid, None)
        self._closed[found.uid] = None
        if len(self._closed) > _MAX_CLOSED_OBJECTS:
            del self._closed[next(iter(self._closed))]
        replicas = [each for layout in found.layouts for each in layout.replicas]
        found.notify()
        return self._start(self._release(replicas))

    async def _release(self, replicas: Sequence[Replica]) -> None:
        """Close actors that belong to no layout any longer."""
        there = [each for each in replicas if each.worker in self._scheduler.workers]
        await asyncio.gather(*(self._call(each, "close") for each in there))
        if replicas:
            keys = [each.key for each in replicas]
            self._scheduler.client_releases_keys(keys=keys, client=_ACTORS_CLIENT)

    def end_owned(self, owner: str) -> list[asyncio.Task[None]]:
        """End the objects of an owner that has gone; each task ends when one of them has."""
        owned = [each for each in self._objects.values() if each.owner == owner]
        return [self._end(each) for each in owned]

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        self.end_owned(client)

    # -- layouts --------------------------------------------------------------------------

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self._avoided_until.pop(worker, None)
        self._remove_worker(worker)

    def _remove_worker(self, worker: str) -> None:
        for obj in self._objects.values():
            for index, layout in enumerate(obj.layouts):
                if obj.joining.get(index) == worker:
                    del obj.joining[index]
                lost = [replica for replica in layout.replicas if replica.worker == worker]
                if lost:
                    self._drop(obj, index, lost, f"its worker {worker} has died")
            self._add_missing_backups(obj)

    def _drop(self, obj: _Object, index: int, lost: Sequence[Replica], reason: str) -> None:
        """Remove lost replicas from a shard's layout; the first remaining one is the primary."""
        layout = obj.layouts[index]
        remaining = tuple(replica for replica in layout.replicas if replica not in lost)
        obj.layouts[index] = new = Layout(layout.epoch + 1, remaining, "" if remaining else reason)
        if index in obj.moving and obj.moving[index][0] in {each.worker for each in lost}:
            del obj.moving[index]
        if remaining and remaining[0] != layout.replicas[0]:
            obj.joining.pop(index, None)  # the primary that was building it has gone
        obj.notify()
        self._start(self._release(lost))
        if remaining:
            self._start(self._send_layout(new))

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        for obj in self._objects.values():
            self._add_missing_backups(obj)
        if self._spreading is None:
            loop = asyncio.get_running_loop()
            self._spreading = loop.call_later(_SPREAD_DELAY_SECONDS, self._spread)

    # -- moves ----------------------------------------------------------------------------

    async def move_from(self, worker: str) -> bool:
        """Move all that a worker has to workers that stay; returns whether all has moved."""
        deadline = Deadline(_MOVE_TIMEOUT_SECONDS)
        for obj in list(self._objects.values()):
            self._add_missing_backups(obj)
        while not deadline.passed and (state := self._scheduler.workers.get(worker)) is not None:
            there = [
                (obj, index)
                for obj in list(self._objects.values())
                for index, layout in enumerate(obj.layouts)
                if any(replica.worker == worker for replica in layout.replicas)
            ]
            drop_absent_actors(state)
            if not there and not any(_is_ours(ts.key) for ts in state.actors):
                return True
            for obj, index in there:
                if self._is_stranded(obj, index):
                    return False
            await asyncio.gather(*(self._drop_leaving(obj, index) for obj, index in there))
            await asyncio.sleep(_MOVE_POLL_INTERVAL_SECONDS)
        return worker not in self._scheduler.workers

    def _is_stranded(self, obj: _Object, index: int) -> bool:
        """Return whether a shard is on workers that leave, and no other worker can take it."""
        replicas = obj.layouts[index].replicas
        return (
            all(self._departures.is_leaving(replica.worker) for replica in replicas)
            and index not in obj.joining
            and not self._workers()
        )

    def _leaving(self, obj: _Object, index: int) -> set[str]:
        """Return the workers that no longer count for a shard."""
        replicas = obj.layouts[index].replicas
        found = {each.worker for each in replicas if self._departures.is_leaving(each.worker)}
        if index in obj.moving:
            source, target = obj.moving[index]
            if self._departures.is_leaving(target) or target not in self._scheduler.workers:
                # It stays where it is, else no worker would count for it.
                del obj.moving[index]
            else:
                found.add(source)
        return found

    async def _drop_leaving(self, obj: _Object, index: int) -> None:
        """Remove the replicas of a shard that others have replaced; the primary stops first."""
        layout, leaving = obj.layouts[index], self._leaving(obj, index)
        workers = [replica.worker for replica in layout.replicas]
        more_come = index in obj.joining or bool(set(self._workers()) - {*workers, *leaving})
        drop = to_drop(workers, obj.options.replicas, leaving, more_come)
        if not drop:
            return
        if workers[0] in drop:
            stopped = await self._call(layout.replicas[0], "stop_serving", layout.epoch)
            if obj.uid not in self._objects:
                return
            if not stopped and obj.layouts[index] is layout:
                # Most likely it has died. If not, it must go on: that takes a newer layout.
                obj.layouts[index] = layout._replace(epoch=layout.epoch + 1)
                obj.notify()
            if obj.layouts[index] is not layout:
                # Another one has died meanwhile, for example: this one may have to serve again.
                await self._send_layout(obj.layouts[index])
                return
        obj.moving.pop(index, None)
        lost = [replica for replica in layout.replicas if replica.worker in drop]
        self._drop(obj, index, lost, f"its worker {drop[0]} has left")

    def _spread(self) -> None:
        """Have shards move to workers that have fewer of their object."""
        self._spreading = None
        for obj in self._objects.values():
            idle = {
                index: [replica.worker for replica in layout.replicas]
                for index, layout in enumerate(obj.layouts)
                if layout.replicas and index not in obj.joining and index not in obj.moving
            }
            for move in spread(idle, self._workers()):
                obj.moving[move.shard] = move.source, move.target
            self._add_missing_backups(obj)

    def _add_missing_backups(self, obj: _Object) -> None:
        """Have backups built for shards with too few, if there are workers for them."""
        if obj.uid not in self._objects:
            return
        for index, layout in enumerate(obj.layouts):
            there = layout.replicas
            taken = {replica.worker for replica in there}
            if not there or index in obj.joining:
                continue
            leaving = self._leaving(obj, index)
            if not missing_replicas([*taken], obj.options.replicas, leaving):
                continue
            free = [address for address in self._workers() if address not in taken]
            if not free:
                if len(self._scheduler.workers) > len(there):
                    # A worker may be paused, and no event reports the end of a pause.
                    self._retry_later(obj)
            else:
                host = get_address_host(there[0].worker)
                free.sort(key=lambda address: get_address_host(address) == host)
                now = time.monotonic()
                free.sort(key=lambda address: self._avoided_until.get(address, 0.0) > now)
                if index in obj.moving:
                    target = obj.moving[index][1]
                    free.sort(key=lambda address: address != target)
                obj.joining[index] = free[0]
                self._start(self._request_backup(obj, index, there[0], free[0]))

    async def _request_backup(
        self, obj: _Object, index: int, primary: Replica, worker: str
    ) -> None:
        if not await self._call(primary, "add_backup", worker) and (
            obj.joining.get(index) == worker
        ):
            del obj.joining[index]
            self._retry_later(obj)

    def _remove_backup(self, uid: str, index: int, epoch: int, key: str) -> Layout | str:
        """Remove a backup that does not answer, if the caller is the primary of this epoch."""
        obj = self._objects.get(uid)
        if obj is None:
            return "closed"
        layout = obj.layouts[index]
        if layout.epoch != epoch:
            return layout
        lost = [replica for replica in layout.replicas[1:] if replica.key == key]
        if not lost:
            return layout
        for replica in lost:
            self._avoid(replica.worker)
        self._drop(obj, index, lost, "it did not answer")
        self._add_missing_backups(obj)
        return obj.layouts[index]

    def _add_backup(self, uid: str, index: int, epoch: int, replica: Replica) -> Layout | str:
        """Count a backup that is complete."""
        obj = self._objects.get(uid)
        if obj is None or obj.layouts[index].epoch != epoch:
            return "closed" if obj is None else "too late"
        if replica.worker not in self._scheduler.workers:
            return "too late"
        self._keep_actors([replica])
        obj.joining.pop(index, None)
        layout = obj.layouts[index]
        obj.layouts[index] = new = Layout(epoch + 1, (*layout.replicas, replica))
        obj.notify()
        self._start(self._send_layout(new))
        if index in obj.moving:
            self._start(self._drop_leaving(obj, index))
        self._add_missing_backups(obj)
        return new

    def _backup_failed(self, uid: str, index: int, worker: str, reason: str) -> Layout | str:
        """Record that a backup could not be built on a worker; it is tried again."""
        obj = self._objects.get(uid)
        if obj is None:
            return "closed"
        if obj.joining.get(index) == worker:
            del obj.joining[index]
            self._avoid(worker)
            self._retry_later(obj)
        return obj.layouts[index]

    def _retry_later(self, obj: _Object) -> None:
        """Try again in a while to have backups built."""
        if obj.retry is None:
            loop = asyncio.get_running_loop()
            obj.retry = loop.call_later(_RETRY_SECONDS, self._retry, obj)

    def _retry(self, obj: _Object) -> None:
        obj.retry = None
        self._add_missing_backups(obj)

    def _avoid(self, worker: str) -> None:
        """Prefer other workers for backups for a while."""
        self._avoided_until[worker] = time.monotonic() + _AVOID_WORKER_SECONDS

    # -- calls of actors ------------------------------------------------------------------

    async def _send_layout(self, layout: Layout) -> None:
        data = pickle.dumps(layout, 5)
        await asyncio.gather(*(self._send_to(replica, data) for replica in layout.replicas))

    async def _send_to(self, replica: Replica, layout: bytes) -> None:
        # Until it succeeds: a replica that does not know that it is the primary would refuse all
        # requests for ever. If it has received a newer layout by then, it ignores this one.
        while not await self._call(replica, "apply_layout", layout, replica.key):
            if replica.worker not in self._scheduler.workers:
                return
            await asyncio.sleep(_RETRY_SECONDS)

    async def _call(self, replica: Replica, function: str, *args: Any) -> bool:
        """Call a method of an actor; False if it failed, or if that is unknown."""
        try:
            answer = await self._scheduler.rpc(replica.worker).actor_execute(
                function=function, actor=replica.key, args=list(args), kwargs={}
            )
        except KeyError:
            return True  # the actor no longer exists
        except Exception:
            # Most likely the worker has gone; then `remove_worker` is called.
            return False
        return bool(answer["status"] == "OK")

    async def sizes(self, seconds: float) -> list[tuple[Any, ...]]:
        """Return how much each object holds, as `dashboard.SharedSize` has it.

        Parameters
        ----------
        seconds : float
            How long the primaries, which are asked, may take.
        """
        objects = [each.info for each in self._objects.values() if each.layouts]
        asked = (size_of(self._scheduler, each, seconds) for each in objects)
        return list(await asyncio.gather(*asked))

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine in the background; asyncio itself keeps no reference to its task."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _is_ours(key: Any) -> bool:
    """Return whether a key is that of an actor of a shared object."""
    return str(key).startswith(("daskbatch-ddict-", "daskbatch-queue-"))


def _unpickling(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Return a handler for Dask that takes its arguments as one pickle, and returns one."""

    async def handle(data: bytes) -> bytes:
        answer = handler(**pickle.loads(data))
        if asyncio.iscoroutine(answer):
            answer = await answer
        return pickle.dumps(answer, 5)

    return handle
