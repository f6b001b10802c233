"""Remembers what came last through each lane, so that what is asked twice is done once.

Does not know what was asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from enum import Enum
from typing import Any, NamedTuple

#: Of so many lanes is known what came last through them.
_LANES = 1 << 14

#: Large answers, of more than `_LARGE` bytes each, are kept as long as they are no more than this
#: in all; the last one is, however large. Bytes.
_MOST = 16 << 20
_LARGE = 1 << 10


class _Forgotten(Enum):
    GONE = "gone"


#: Stands for an answer that was too large to be kept for long.
GONE = _Forgotten.GONE


class CachedReply(NamedTuple):
    """What was done: the how manieth of its lane it was, and what was answered."""

    seq: int
    reply: Any


class ReplyCache:
    """What was done last, by lane."""

    def __init__(self) -> None:
        self._done: OrderedDict[bytes, CachedReply] = OrderedDict()
        #: By lanes, the oldest first.
        self._large: OrderedDict[bytes, int] = OrderedDict()
        self._size = 0

    def find(self, sid: bytes, seq: int) -> CachedReply | None:
        """Give what was answered, if this was done before.

        If there was another one since, nobody waits for the answer to this one any more.
        """
        done = self._done.get(sid)
        return done if done is not None and done.seq >= seq else None

    def note(self, sid: bytes, seq: int, reply: Any = None) -> None:
        """Remember that something was done; what has no lane is not asked twice."""
        if not sid:
            return
        self._done[sid] = CachedReply(seq, reply)
        self._done.move_to_end(sid)
        if self._large:
            self._size -= self._large.pop(sid, 0)
        if len(self._done) > _LANES:
            oldest, _ = self._done.popitem(last=False)
            self._size -= self._large.pop(oldest, 0)
        if reply is None or type(reply) is bool:
            return
        size = _size_of(reply)
        if size > _LARGE:
            self._large[sid] = size
            self._size += size
            while self._size > _MOST and len(self._large) > 1:
                oldest, size = self._large.popitem(last=False)
                self._size -= size
                self._done[oldest] = self._done[oldest]._replace(reply=GONE)

    def all(self) -> Iterator[tuple[bytes, int, Any]]:
        """Give lanes, and what was done last."""
        return ((sid, *done) for sid, done in self._done.items())

    def clear(self) -> None:
        """Remember nothing."""
        self._done.clear()
        self._large.clear()
        self._size = 0


def _size_of(reply: Any) -> int:
    if isinstance(reply, (tuple, list)):
        return sum(map(_size_of, reply))
    try:
        return memoryview(reply).nbytes
    except TypeError:
        return 0
