"""A cache of each RPC client's last reply, so that a repeated request is not executed again.

This is the server's half of exactly-once RPC by client and sequence number (Birrell & Nelson
1984; Lee et al., RIFL, 2015). A client has one request at a time: so its last reply is enough,
and a new request means that the client has received all earlier replies.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

from daskbatch.memory.shared_buffer import SharedBuffer

#: Of how many clients the last reply is kept: of those with the latest requests.
_MAX_CLIENTS = 1 << 14

#: Replies of more than `_LARGE_REPLY_BYTES` are kept while they are at most
#: `_MAX_LARGE_REPLIES_BYTES` together, the oldest being dropped first. The last one is always kept.
_MAX_LARGE_REPLIES_BYTES = 16 << 20
_LARGE_REPLY_BYTES = 1 << 10


class _Marker(Enum):
    """The type of `DROPPED`: an enum member stays one object when it is pickled."""

    DROPPED = "dropped"


#: In place of a reply that was too large to be kept.
DROPPED = _Marker.DROPPED


class CachedReply(NamedTuple):
    """The last request of a client: its sequence number and the reply."""

    seq: int
    reply: Any


class ReplyCache:
    """The last reply to each client.

    Not thread-safe: the owner's lock protects it.
    """

    def __init__(self) -> None:
        self._replies: OrderedDict[bytes, CachedReply] = OrderedDict()
        #: The sizes of large replies by client, the oldest first.
        self._large: OrderedDict[bytes, int] = OrderedDict()
        self._size = 0

    def find(self, client_id: bytes, seq: int) -> CachedReply | None:
        """Return the last reply to a client, if it is for this request or a later one.

        If it is for a later one, the client no longer waits for the reply to this request.
        """
        found = self._replies.get(client_id)
        return found if found is not None and found.seq >= seq else None

    def record(self, client_id: bytes, seq: int, reply: Any = None) -> None:
        """Record the reply to an executed request.

        A request without a client id is not recorded, since it is never repeated.
        """
        if not client_id:
            return
        self._replies[client_id] = CachedReply(seq, reply)
        self._replies.move_to_end(client_id)
        if self._large:
            self._size -= self._large.pop(client_id, 0)
        if len(self._replies) > _MAX_CLIENTS:
            oldest, _ = self._replies.popitem(last=False)
            self._size -= self._large.pop(oldest, 0)
        if reply is None or type(reply) is bool:
            return
        size = _size_of(reply)
        if size > _LARGE_REPLY_BYTES:
            self._large[client_id] = size
            self._size += size
            while self._size > _MAX_LARGE_REPLIES_BYTES and len(self._large) > 1:
                oldest, size = self._large.popitem(last=False)
                self._size -= size
                self._replies[oldest] = self._replies[oldest]._replace(reply=DROPPED)

    def entries(self) -> Iterator[tuple[bytes, int, Any]]:
        """Yield each client with the sequence number of its last request and the reply."""
        return ((client_id, *found) for client_id, found in self._replies.items())

    def clear(self) -> None:
        """Forget all replies."""
        self._replies.clear()
        self._large.clear()
        self._size = 0


def _size_of(reply: Any) -> int:
    if isinstance(reply, (tuple, list)):
        return sum(map(_size_of, reply))
    if isinstance(reply, SharedBuffer):
        return reply.nbytes
    try:
        return memoryview(reply).nbytes
    except TypeError:
        return 0
