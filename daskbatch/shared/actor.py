"""The Dask actor that has a replica of a shard, or a queue: its state, and the server for it.

Clients send their requests directly to the server: a call of an actor through Dask takes a
millisecond. Only the scheduler calls the actor's own methods, also for clients that cannot reach
the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

import dask
import psutil
from distributed import Worker, get_worker
from distributed.comm import get_address_host
from distributed.core import Status

from daskbatch.cluster.connection import as_client_security, remember_security
from daskbatch.forking import after_fork
from daskbatch.shared.actor_creation import make_actors
from daskbatch.shared.data import routes
from daskbatch.shared.data.messages import Layout, NotServing, ObjectSpec, Replica, Request
from daskbatch.shared.rpc.answer import answer_to
from daskbatch.shared.rpc.server import RpcServer
from daskbatch.shared.scheduler_rpc import (
    call_scheduler,
    link_timeout,
    relay_request,
    temporary_client,
    tls_context,
)
from daskbatch.shared.store.operations import FOLLOW, Operation
from daskbatch.shared.store.queue_state import QueueState
from daskbatch.shared.store.replication import Replicator
from daskbatch.shared.store.shard import Shard
from daskbatch.shared.store.spill import SpillStore
from daskbatch.timeouts import Deadline
from daskbatch.worker.ports import set_ports

#: The part of its worker's memory that all objects without a `memory_limit` may take together.
_MEMORY_FRACTION = 0.3

#: How long it may take until Dask knows that the actor is there.
_CREATION_TIMEOUT_SECONDS = 30.0

#: How long the scheduler may take to pass a change on to a backup that cannot be reached from here.
#: No client can change the shard meanwhile.
_RELAY_TIMEOUT_SECONDS = 3.0

#: How much longer than a link may be broken an item that the scheduler has relayed may stay
#: unconfirmed.
_CONFIRM_MARGIN_SECONDS = 10.0

#: The bytes of this many values are added up for the page /daskbatch, while somebody looks at it.
_MAX_ADDED_VALUES = 20_000

#: In a global, since `handle` compares with it for each request.
_FOLLOW = FOLLOW.name


class SharedActor:
    """A replica of a shard, or a queue.

    Any number of threads may call `handle` and `read`.

    Parameters
    ----------
    spec : ObjectSpec
        The object and the shard.
    """

    def __init__(self, spec: ObjectSpec) -> None:
        worker: Worker = get_worker()
        self._spec = spec
        self._worker: weakref.ref[Worker] = weakref.ref(worker)
        self._key: str = worker.get_current_task()
        self._creation = Deadline(_CREATION_TIMEOUT_SECONDS)
        address = worker.address
        server_context = None
        # Threads that belong to no task connect from here later, and need the certificates.
        remember_security(spec.scheduler, as_client_security(worker.security))
        if address.startswith(("tls", "wss")):
            server_context = worker.security.get_listen_args("worker")["ssl_context"]
        store = _store_of(worker, spec)
        self.state: Shard | QueueState
        if spec.options.kind == "queue":
            confirm_seconds = link_timeout() + _CONFIRM_MARGIN_SECONDS
            self.state = QueueState(str(spec), store, spec.options.maxsize, confirm_seconds)
        else:
            self.state = Shard(str(spec), store)
        self.state.serves = spec.serves
        #: The primary's client, and the number of its last changes that were made here.
        self._followed = b"", 0
        self._follow_lock = threading.Lock()
        self._replicator = Replicator(
            *(self.state, tls_context(spec.scheduler), self._call_scheduler),
            relay=partial(relay_request, spec.scheduler, limit=_RELAY_TIMEOUT_SECONDS),
        )
        self.state.backups = self._replicator
        host = "127.0.0.1" if address.startswith("inproc") else get_address_host(address)
        set_ports(dask.config.get("daskbatch.port", default=None))
        self.server = RpcServer(host, self.handle, self._is_needed, server_context, address)
        _local_actors[spec.uid, spec.shard] = self

    def handle(self, request: Request, is_gone: Callable[[], bool]) -> Any:
        """Execute a request; called by the threads of the server. See `rpc.answer.Handler`."""
        if request.operation == _FOLLOW:
            return self._follow(request)
        if isinstance(self.state, QueueState):
            return self.state(request, is_gone)
        return self.state(request)

    def read(self, operation: Operation, arguments: tuple[Any, ...]) -> Any:
        """Execute an operation of the effect READ, in the thread of a task on this worker.

        Raises
        ------
        NotServing
            This actor does not serve the shard.
        """
        assert isinstance(self.state, Shard)
        return self.state.read(operation, arguments)

    def _follow(self, request: Request) -> None:
        """Make the changes that a primary sends, once, unless it has been replaced as primary."""
        epoch, *arguments = request.arguments
        with self._follow_lock:
            if self.state.closed or self.state.serves or epoch < self._replicator.epoch:
                raise NotServing
            sender, number = self._followed
            if sender == request.client_id and request.seq <= number:
                return  # it has come on a connection, and by way of the scheduler
            self.state.follow(*arguments)
            self._followed = request.client_id, request.seq

    def _is_needed(self) -> bool:
        worker = self._worker()
        if worker is None or worker.status in (Status.closed, Status.closing, Status.failed):
            return False
        if self._key in worker.state.actors:
            self._creation = Deadline(0.0)
            return True
        # Dask may not have recorded the actor yet. If the actor was cancelled meanwhile, Dask drops
        # it and reports nothing.
        return not self._creation.passed

    def _call_scheduler(self, route: str, **arguments: Any) -> Layout:
        spec = self._spec
        answer = call_scheduler(spec.scheduler, route, uid=spec.uid, index=spec.shard, **arguments)
        if not isinstance(answer, Layout):
            raise NotServing
        return answer

    # -- for Dask: coroutines, since all other methods of a worker's actors share one thread ---

    async def describe(self) -> bytes:
        """Return the address of the server."""
        return pickle.dumps(self.server.address)

    async def size(self) -> bytes:
        """Return how many keys or items it holds, and their bytes; None if they are too many."""
        return pickle.dumps(await asyncio.to_thread(self._size))

    def _size(self) -> tuple[int, int | None]:
        count = self.state.count()
        if count > _MAX_ADDED_VALUES:
            return count, None
        return count, sum(stored.size for stored in self.state.values())

    async def apply_layout(self, layout: bytes, key: str) -> None:
        """Adopt a layout of the shard; `key` is Dask's key of this actor."""
        await asyncio.to_thread(self._replicator.apply_layout, pickle.loads(layout), key)

    async def stop_serving(self, epoch: int) -> None:
        """Answer no further requests: another replica, which has all changes, is to serve.

        Parameters
        ----------
        epoch : int
            The present layout, which may still be on its way here: only a newer one can have this
            replica serve again.
        """
        await asyncio.to_thread(self._stop_serving, epoch)

    def _stop_serving(self, epoch: int) -> None:
        self._replicator.stop(epoch)
        self.state.stop_serving()

    async def add_backup(self, worker: str) -> None:
        """Begin to build one more backup, on another worker."""
        threading.Thread(
            target=self._add_backup, args=[worker], name="daskbatch-add-backup", daemon=True
        ).start()

    def _add_backup(self, worker: str) -> None:
        spec = self._spec._replace(serves=False)
        try:
            with temporary_client(spec.scheduler) as client:
                futures: list[Any] = []  # they keep the actor alive until the scheduler does

                def make() -> Replica:
                    ((replica, future),) = make_actors(client, SharedActor, [(spec, worker)])
                    futures.append(future)
                    return replica

                self._replicator.add_backup(make)
        except Exception as error:
            with contextlib.suppress(Exception):
                self._call_scheduler(routes.BACKUP_FAILED, worker=worker, reason=repr(error))

    async def relay(self, data: bytes) -> bytes:
        """Answer a request that the scheduler passes on, since the client cannot connect here."""
        answer: Future[bytes] = Future()
        # In a thread for this request, as if the client had a connection: requests that wait would
        # soon take all threads of asyncio's pool, and what they wait for could not arrive.
        threading.Thread(
            target=self._relay, args=[data, answer], name="daskbatch-relayed", daemon=True
        ).start()
        return await asyncio.wrap_future(answer)

    def _relay(self, data: bytes, answer: Future[bytes]) -> None:
        answer.set_running_or_notify_cancel()
        try:
            request = Request._make(pickle.loads(data))
            status, result, settle = answer_to(self.handle, request)
            if settle is not None:
                settle(None)  # the client confirms it by a request
            answer.set_result(pickle.dumps((status, result), 5))
        except BaseException as error:
            answer.set_exception(error)

    async def close(self) -> bytes:
        """Close the actor's state, its server and its connections."""
        await asyncio.to_thread(self._close)
        return pickle.dumps(None)

    def _close(self) -> None:
        _local_actors.pop((self._spec.uid, self._spec.shard), None)
        self.state.close()
        self.server.close()
        self._replicator.close()


