"""Creates shared objects on a cluster, or opens those that exist.

The functions may be called by any thread, in clients and in tasks. A task that waits for the
workers releases its slot meanwhile.
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from distributed import Client, get_client
from distributed.deploy import Cluster

from daskbatch.cluster.connection import connect, register
from daskbatch.cluster.growth.missing_watch import MissingWorkersWatch
from daskbatch.cluster.process_client import process_client
from daskbatch.cluster.session import open_clients
from daskbatch.describe.values import text_of
from daskbatch.errors import ServiceLost, SpecError
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.shared.actor import SharedActor
from daskbatch.shared.actor_creation import ActorLost, make_actors
from daskbatch.shared.data import routes
from daskbatch.shared.data.messages import ObjectInfo, ObjectOptions, ObjectSpec, description_of
from daskbatch.shared.proxy import ObjectProxy, proxy_of
from daskbatch.shared.registry import SharedRegistry
from daskbatch.shared.scheduler_rpc import call_scheduler, current_scheduler, temporary_client
from daskbatch.shared.waiting import without_slot
from daskbatch.worker.execution.task_context import current_context

_logger = logging.getLogger("daskbatch")

#: By default a dictionary has one shard per worker, and at most this number.
_MAX_DEFAULT_SHARDS = 32

#: How often a client asks whether the cluster has a worker, as long as it has none.
_WORKER_POLL_INTERVAL_SECONDS = 0.1

#: How long an object is tried to be made on other workers, after the first ones have gone.
_OTHER_WORKERS_TIMEOUT_SECONDS = 15.0


class OwnerContext(NamedTuple):
    """Where a shared object is created, and what ends its lifetime.

    Parameters
    ----------
    client : distributed.Client
        A client of the cluster.
    owner : str, optional
        The id of the Dask client or the Batch with which the object ends; None if it ends with the
        cluster.
    before_access : callable, optional
        Called before each access from this process.
    must_create : bool
        Whether a name that is in use is an error.
    grows : bool
        Whether the cluster may have more workers later. If so, copies for which there is no worker
        yet are made then.
    """

    client: Client
    owner: str | None
    before_access: Callable[..., None] | None = None
    must_create: bool = False
    grows: bool = True


class HasOwnerContext(Protocol):
    """An object that says where its shared objects are created: a Batch."""

    def _owner_context(self) -> OwnerContext: ...


#: What the parameter `cluster` of `DDict` and `Queue` accepts.
ClusterArgument: TypeAlias = (
    str | os.PathLike[str] | Client | Cluster | HasOwnerContext | OwnerContext | None
)


class Closable(Protocol):
    """An object that can be closed: a `DDict` or a `Queue`."""

    def close(self) -> None:
        """End the object."""


_Made = TypeVar("_Made", bound=Closable)


def create_filled(
    cluster: ClusterArgument,
    name: str | None,
    make: Callable[[OwnerContext], _Made],
    fill: Callable[[_Made], object],
) -> _Made:
    """Create an object and fill it; if that fails, it is closed.

    Parameters
    ----------
    cluster, name
        See `owner_context`. The name must not be in use.
    make : callable
        Creates the object.
    fill : callable
        Puts the contents into it.
    """
    with owner_context(cluster, name) as context:
        made = make(context._replace(must_create=True))
    try:
        fill(made)
    except BaseException:
        made.close()
        raise
    return made


@contextmanager
def owner_context(cluster: ClusterArgument, name: str | None = None) -> Iterator[OwnerContext]:
    """Yield a client of the cluster, and the owner that ends the object's lifetime.

    Parameters
    ----------
    cluster
        See `DDict`.
    name : str, optional
        The object's name. Objects with a name have no owner, unless a Batch makes them.

    Raises
    ------
    LifecycleError
        No cluster is given, and this process is connected to none, or to several.
    ServiceLost
        The cluster cannot be reached.
    """
    if isinstance(cluster, OwnerContext):
        yield cluster
        return
    if cluster is not None and hasattr(cluster, "_owner_context"):
        yield cluster._owner_context()
        return
    task = current_context()
    target = current_scheduler() if cluster is None else cluster
    if isinstance(target, Client):
        connect(target, None, "")  # this checks it, and remembers its security
        client: Client | None = target
    else:
        is_connected = cluster is None and task is None
        client = _client_of_process(str(target)) if is_connected else None
    if client is not None:
        yield OwnerContext(client, client.id if name is None else None)
    elif task is not None and target == task.scheduler:
        # A task's process has no client that stays, and the task may return the object. So it ends
        # with the task's Batch.
        with temporary_client(task.scheduler) as client:
            yield OwnerContext(client, task.batch if name is None else None)
    elif name is None:
        client = process_client(target)
        yield OwnerContext(client, client.id)
    else:
        connection = connect(target, None, "")
        try:
            yield OwnerContext(connection.client, None)
        finally:
            connection.close_in_background()


def _client_of_process(address: str) -> Client | None:
    """Return a client of a scheduler that this process has: the default one, or a Batch's."""
    found = open_clients()
    with suppress(ValueError):
        found.insert(0, get_client())
    running = (each for each in found if each.status == "running")
    return next((each for each in running if each.scheduler.address == address), None)


