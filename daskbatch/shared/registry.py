"""The scheduler's part in shared objects: which there are, who has them, and who takes over.

Does not know what they hold. What it says of who has a shard is what holds: it is asked before
a copy is struck off or counts, so that two workers never both answer for a shard.
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

from daskbatch.cluster.scheduler_plugin import SHARED_PLUGIN_NAME
from daskbatch.shared.actor_admission import NotMade, describe_actor
from daskbatch.shared.data.messages import Layout, ObjectInfo, ObjectOptions, Replica, ServerAddress

#: Whose the actors are, in Dask's books: they stay until they are closed.
_HOLDER = "daskbatch-shared"

#: Of so many objects that are no more, it is known that they were.
_CLOSED = 10_000

#: How long one who makes an object may take. Seconds.
_MAKING_SECONDS = 120.0

#: After so long a copy is tried again that could not be made. Seconds.
_AGAIN_SECONDS = 2.0

#: For so long others come first, after a worker could not take one, or did not answer. Seconds.
_AVOIDED_SECONDS = 60.0

#: Workers that can take something; one that has just come runs in a moment.
_ABLE = (Status.init, Status.running)


@dataclass(slots=True, eq=False)
class _Object:
    uid: str
    options: ObjectOptions
    name: str | None
    #: The Dask client or the Batch that it ends with.
    owner: str | None
    layouts: list[Layout] = field(default_factory=list)
    #: The workers on which copies are being made, by shard.
    recruits: dict[int, str] = field(default_factory=dict)
    #: When copies are tried again that could not be made.
    again: asyncio.TimerHandle | None = None
    #: Is set, and replaced, when anything changes.
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    since: float = field(default_factory=time.monotonic)

    @property
    def placed(self) -> ObjectInfo:
        return ObjectInfo(self.uid, self.options, self.name, tuple(self.layouts))

    def change(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class SharedRegistry(SchedulerPlugin):  # type: ignore[misc]
    """The shared objects of a cluster."""

    name = SHARED_PLUGIN_NAME
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._objects: dict[str, _Object] = {}
        self._closed: dict[str, None] = {}
        #: Workers that had trouble with copies, and until when that counts.
        self._avoided: dict[str, float] = {}
        self._working: set[asyncio.Task[None]] = set()
        for operation in (
            self._begin,
            self._describe,
            self._made,
            self._find,
            self._look,
            self._strike,
            self._joined,
            self._gave_up,
            self._close,
        ):
            name = f"daskbatch_shared{operation.__name__}"
            scheduler.handlers[name] = _unpacking(operation)

    # -- making and ending ----------------------------------------------------------------

    async def _begin(
        self, uid: str, options: ObjectOptions, name: str | None, owner: str | None
    ) -> ObjectInfo | Sequence[str]:
        """Give the object of a name, or the workers on which one is to be made."""
        while name is not None:
            found = next((each for each in self._objects.values() if each.name == name), None)
            if found is None:
                break
            if found.layouts:
                return found.placed
            # Somebody is making it.
            left = found.since + _MAKING_SECONDS - time.monotonic()
            if left <= 0:
                self._end(found)
                break
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(found.changed.wait(), left)
        workers = self._workers()
        if workers:
            self._objects[uid] = _Object(uid, options, name, owner)
        return workers

    def _workers(self) -> list[str]:
        """Give the workers that can take something, those first that have least."""
        load: dict[str, int] = {}
        for each in self._objects.values():
            for layout in each.layouts:
                for member in layout.members:
                    load[member.worker] = load.get(member.worker, 0) + 1
        able = [w.address for w in self._scheduler.workers.values() if w.status in _ABLE]
        return sorted(able, key=lambda address: load.get(address, 0))

    async def _describe(self, worker: str, key: str, seconds: float) -> ServerAddress | str:
        """Give where an actor is reached, once it is there; or say why it will not be."""
        try:
            return await describe_actor(self._scheduler, worker, key, seconds)
        except Exception as error:
            return str(error) if isinstance(error, NotMade) else f"{type(error).__name__}: {error}"

    async def _made(self, uid: str, shards: Sequence[Sequence[Replica]]) -> ObjectInfo | None:
        """Take in who has what; None if it was ended meanwhile."""
        found = self._objects.get(uid)
        if found is None:
            return None
        members = [each for some in shards for each in some]
        self._hold(members)
        found.layouts = [Layout(1, tuple(some)) for some in shards]
        await asyncio.gather(*(self._tell(layout) for layout in found.layouts))
        found.change()
        for worker in {each.worker for each in members} - set(self._scheduler.workers):
            self._lose(worker)
        return found.placed

    def _hold(self, members: Sequence[Replica]) -> None:
        keys = [each.key for each in members]
        self._scheduler.client_desires_keys(keys=keys, client=_HOLDER)

    def _find(self, uid: str) -> ObjectInfo | str:
        """Give an object; or what is known of it: "closed" or nothing."""
        found = self._objects.get(uid)
        if found is not None and found.layouts:
            return found.placed
        return "closed" if uid in self._closed else ""

    async def _look(self, uid: str, index: int, epoch: int, seconds: float) -> Layout | str:
        """Give the layout of a shard once it is newer than an epoch, or after a while."""
        end = time.monotonic() + seconds
        while True:
            found = self._objects.get(uid)
            if found is None or not found.layouts:
                return "closed" if uid in self._closed else ""
            left = end - time.monotonic()
            if found.layouts[index].epoch > epoch or left <= 0:
                return found.layouts[index]
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(found.changed.wait(), left)

    async def _close(self, uid: str) -> None:
        found = self._objects.get(uid)
        if found is not None:
            await self._end(found)

    def _end(self, found: _Object) -> asyncio.Task[None]:
        """End an object; those who use it find out."""
        self._objects.pop(found.uid, None)
        self._closed[found.uid] = None
        if len(self._closed) > _CLOSED:
            del self._closed[next(iter(self._closed))]
        members = [each for layout in found.layouts for each in layout.members]
        found.change()
        return self._start(self._dismiss(members))

    async def _dismiss(self, members: Sequence[Replica]) -> None:
        """Have actors end that belong to nothing any more."""
        there = [each for each in members if each.worker in self._scheduler.workers]
        await asyncio.gather(*(self._call(each, "close") for each in there))
        if members:
            keys = [each.key for each in members]
            self._scheduler.client_releases_keys(keys=keys, client=_HOLDER)

    def end_owned(self, owner: str) -> list[asyncio.Task[None]]:
        """End what somebody has made who is gone; gives what is over once it is."""
        owned = [each for each in self._objects.values() if each.owner == owner]
        return [self._end(each) for each in owned]

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        self.end_owned(client)

    # -- who has what ---------------------------------------------------------------------

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        self._avoided.pop(worker, None)
        self._lose(worker)

    def _lose(self, worker: str) -> None:
        for each in self._objects.values():
            for index, layout in enumerate(each.layouts):
                if each.recruits.get(index) == worker:
                    del each.recruits[index]
                gone = [member for member in layout.members if member.worker == worker]
                if gone:
                    self._without(each, index, gone, f"its worker {worker} has died")
            self._fill(each)

    def _without(self, each: _Object, index: int, gone: Sequence[Replica], why: str) -> None:
        """Go on with those of a shard that are left."""
        layout = each.layouts[index]
        left = tuple(member for member in layout.members if member not in gone)
        each.layouts[index] = new = Layout(layout.epoch + 1, left, "" if left else why)
        if left != layout.members and left and left[0] != layout.members[0]:
            each.recruits.pop(index, None)  # who was making it is gone
        each.change()
        self._start(self._dismiss(gone))
        if left:
            self._start(self._tell(new))

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        for each in self._objects.values():
            self._fill(each)

    def _fill(self, each: _Object) -> None:
        """Have copies made where there are too few, if there are workers for them."""
        if each.uid not in self._objects:
            return
        for index, layout in enumerate(each.layouts):
            there = layout.members
            if not there or len(there) >= each.options.replicas or index in each.recruits:
                continue
            taken = {member.worker for member in there}
            free = [address for address in self._workers() if address not in taken]
            if not free:
                if len(self._scheduler.workers) > len(there):
                    self._later(each)  # one is paused, say; nobody tells when it goes on
            else:
                host = get_address_host(there[0].worker)
                free.sort(key=lambda address: get_address_host(address) == host)
                now = time.monotonic()
                free.sort(key=lambda address: self._avoided.get(address, 0.0) > now)
                each.recruits[index] = free[0]
                self._start(self._have_recruited(each, index, there[0], free[0]))

    async def _have_recruited(self, each: _Object, index: int, member: Replica, on: str) -> None:
        if not await self._call(member, "recruit", on) and each.recruits.get(index) == on:
            del each.recruits[index]
            self._later(each)

    def _strike(self, uid: str, index: int, epoch: int, key: str) -> Layout | str:
        """Strike off a copy that does not answer; it is for the one to say that serves."""
        each = self._objects.get(uid)
        if each is None:
            return "closed"
        layout = each.layouts[index]
        if layout.epoch != epoch:
            return layout
        gone = [member for member in layout.members[1:] if member.key == key]
        if not gone:
            return layout
        for member in gone:
            self._avoid(member.worker)
        self._without(each, index, gone, "it did not answer")
        self._fill(each)
        return each.layouts[index]

    def _joined(self, uid: str, index: int, epoch: int, member: Replica) -> Layout | str:
        """Count a copy that has all by now."""
        each = self._objects.get(uid)
        if each is None or each.layouts[index].epoch != epoch:
            return "closed" if each is None else "too late"
        if member.worker not in self._scheduler.workers:
            return "too late"
        self._hold([member])
        each.recruits.pop(index, None)
        layout = each.layouts[index]
        each.layouts[index] = new = Layout(epoch + 1, (*layout.members, member))
        each.change()
        self._start(self._tell(new))
        self._fill(each)
        return new

    def _gave_up(self, uid: str, index: int, worker: str, why: str) -> Layout | str:
        """Hear that a copy could not be made there; it is tried again."""
        each = self._objects.get(uid)
        if each is None:
            return "closed"
        if each.recruits.get(index) == worker:
            del each.recruits[index]
            self._avoid(worker)
            self._later(each)
        return each.layouts[index]

    def _later(self, each: _Object) -> None:
        """Try again to have copies made, in a while."""
        if each.again is None:
            each.again = asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._again, each)

    def _again(self, each: _Object) -> None:
        each.again = None
        self._fill(each)

    def _avoid(self, worker: str) -> None:
        """Have another worker take copies for a while, if there is one."""
        self._avoided[worker] = time.monotonic() + _AVOIDED_SECONDS

    # -- actors ---------------------------------------------------------------------------

    async def _tell(self, layout: Layout) -> None:
        data = pickle.dumps(layout, 5)
        await asyncio.gather(*(self._have_taken(member, data) for member in layout.members))

    async def _have_taken(self, member: Replica, data: bytes) -> None:
        # Who did not hear that it serves would send all away for ever. If there is news by now,
        # it is older, and left aside.
        while not await self._call(member, "take", data, member.key):
            if member.worker not in self._scheduler.workers:
                return
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _call(self, member: Replica, function: str, *args: Any) -> bool:
        """Have an actor do something; False if it is not known to have."""
        try:
            answer = await self._scheduler.rpc(member.worker).actor_execute(
                function=function, actor=member.key, args=list(args), kwargs={}
            )
        except KeyError:
            return True  # there is no such actor any more
        except Exception:
            # Mostly the worker is gone, and that is heard of otherwise.
            return False
        return bool(answer["status"] == "OK")

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)
        return task


def _unpacking(operation: Callable[..., Any]) -> Callable[..., Any]:
    """Have what is sent as pickles be arguments, and the answer be one."""

    async def handler(data: bytes) -> bytes:
        answer = operation(**pickle.loads(data))
        if asyncio.iscoroutine(answer):
            answer = await answer
        return pickle.dumps(answer, 5)

    return handler
