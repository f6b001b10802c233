"""Hands a large value over to the member that comes next, in place of a copy of it.

Each task gets a copy of what another one has returned: it may change that, and the other one may
have kept a reference. Of plain containers the reference counts say whether anything has kept one.
If nothing has, the value itself is a copy that is nobody else's, once it was stored for all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from sys import getrefcount
from typing import Any

from daskbatch.serialization.pickling import GivenValue
from daskbatch.worker.execution.block import LOCAL, BlockMember


class Offer:
    """A value that a member has returned, and that nothing else refers to.

    Parameters
    ----------
    member : int
        The member.
    box : list
        The value alone.
    """

    __slots__ = ("_box", "_source")

    def __init__(self, member: int, box: list[Any]) -> None:
        self._source = BlockMember((LOCAL, member), "result")
        self._box = box

    def fill(self, parts: Sequence[object], values: Sequence[Any]) -> Sequence[Any]:
        """Return what fills the placeholders of the next member.

        Parameters
        ----------
        parts : sequence
            What the placeholders stand for; see `Link.values`.
        values : sequence
            The pickled values.

        Returns
        -------
        sequence
            The same; but a `GivenValue` for this value, if it is taken once: each one that is taken
            is a copy of its own.
        """
        if parts.count(self._source) != 1:
            return values
        position = parts.index(self._source)
        return [*values[:position], GivenValue(self._box.pop()), *values[position + 1 :]]


def offer(member: int, box: list[Any]) -> Offer | None:
    """Return an offer of the only object in a list, unless something else refers to it."""
    return Offer(member, box) if _count_references(box) <= _ALONE else None


def _count_references(box: list[Any]) -> int:
    return getrefcount(box[0])


#: What that is if nothing but the list refers to its object.
_ALONE = _count_references([[]])
