"""The records that clients, workers and the scheduler exchange about shared objects.

They are immutable, so any number of threads may use them. They are pickled, but never saved to
files, so that their fields may change with the version: all processes of a cluster have the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

from daskbatch.errors import LifecycleError, SerializationError, ServiceLost
from daskbatch.serialization import pickling
from daskbatch.serialization.safe_text import is_from_outside, safe_repr, summary
from daskbatch.worker.handshake import ServerAddress


class Replica(NamedTuple):
    """An actor that has a copy of a shard.

    Parameters
    ----------
    worker : str
        The address of its worker.
    key : str
        Dask's key of the actor.
    server : ServerAddress
        Where the actor answers requests.
    """

    worker: str
    key: str
    server: ServerAddress


class Layout(NamedTuple):
    """Which workers have a shard at one time.

    Parameters
    ----------
    epoch : int
        The number of the layout. It increases with every change.
    replicas : tuple of Replica
        The first is the primary, which serves the shard; the others are its backups. Without
        any, the shard is lost.
    lost : str
        How the shard was lost; empty if it was not.
    """

    epoch: int
    replicas: tuple[Replica, ...]
    lost: str = ""


class ObjectOptions(NamedTuple):
    """How a shared object is made; the same for all its users.

    Parameters
    ----------
    kind : str
        ``"ddict"`` or ``"queue"``.
    shards : int, optional
        The number of shards; None for one per worker, up to a limit.
    replicas : int
        On how many workers each shard is.
    memory_limit : int, optional
        The bytes that each worker keeps in memory; None for the limit that all objects of the
        worker share.
    maxsize : int
        The maximum number of items of a queue; 0 means unlimited.
    """

    kind: str
    shards: int | None = None
    replicas: int = 1
    memory_limit: int | None = None
    maxsize: int = 0


class ObjectInfo(NamedTuple):
    """A shared object, and the layouts of its shards."""

    uid: str
    options: ObjectOptions
    name: str | None
    layouts: tuple[Layout, ...]


class ObjectSpec(NamedTuple):
    """What an actor is made from.

    Parameters
    ----------
    scheduler : str
        The scheduler's address.
    uid : str
        The id of the shared object.
    shard : int
        The index of the actor's shard.
    options : ObjectOptions
        How the object is made.
    name : str, optional
        The object's name.
    serves : bool
        Whether the actor serves its shard at once: an object without backups needs no layout
        for that.
    """

    scheduler: str
    uid: str
    shard: int
    options: ObjectOptions
    name: str | None
    serves: bool

    def __str__(self) -> str:
        return description_of(self.uid, self.options, self.name)


class Request(NamedTuple):
    """A request to an actor.

    It travels as a plain tuple of the same fields, since a named one takes longer to pickle.

    Parameters
    ----------
    operation : str
        The name of an operation; see `shared.store.operations`.
    client_id : bytes
        The id of the RPC client that sent it; empty for a request that is never repeated.
    seq : int
        Its number among the requests of this client.
    wait : float
        Seconds that the server may wait until it can execute the operation.
    arguments : tuple
        The operation's arguments.
    """

    operation: str
    client_id: bytes
    seq: int
    wait: float
    arguments: tuple[Any, ...]


class NotServing(Exception):
    """This actor does not serve the shard, or no longer does; another one may."""


def description_of(uid: str, options: ObjectOptions | None, name: str | None) -> str:
    """Return what messages call an object: its class, and its name or id."""
    kind = "DDict" if options is None or options.kind == "ddict" else "Queue"
    return f"{kind} {name!r}" if name is not None else f"{kind} {uid}"


def closed_error(description: str) -> LifecycleError:
    """Return the error for a use of an object that has been closed."""
    return LifecycleError(
        f"{description} has been closed, or has ended with its Batch; make another one to go on"
    )


def unreachable_error(description: str, reason: object) -> ServiceLost:
    """Return the error for an object that cannot be reached: most likely its cluster has ended."""
    before = "" if description.startswith("Queue") else ", or save() it before"
    return ServiceLost(
        f"{description} cannot be reached: its Batch has probably ended, or its cluster is gone "
        f"({reason}); use it inside the with block{before}"
    )


def lost_error(description: str, reason: str, replicas: int = 1) -> ServiceLost:
    """Return the error for contents that were lost with a worker."""
    if description.startswith("Queue"):
        return ServiceLost(f"{description} is lost, and all that was in it: {reason}")
    hint = "" if replicas > 1 else " (replicas=2 would have kept it)"
    return ServiceLost(f"a part of {description} is lost: {reason}; what it held is gone{hint}")


def encode_error(error: BaseException) -> bytes:
    """Pickle an exception, or a `SerializationError` with its text if it does not pickle."""
    try:
        data = pickling.dumps(error)
        pickling.loads(data)
    except BaseException:  # pickling may run any code, even sys.exit()
        return pickling.dumps(SerializationError(summary(error)))
    return data


def decode_error(data: bytes) -> BaseException:
    """Undo `encode_error`."""
    try:
        error = pickling.loads(data)
    except BaseException as failure:  # unpickling may run any code, even sys.exit()
        if is_from_outside(failure):
            raise
        return SerializationError(
            f"an exception of the other side cannot be unpickled here: {summary(failure)}"
        )
    if not issubclass(type(error), BaseException):
        return SerializationError(safe_repr(error))
    return cast("BaseException", error)