def create_or_open(context: OwnerContext, options: ObjectOptions, name: str | None) -> ObjectProxy:
    """Create a shared object, or open the one of that name.

    Parameters
    ----------
    context : OwnerContext
        Where it is created, and what ends its lifetime.
    options : ObjectOptions
        How it is created.
    name : str, optional
        Its name.

    Raises
    ------
    SpecError
        There are too few workers; or the name is that of an object of another kind or with other
        options, or is in use and must not be.
    ServiceLost
        There is no worker, or a worker was lost meanwhile.
    BatchError
        The cluster cannot import daskbatch.
    """
    if name is not None:
        text = text_of(name)
        if not text:
            raise SpecError(f"name= must be a text that is not empty, not {safe_repr(name)}")
        name = text
    client = context.client
    address = str(client.scheduler.address)
    register(client, SharedRegistry())
    began = monotonic()
    with without_slot(None):
        while True:
            uid = uuid.uuid4().hex[:12]
            found = _begin_creation(client, uid, options, name, context.owner)
            if isinstance(found, ObjectInfo):
                if context.must_create:
                    raise SpecError(
                        f"{description_of(found.uid, found.options, name)} is there already, and "
                        "stays as it is; close it first, or use another name"
                    )
                _require_compatible(found, options, name)
                return proxy_of(address, found.uid, found)
            try:
                info = _make_object(context, address, uid, options, name, found)
                return proxy_of(address, uid, info)
            except BaseException as error:
                with suppress(Exception):
                    call_scheduler(address, routes.CLOSE, uid=uid)
                # A worker may die in the moment in which it was chosen; others may not.
                is_new = monotonic() < began + _OTHER_WORKERS_TIMEOUT_SECONDS
                if not isinstance(error, ActorLost) or not is_new:
                    raise
            sleep(_WORKER_POLL_INTERVAL_SECONDS)


def _begin_creation(
    client: Client, uid: str, options: ObjectOptions, name: str | None, owner: str | None
) -> ObjectInfo | list[str]:
    """Return the object of that name, or the addresses of the workers for a new one.

    While the cluster has no worker it waits for one.
    """

    def begin() -> ObjectInfo | list[str]:
        answer: ObjectInfo | list[str] = call_scheduler(
            str(client.scheduler.address),
            routes.BEGIN_CREATION,
            uid=uid,
            options=options,
            name=name,
            owner=owner,
        )
        return answer

    return begin() or _begin_with_first_worker(client, uid, options.kind, begin)


def _begin_with_first_worker(
    client: Client, uid: str, kind: str, begin: Callable[[], ObjectInfo | list[str]]
) -> ObjectInfo | list[str]:
    """Call a function until there is a worker; meanwhile an adaptive cluster sees a task.

    Raises
    ------
    ServiceLost
        There have been workers for ``daskbatch.unmet-timeout``, but all have other software.
    """
    _logger.warning("%s waits for the first worker of the cluster", kind)
    asking = client.submit(_ask_for_worker, pure=False, key=f"daskbatch-wants-worker-{uid}")
    waits = True
    refused: list[str] = []
    loop = client.loop
    watch = MissingWorkersWatch(
        client,
        f"{kind} waits",
        lambda: waits,
        lambda seconds, function: loop.add_callback(loop.call_later, seconds, function),
        refused.append,
    )
    watch.start()
    try:
        while not refused:
            sleep(_WORKER_POLL_INTERVAL_SECONDS)
            found = begin()
            if found:
                return found
        raise ServiceLost(f"{kind} {refused[0]}")
    finally:
        waits = False
        asking.release()


def _ask_for_worker() -> None:
    """Do nothing: while there is no worker, an adaptive cluster starts one for this task."""


def _make_object(
    context: OwnerContext,
    address: str,
    uid: str,
    options: ObjectOptions,
    name: str | None,
    workers: list[str],
) -> ObjectInfo:
    """Make the actors of a new object."""
    count = options.shards or min(len(workers), _MAX_DEFAULT_SHARDS)
    replicas = options.replicas
    if replicas > len(workers) and context.grows:
        replicas = len(workers)
    if replicas > len(workers):
        raise SpecError(
            f"replicas={replicas} needs as many workers, and there are {len(workers)} now"
        )
    spec = ObjectSpec(address, uid, 0, options, name, serves=replicas == 1)
    wanted = [
        (spec._replace(shard=index), workers[(index + copy) % len(workers)])
        for index in range(count)
        for copy in range(replicas)
    ]
    # The futures in `made` keep the actors alive until the scheduler's plugin does.
    made = make_actors(context.client, SharedActor, wanted)
    actors = [replica for replica, _ in made]
    shards = [actors[start : start + replicas] for start in range(0, len(actors), replicas)]
    answer: Any = call_scheduler(address, routes.FINISH_CREATION, uid=uid, shards=shards)
    if answer is None:
        raise ServiceLost(f"{description_of(uid, options, name)} was ended while it was being made")
    info: ObjectInfo = answer
    return info


def _require_compatible(found: ObjectInfo, wanted: ObjectOptions, name: str | None) -> None:
    if found.options.kind != wanted.kind:
        raise SpecError(
            f"the name {safe_repr(name)} is that of a "
            f"{description_of(found.uid, found.options, None)}"
        )
    default = ObjectOptions(wanted.kind)
    for field in ("shards", "replicas", "memory_limit", "maxsize"):
        has, wants = getattr(found.options, field), getattr(wanted, field)
        if wants not in (has, getattr(default, field)):
            raise SpecError(
                f"{description_of(found.uid, found.options, name)} is there already, with "
                f"{field}={has!r}, and not {wants!r}; leave it out to use that one"
            )
