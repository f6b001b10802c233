"""What is said of shared objects between clients, workers and the scheduler.

Does not know who says it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from daskbatch.errors import LifecycleError, SerializationError, ServiceLost
from daskbatch.serialization import pickling


class ServerAddress(NamedTuple):
    """Where a door is, and what it takes to be let in.

    Parameters
    ----------
    host, port
        Where it listens.
    secret : bytes
        What both sides must know.
    tls : bool
        Whether all is encrypted that goes through it.
    """

    host: str
    port: int
    secret: bytes
    tls: bool

    def __repr__(self) -> str:
        return f"ServerAddress({self.host}:{self.port})"


class Replica(NamedTuple):
    """A worker that has what belongs to a shard.

    Parameters
    ----------
    worker : str
        Its address.
    key : str
        Dask's key of the actor.
    door : ServerAddress
        Where the actor is reached.
    """

    worker: str
    key: str
    door: ServerAddress


class Layout(NamedTuple):
    """Who has a shard, as it stands.

    Parameters
    ----------
    epoch : int
        Goes up whenever that changes.
    members : tuple of Member
        The first serves it, the others have copies. Without any, it is lost.
    lost : str
        How that came about.
    """

    epoch: int
    members: tuple[Replica, ...]
    lost: str = ""


class ObjectOptions(NamedTuple):
    """How a shared object is made; what may differ between its handles is no part of it."""

    kind: str
    shards: int | None = None
    replicas: int = 1
    memory_limit: int | None = None
    maxsize: int = 0


class ObjectInfo(NamedTuple):
    """A shared object, and where it is."""

    uid: str
    options: ObjectOptions
    name: str | None
    layouts: tuple[Layout, ...]


class ObjectSpec(NamedTuple):
    """What an actor is to be.

    Parameters
    ----------
    scheduler : str
        Its address.
    uid : str
        The object.
    shard : int
        The shard of it.
    options : Options
        How the object is made.
    name : str, optional
        What the object is called.
    serves : bool
        Whether the actor serves its shard at once, without a copy.
    """

    scheduler: str
    uid: str
    shard: int
    options: ObjectOptions
    name: str | None
    serves: bool

    def __str__(self) -> str:
        return description_of(self.uid, self.options, self.name)


class NotServing(Exception):
    """This actor is not, or no longer, the one to ask."""


def description_of(uid: str, options: ObjectOptions | None, name: str | None) -> str:
    """Say in messages which object it is."""
    kind = "DDict" if options is None or options.kind == "ddict" else "Queue"
    return f"{kind} {name!r}" if name is not None else f"{kind} {uid}"


def closed_error(what: str) -> LifecycleError:
    """Say that an object has been closed."""
    return LifecycleError(
        f"{what} has been closed, or has ended with its Batch; make another one to go on"
    )


def unreachable_error(what: str, why: object) -> ServiceLost:
    """Say that an object cannot be reached: most likely it is used too late."""
    before = "" if what.startswith("Queue") else ", or save() it before"
    return ServiceLost(
        f"{what} cannot be reached: its Batch has probably ended, or its cluster is gone ({why}); "
        f"use it inside the with block{before}"
    )


def lost_error(what: str, why: str, replicas: int = 1) -> ServiceLost:
    """Say that what an object held is gone."""
    if what.startswith("Queue"):
        return ServiceLost(f"{what} is lost, and all that was in it: {why}")
    more = "" if replicas > 1 else " (replicas=2 would have kept it)"
    return ServiceLost(f"a part of {what} is lost: {why}; what it held is gone{more}")


def error_to_send(error: BaseException) -> bytes:
    """Pickle an exception; or another one that says what it was."""
    try:
        data = pickling.dumps(error)
        pickling.loads(data)
    except Exception:
        return pickling.dumps(SerializationError(f"{type(error).__name__}: {error}"))
    return data


def error_sent(data: bytes) -> BaseException:
    """Undo `error_to_send`."""
    try:
        error = pickling.loads(data)
    except Exception as failure:
        return SerializationError(
            f"an exception of the other side cannot be unpickled here: {failure}"
        )
    return error if isinstance(error, BaseException) else SerializationError(repr(error))


#: What a request looks like: what is to be done, through which lane it came and as the how manieth
#: there, how long may be waited, and what it is about.
Request = tuple[str, bytes, int, float, tuple[Any, ...]]
