"""The operations of shards and queues: names, effects, arguments and replies, in one place.

`shared.dict_client` and `shared.queue` request them, `Shard` and `QueueState` execute them, and
`shared.proxy` decides by the effect whether the calling thread executes one itself. Keys
are encoded, and values packed, by `shared.data.codec`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, NamedTuple


class Effect(Enum):
    """What an operation does: it decides which thread may execute it, and how often."""

    #: It changes nothing, and takes no lock of the shard: a task on the shard's own worker executes
    #: it in its own thread, and may be interrupted at any point.
    READ = "read"

    #: It changes the contents: on the backups first, and once, even if the request is repeated.
    CHANGE = "change"

    #: Any other operation: a thread of the server executes it; if the request is repeated, it takes
    #: effect again.
    CONTROL = "control"


class Operation(NamedTuple):
    """One operation of a shard or a queue.

    Parameters
    ----------
    name : str
        The name in a `Request`.
    effect : Effect
        What it does.
    arguments : tuple of str
        The names of the arguments in the request.
    reply : str
        What it returns, in words.
    """

    name: str
    effect: Effect
    arguments: tuple[str, ...]
    reply: str


_READ, _CHANGE, _CONTROL = Effect.READ, Effect.CHANGE, Effect.CONTROL

# -- shards of a dictionary ---------------------------------------------------------------

GET = Operation("get", _READ, ("key",), "the value, or None; waits for the key if the request may")
GET_SOME = Operation(
    "get_some", _READ, ("keys",), "the values, or None, of the first keys: of as many as fit"
)
HAS = Operation("has", _READ, ("key",), "whether the key is there")
COUNT = Operation("count", _READ, (), "the number of keys")
KEYS = Operation("keys", _READ, (), "the list of keys")

PUT = Operation("put", _CHANGE, ("key", "value"), "None")
PUT_SOME = Operation("put_some", _CHANGE, ("pairs of key and value",), "None")
REMOVE = Operation("remove", _CHANGE, ("key",), "whether the key was there")
POP = Operation("pop", _CHANGE, ("key",), "the value, or None")
POP_ANY = Operation("pop_any", _CHANGE, (), "a key and its value, or None")
SET_DEFAULT = Operation(
    "set_default", _CHANGE, ("key", "value"), "the value that was there, or None"
)
ADD = Operation("add", _CHANGE, ("key", "number"), "the number that was there, or 0")
CLEAR = Operation("clear", _CHANGE, (), "None")
FREEZE = Operation("freeze", _CHANGE, ("whether to freeze",), "None")

STATS = Operation("stats", _CONTROL, (), "a dict of numbers, see `DDict.stats`")
HOLD = Operation("hold", _CONTROL, ("token",), "None, once nothing can write, for a while")
MARK = Operation("mark", _CONTROL, ("token",), "whether it is still held; if so, as VIEW")
RELEASE = Operation("release", _CONTROL, ("token",), "whether it was still held")
VIEW = Operation("view", _CONTROL, ("token",), "None; keeps the present contents for PAGE")
PAGE = Operation(
    "page", _CONTROL, ("token", "position"), "some keys and values of a view; None if unknown"
)
UNMARK = Operation("unmark", _CONTROL, ("token",), "None; drops the view")

#: A backup's operation, sent by the primary; not one of `SHARD_OPERATIONS`, since the actor checks
#: the epoch before the shard applies the changes.
FOLLOW = Operation(
    "follow", _CHANGE, ("epoch", "changes", "client id", "sequence number", "reply"), "None"
)

SHARD_OPERATIONS = (
    *(GET, GET_SOME, HAS, COUNT, KEYS),
    *(PUT, PUT_SOME, REMOVE, POP, POP_ANY, SET_DEFAULT, ADD, CLEAR, FREEZE),
    *(STATS, HOLD, MARK, RELEASE, VIEW, PAGE, UNMARK),
)

# -- queues -------------------------------------------------------------------------------

# A queue has no operations of the effect READ: even a size needs its lock, or may wait.

QUEUE_PUT = Operation("put", _CHANGE, ("value",), "whether there was room, also after a wait")
QUEUE_GET = Operation("get", _CHANGE, (), "the first value, to be confirmed, or None")
QUEUE_RECEIVED = Operation(
    "received",
    _CHANGE,
    (),
    "False if the item of the client's last `get` has returned to the queue",
)
TASK_DONE = Operation("task_done", _CHANGE, (), "False if no item was unfinished")
JOIN = Operation("join", _CONTROL, (), "whether all items are done, also after a wait")
QSIZE = Operation("qsize", _CONTROL, (), "the number of items")
QUEUE_STATS = Operation("stats", _CONTROL, (), "a dict of numbers")
QUEUE_VIEW = Operation("view", _CONTROL, ("token",), "None; keeps the present items for QUEUE_PAGE")
QUEUE_PAGE = Operation(
    "page", _CONTROL, ("token", "position"), "some items of a view; None if unknown"
)
QUEUE_UNVIEW = Operation("unmark", _CONTROL, ("token",), "None; drops the view")

QUEUE_OPERATIONS = (
    *(QUEUE_PUT, QUEUE_GET, QUEUE_RECEIVED, TASK_DONE, JOIN, QSIZE, QUEUE_STATS),
    *(QUEUE_VIEW, QUEUE_PAGE, QUEUE_UNVIEW),
)

# -- changes ------------------------------------------------------------------------------

#: A change of a shard, as its primary sends it to its backups: a tuple that begins with one of the
#: kinds below. A plain tuple, and not a record, since a `put_some` has up to 10,000 of them.
Change = tuple[Any, ...]

#: ``(SET, key, value)``, ``(DELETE, key)``, ``(CLEAR_ALL,)``, ``(SET_FROZEN, bool)``, and
#: ``(SET_REPLIES, [(client id, sequence number, reply), ...])``.
SET, DELETE, CLEAR_ALL, SET_FROZEN, SET_REPLIES = "set", "del", "clear", "freeze", "done"

#: Of a queue: ``(ITEM_PUT, number, value)``; ``(ITEM_TAKEN, number, client id, sequence number)``,
#: then ``(ITEM_CONFIRMED, number)`` or ``(ITEM_RETURNED, number)``; ``(ITEM_DONE,)``; and for a new
#: backup ``(QUEUE_COUNTS, last number, unfinished items)`` and ``(ITEM_COPIED, number, value, taken
#: by)``, where `taken by` is None, or a client id and a sequence number.
ITEM_PUT, ITEM_TAKEN, ITEM_CONFIRMED, ITEM_RETURNED = "put", "taken", "confirmed", "returned"
ITEM_DONE, ITEM_COPIED, QUEUE_COUNTS = "item done", "copied", "counts"

#: The kinds of changes that carry a value, as their third element.
WITH_VALUE = (SET, ITEM_PUT, ITEM_COPIED)

# -- dispatch -----------------------------------------------------------------------------


def by_name(handlers: Mapping[Operation, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """Return a table that finds the handler of an operation by its name in a request."""
    return {operation.name: handler for operation, handler in handlers.items()}


#: The names of the shard's operations that change it.
SHARD_CHANGES = frozenset(each.name for each in SHARD_OPERATIONS if each.effect is Effect.CHANGE)
