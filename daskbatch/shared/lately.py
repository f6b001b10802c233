"""Remembers what came last through each lane, so that what is asked twice is done once.

Does not know what was asked.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from typing import Any, NamedTuple

#: Of so many lanes is known what came last through them.
_LANES = 1 << 14


class Done(NamedTuple):
    """What was done: the how manieth of its lane it was, and what was answered."""

    seq: int
    reply: Any


class Lately:
    """What was done last, by lane."""

    def __init__(self) -> None:
        self._done: OrderedDict[bytes, Done] = OrderedDict()

    def find(self, sid: bytes, seq: int) -> Done | None:
        """Give what was answered, if this was done before.

        If there was another one since, nobody waits for the answer to this one any more.
        """
        done = self._done.get(sid)
        return done if done is not None and done.seq >= seq else None

    def note(self, sid: bytes, seq: int, reply: Any = None) -> None:
        """Remember that something was done; what has no lane is not asked twice."""
        if sid:
            self._done[sid] = Done(seq, reply)
            self._done.move_to_end(sid)
            if len(self._done) > _LANES:
                self._done.popitem(last=False)

    def all(self) -> Iterator[tuple[bytes, int, Any]]:
        """Give lanes, and what was done last."""
        return ((sid, *done) for sid, done in self._done.items())

    def clear(self) -> None:
        """Remember nothing."""
        self._done.clear()
