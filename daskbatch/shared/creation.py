"""Makes shared objects on a cluster, or finds those that are there.

Does not know what they are for.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from time import monotonic, sleep
from typing import Any, NamedTuple, Protocol, TypeAlias

from distributed import Client, get_client
from distributed.deploy import Cluster

from daskbatch import config
from daskbatch.cluster.connection import connect, register
from daskbatch.cluster.process_client import process_client
from daskbatch.cluster.session import open_clients
from daskbatch.errors import ServiceLost, SpecError
from daskbatch.shared.actor import SharedActor
from daskbatch.shared.data.messages import ObjectInfo, ObjectOptions, ObjectSpec, description_of
from daskbatch.shared.proxy import ObjectProxy, handle_of
from daskbatch.shared.registry import SharedRegistry
from daskbatch.shared.scheduler_rpc import ask, client_of, make_actors, scheduler_here, without_slot
from daskbatch.worker.execution.task_context import current

#: So many shards a dictionary has at most, if nobody says how many.
_SHARDS = 32

#: How often is looked whether there is a worker by now. Seconds.
_PAUSE = 0.1


class OwnerContext(NamedTuple):
    """Where an object is made, and with what it ends.

    Parameters
    ----------
    client : distributed.Client
        Of the cluster.
    owner : str, optional
        A Dask client or a Batch; None: it ends with the cluster.
    touch : callable, optional
        Is told of what is about to be read or written here.
    afresh : bool
        Whether there must be none of its name yet.
    """

    client: Client
    owner: str | None
    touch: Callable[..., None] | None = None
    afresh: bool = False


class Hosts(Protocol):
    """What has a home for shared objects: a Batch."""

    def _home(self) -> OwnerContext: ...


#: What `cluster=` may be.
Where: TypeAlias = str | Client | Cluster | Hosts | OwnerContext | None


@contextmanager
def at_home(cluster: Where, name: str | None = None) -> Iterator[OwnerContext]:
    """Have a client of a cluster for a while.

    Parameters
    ----------
    cluster
        Which.
    name : str, optional
        What is to be made there is called so: but for what a Batch makes, it is there for
        others, too, and ends with nobody.

    Raises
    ------
    LifecycleError
        There is none given, and this process is connected to none.
    ServiceLost
        Nothing answers there.
    """
    if isinstance(cluster, OwnerContext):
        yield cluster
        return
    if cluster is not None and hasattr(cluster, "_home"):
        yield cluster._home()
        return
    host = current()
    where = scheduler_here() if cluster is None else cluster
    if isinstance(where, Client):
        connect(where, None, "")  # it is looked at, and known from here on
        client: Client | None = where
    else:
        client = _own_client(where) if cluster is None and host is None else None
    if client is not None:
        yield OwnerContext(client, client.id if name is None else None)
    elif host is not None and where == host.scheduler:
        # A task's process knows nobody who stays; and others may be given what a task makes.
        with client_of(host.scheduler) as client:
            yield OwnerContext(client, host.batch if name is None else None)
    elif name is None:
        client = process_client(where)
        yield OwnerContext(client, client.id)
    else:
        connection = connect(where, None, "")
        try:
            yield OwnerContext(connection.client, None)
        finally:
            connection.close_in_background()


def _own_client(address: str) -> Client | None:
    """Give the client that this process has of a scheduler: the default one, or a Batch's."""
    found = open_clients()
    with suppress(ValueError):
        found.insert(0, get_client())
    running = (each for each in found if each.status == "running")
    return next((each for each in running if each.scheduler.address == address), None)


def open_shared(home: OwnerContext, options: ObjectOptions, name: str | None) -> ObjectProxy:
    """Make an object, or find the one of that name.

    Parameters
    ----------
    home : Home
        Where.
    options : Options
        How it is to be made.
    name : str, optional
        What it is called.

    Raises
    ------
    SpecError
        There are too few workers; or the name is that of another kind of object, or is taken
        and must not be.
    ServiceLost
        There is no worker.
    BatchError
        The cluster cannot import daskbatch.
    """
    if name is not None and not (isinstance(name, str) and name):
        raise SpecError(f"name= must be a text that is not empty, not {name!r}")
    client = home.client
    address = str(client.scheduler.address)
    register(client, SharedRegistry())
    uid = uuid.uuid4().hex[:12]
    with without_slot(None):
        workers = _begin(address, uid, options, name, home.owner)
        if isinstance(workers, ObjectInfo):
            if home.afresh:
                raise SpecError(
                    f"{description_of(workers.uid, workers.options, name)} is there already, and "
                    "stays as it is; close it first, or use another name"
                )
            _compare(workers, options, name)
            return handle_of(address, workers.uid, workers)
        try:
            placed = _make(client, address, uid, options, name, workers)
        except BaseException:
            with suppress(Exception):
                ask(address, "daskbatch_shared_close", uid=uid)
            raise
    return handle_of(address, uid, placed)


def _begin(
    address: str, uid: str, options: ObjectOptions, name: str | None, owner: str | None
) -> ObjectInfo | list[str]:
    end = monotonic() + config.get_seconds("unmet-timeout")
    while True:
        found: ObjectInfo | list[str] = ask(
            address, "daskbatch_shared_begin", uid=uid, options=options, name=name, owner=owner
        )
        if found:
            return found
        if monotonic() > end:
            raise ServiceLost(f"the cluster at {address} has no worker to take a {options.kind}")
        sleep(_PAUSE)


def _make(
    client: Client,
    address: str,
    uid: str,
    options: ObjectOptions,
    name: str | None,
    workers: list[str],
) -> ObjectInfo:
    count = options.shards or min(len(workers), _SHARDS)
    replicas = options.replicas
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
    made = make_actors(client, SharedActor, wanted)
    members = [member for member, _ in made]
    shards = [members[start : start + replicas] for start in range(0, len(members), replicas)]
    placed: Any = ask(address, "daskbatch_shared_made", uid=uid, shards=shards)
    if placed is None:
        raise ServiceLost(f"{description_of(uid, options, name)} was ended while it was being made")
    result: ObjectInfo = placed
    return result


def _compare(found: ObjectInfo, wanted: ObjectOptions, name: str | None) -> None:
    if found.options.kind != wanted.kind:
        raise SpecError(
            f"the name {name!r} is that of a {description_of(found.uid, found.options, None)}"
        )
    default = ObjectOptions(wanted.kind)
    for field in ("shards", "replicas", "memory_limit", "maxsize"):
        has, wants = getattr(found.options, field), getattr(wanted, field)
        if wants not in (has, getattr(default, field)):
            raise SpecError(
                f"{description_of(found.uid, found.options, name)} is there already, with "
                f"{field}={has!r}, and not {wants!r}; leave it out to use that one"
            )
