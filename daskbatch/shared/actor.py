"""The Dask actor that has a shard of a dictionary, or a queue: its state, and the doors to it.

Does not know clients. Its methods are for the scheduler and for those that cannot come in by
the door; all else goes past Dask.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from time import monotonic
from typing import Any

import psutil
from distributed import Worker, get_worker
from distributed.comm import get_address_host
from distributed.core import Status

from daskbatch.cluster.connection import for_client, learn_security
from daskbatch.shared.actor_creation import make_actors
from daskbatch.shared.data.messages import Layout, NotServing, ObjectSpec, Request
from daskbatch.shared.rpc.answer import CONFIRM, answer_to
from daskbatch.shared.rpc.server import RpcServer
from daskbatch.shared.scheduler_rpc import ask, client_of, tls_context
from daskbatch.shared.store.queue_state import QueueState
from daskbatch.shared.store.replication import Replicator
from daskbatch.shared.store.shard import Shard
from daskbatch.shared.store.spill import SpillStore

#: How much of its worker's memory all may take together that say nothing of it themselves.
_FRACTION = 0.3

#: How long it may take from here until Dask knows that an actor is there. Seconds.
_MAKING_SECONDS = 30.0


class SharedActor:
    """A shard, or a queue.

    Parameters
    ----------
    spec : Spec
        Which, and of what.
    """

    def __init__(self, spec: ObjectSpec) -> None:
        worker: Worker = get_worker()
        self._spec = spec
        self._worker: weakref.ref[Worker] = weakref.ref(worker)
        self._key: str = worker.get_current_task()
        self._until = monotonic() + _MAKING_SECONDS
        address = worker.address
        context = None
        # What goes out from here later, in threads of no task, needs to know.
        learn_security(spec.scheduler, for_client(worker.security))
        if address.startswith(("tls", "wss")):
            context = worker.security.get_listen_args("worker")["ssl_context"]
        vault = _vault_of(worker, spec)
        self.state: Shard | QueueState
        self._followers: Replicator | None = None
        if spec.options.kind == "queue":
            self.state = QueueState(str(spec), vault, spec.options.maxsize)
        else:
            self.state = Shard(str(spec), vault)
            self.state.serves = spec.serves
            self._followers = Replicator(self.state, tls_context(spec.scheduler), self._ask)
            self.state.copies = self._followers
        host = "127.0.0.1" if address.startswith("inproc") else get_address_host(address)
        self.door = RpcServer(host, self.handle, self._is_needed, context)
        _here[spec.uid, spec.shard] = self

    def handle(self, request: Request, is_gone: Callable[[], bool]) -> Any:
        """Answer a request, in whatever thread; it may be that nobody waits for it any more."""
        if isinstance(self.state, QueueState):
            return self.state(request, is_gone)
        if request[0] == "follow":
            return self._follow(*request[4])
        return self.state(request)

    def _follow(self, epoch: int, *what: Any) -> None:
        followers = self._followers
        assert isinstance(self.state, Shard)
        assert followers is not None
        if self.state.closed or self.state.serves or epoch < followers.epoch:
            raise NotServing
        self.state.follow(*what)

    def _is_needed(self) -> bool:
        worker = self._worker()
        if worker is None or worker.status in (Status.closed, Status.closing, Status.failed):
            return False
        if self._key in worker.state.actors:
            self._until = 0.0
            return True
        # It may still be being made; what is not needed after all is forgotten without a word.
        return monotonic() < self._until

    def _ask(self, operation: str, **arguments: Any) -> Layout:
        spec = self._spec
        found = ask(spec.scheduler, operation, uid=spec.uid, index=spec.shard, **arguments)
        if not isinstance(found, Layout):
            raise NotServing
        return found

    # -- for Dask: coroutines, since all else of all actors of a worker shares one thread ---

    async def describe(self) -> bytes:
        """Give the address of the door."""
        return pickle.dumps(self.door.address)

    async def take(self, layout: bytes, key: str) -> None:
        """Hear who has the shard, and by what key this actor is known."""
        if self._followers is not None:
            await asyncio.to_thread(self._followers.take, pickle.loads(layout), key)

    async def recruit(self, worker: str) -> None:
        """Have one more copy, on a worker; returns before it is there."""
        threading.Thread(
            target=self._recruit, args=[worker], name="daskbatch-recruit", daemon=True
        ).start()

    def _recruit(self, worker: str) -> None:
        followers = self._followers
        assert followers is not None
        spec = self._spec._replace(serves=False)
        try:
            with client_of(spec.scheduler) as client:
                kept: list[Any] = []

                def make() -> Any:
                    ((member, future),) = make_actors(client, SharedActor, [(spec, worker)])
                    kept.append(future)
                    return member

                followers.recruit(make)
        except Exception as error:
            with contextlib.suppress(Exception):
                self._ask("daskbatch_shared_gave_up", worker=worker, why=repr(error))

    async def relay(self, data: bytes) -> bytes:
        """Answer a request that comes through the scheduler, since there is no other way."""
        answer = await asyncio.to_thread(answer_to, self.handle, pickle.loads(data))
        if answer[0] == CONFIRM:
            answer[2](True)
        return pickle.dumps(answer[:2], 5)

    async def close(self) -> bytes:
        """Be no more."""
        await asyncio.to_thread(self._close)
        return pickle.dumps(None)

    def _close(self) -> None:
        _here.pop((self._spec.uid, self._spec.shard), None)
        self.state.close()
        self.door.close()
        if self._followers is not None:
            self._followers.close()


#: The actors of this process.
_here: weakref.WeakValueDictionary[tuple[str, int], SharedActor] = weakref.WeakValueDictionary()

# A process that a task has forked has none: what it wrote there, nobody would see.
os.register_at_fork(after_in_child=_here.clear)

_vaults: weakref.WeakValueDictionary[Path, SpillStore] = weakref.WeakValueDictionary()
_making = threading.Lock()


def here(uid: str, index: int) -> SharedActor | None:
    """Give the actor of a shard, if it is in this process."""
    return _here.get((uid, index))


def _vault_of(worker: Worker, spec: ObjectSpec) -> SpillStore:
    """Give the one that all share whose limit nobody has said, or that of one object."""
    limit = spec.options.memory_limit
    if limit is None:
        name = "shared"
        total = worker.memory_manager.memory_limit or psutil.virtual_memory().total
        limit = int(total * _FRACTION)
    else:
        name = f"shared-{spec.uid}"
    place = Path(worker.local_directory) / f"daskbatch-{name}"
    with _making:
        vault = _vaults.get(place)
        if vault is None:
            vault = _vaults[place] = SpillStore(limit, place)
        return vault