#: The actors of this process, by object and shard.
_local_actors: weakref.WeakValueDictionary[tuple[str, int], SharedActor] = (
    weakref.WeakValueDictionary()
)

# A process that a task forks must not use its copies: no other process sees what it writes there.
after_fork(_local_actors.clear)

#: By directory: the stores of this process.
_stores: weakref.WeakValueDictionary[Path, SpillStore] = weakref.WeakValueDictionary()
_stores_lock = threading.Lock()


def local_actor(uid: str, index: int) -> SharedActor | None:
    """Return the actor of a shard, if it is in this process."""
    return _local_actors.get((uid, index))


def _store_of(worker: Worker, spec: ObjectSpec) -> SpillStore:
    """Return the store of this object if it has its own memory limit, else the shared one.

    All objects of the worker without a memory limit share one store.
    """
    limit = spec.options.memory_limit
    if limit is None:
        name = "shared"
        total = worker.memory_manager.memory_limit or psutil.virtual_memory().total
        limit = int(total * _MEMORY_FRACTION)
    else:
        name = f"shared-{spec.uid}"
    directory = Path(worker.local_directory) / f"daskbatch-{name}"
    with _stores_lock:
        store = _stores.get(directory)
        if store is None:
            store = _stores[directory] = SpillStore(limit, directory)
        return store
