"""Stores what tasks return, and learns which functions return large arrays.

When such a function is called again, NumPy places its large arrays where values are stored
(`memory.array_allocator`): the one that it returns need not be copied then. Any thread may call.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from daskbatch.memory.kept_mappings import MIN_KEPT_BYTES
from daskbatch.serialization import arrays_in_place, stored_value
from daskbatch.serialization.arrays_in_place import is_array, owner_of
from daskbatch.serialization.stored_value import StoredValue
from daskbatch.worker.execution.handover import offer

#: How many functions are remembered.
_MAX_FUNCTIONS = 1_000

#: How much larger the next array of a function may be.
_GROWTH = 2

#: A function is given up if so many of its arrays in succession were not made where values are
#: stored.
_MAX_MISSES = 3


class _Known(NamedTuple):
    """What is known about a function.

    Parameters
    ----------
    largest : int
        The largest array that it has returned, in bytes.
    misses : int
        How many of its last arrays were copied although they could have been made in place.
    """

    largest: int
    misses: int


#: By the pickle of a function. The one that was called last comes last.
_known: OrderedDict[bytes, _Known] = OrderedDict()


def limit_of(function: bytes) -> int:
    """Return the size of the largest array that a function may make in place; 0 for none.

    Parameters
    ----------
    function : bytes
        The pickle of the function.
    """
    known = _known.get(function) if _known else None
    if known is None or known.misses >= _MAX_MISSES:
        return 0
    return min(known.largest * _GROWTH, stored_value.block_limit())


@contextmanager
def making_in_place(limit: int) -> Iterator[None]:
    """Have NumPy place the large arrays of this thread where values are stored.

    Parameters
    ----------
    limit : int
        What `limit_of` returns.
    """
    # Not at the top: a child starts faster without it.
    from daskbatch.memory import array_allocator

    begun = limit > 0 and array_allocator.begin(limit)
    try:
        yield
    finally:
        if begun:
            array_allocator.end()


def store(box: list[Any], function: bytes, inline_limit: int, hands_over: bool) -> bytes:
    """Pickle and store what a task has returned.

    Parameters
    ----------
    box : list
        The value alone, to which nothing else may refer.
    function : bytes
        The pickle of the function that has returned it.
    inline_limit : int
        See `stored_value.dumps`.
    hands_over : bool
        Whether the next task of this thread may get the value itself.

    Returns
    -------
    bytes
        As of `stored_value.dumps`.

    Raises
    ------
    Exception
        What pickling the value raises; `OSError` if there is no memory.
    """
    in_place = arrays_in_place.dumps(box)
    if in_place is not None:
        _known[function] = _known.get(function, _Known(0, 0))._replace(misses=0)
        return in_place
    stored = stored_value.dumps(box[0], inline_limit)
    if type(stored) is StoredValue:
        if stored.was_closed:
            if hands_over:
                offer(stored, box)
        elif is_array(box[0]):
            _learn(function, box[0])
    return stored


def _learn(function: bytes, array: Any) -> None:
    """Remember a function that has returned an array, if it has made the array itself."""
    size = array.nbytes
    owner = owner_of(array)
    if size < MIN_KEPT_BYTES or not is_array(owner) or not owner.flags.owndata:
        return
    known = _known.get(function, _Known(0, -1))
    # One that was too large for the limit says nothing.
    misses = known.misses + (size <= known.largest * _GROWTH)
    _known[function] = _Known(max(size, known.largest), max(misses, 0))
    _known.move_to_end(function)
    while len(_known) > _MAX_FUNCTIONS:
        _known.popitem(last=False)
