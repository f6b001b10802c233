"""Stores what tasks return, and learns which functions return large arrays.

When such a function is called again, NumPy places its large arrays where values are stored
(`memory.array_allocator`): the one that it returns need not be copied then. Any thread may call.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from typing import Any, NamedTuple

from daskbatch.memory import array_ranges
from daskbatch.memory.arena import MIN_USED
from daskbatch.memory.kept_mappings import MIN_KEPT_BYTES
from daskbatch.serialization import arrays_in_place, stored_value
from daskbatch.serialization.stored_value import Pickled, StoredValue
from daskbatch.worker.execution.handover import offer

#: How many functions are remembered.
_MAX_FUNCTIONS = 1_000

#: A function is given up if so many of its values in succession had to be copied.
_MAX_MISSES = 3

#: How many arrays are expected of a function at most, and for how many calls that do not make them.
_MAX_ARRAYS, _MAX_UNUSED = 200, 5


class _Expected(NamedTuple):
    """An array that a function may make.

    Parameters
    ----------
    size : int
        Its size in bytes.
    unused : int
        How many of the last calls have not made it.
    """

    size: int
    unused: int = 0


class _Known(NamedTuple):
    """What is known about a function.

    Parameters
    ----------
    expected : tuple of _Expected
        The large arrays that it may make.
    misses : int
        How many of its last values had to be copied although their arrays were placed.
    """

    expected: tuple[_Expected, ...]
    misses: int = 0


#: By the digest of a function's pickle. The one that has returned arrays last comes last.
_known: OrderedDict[bytes, _Known] = OrderedDict()


def key_of(function: bytes) -> bytes:
    """Return what stands for a function, given by its pickle."""
    return blake2b(function, digest_size=16).digest()


def known_key(function: bytes) -> bytes | None:
    """Return what stands for a function whose arrays can be made in place; None for another one.

    It also frees the memory of arrays that functions have kept, and that are gone now.

    Parameters
    ----------
    function : bytes
        The pickle of the function.
    """
    if not _known:
        return None
    array_ranges.collect()
    key = key_of(function)
    known = _known.get(key)
    return key if known is not None and known.misses < _MAX_MISSES else None


@contextmanager
def making_in_place(key: bytes) -> Iterator[None]:
    """Have NumPy place the large arrays that a function makes where values are stored.

    Parameters
    ----------
    key : bytes
        What `known_key` returns for the function.
    """
    # Not at the top: a child starts faster without it.
    from daskbatch.memory import array_allocator

    known = _known.get(key, _Known(()))
    placing = array_allocator.begin([each.size for each in known.expected])
    try:
        yield
    finally:
        if placing is not None:
            used, missed = array_allocator.end(placing)
            _known[key] = known._replace(expected=_next_expected(known.expected, used, missed))


def _next_expected(
    expected: Sequence[_Expected], used: Sequence[bool], missed: Sequence[int]
) -> tuple[_Expected, ...]:
    """Return which arrays the next call of a function may make.

    Parameters
    ----------
    expected : sequence of _Expected
        What this call was expected to make.
    used : sequence of bool
        Which of these, in the same order, it has made; those at the end may be missing.
    missed : sequence of int
        The sizes of arrays that it has made besides, in bytes. Only those count that are about as
        large as an expected one: others may never be returned.

    Examples
    --------
    >>> _next_expected([_Expected(8), _Expected(9, 5)], [True, False], [7, 7, 7, 70])
    (_Expected(size=8, unused=0), _Expected(size=7, unused=0))
    """
    made = [*used, *[True] * (len(expected) - len(used))]
    aged = [
        _Expected(each.size, 0 if is_made else each.unused + 1)
        for each, is_made in zip(expected, made, strict=True)
    ]
    result = [each for each in aged if each.unused <= _MAX_UNUSED]
    counts = Counter(each.size for each in result)
    for size, count in Counter(missed).items():
        if not any(_is_alike(size, each.size) for each in expected):
            continue
        # The memory of an array that was freed serves the next one. So more of one size may have
        # been missed than are needed: at most as many are added as there are.
        result += [_Expected(size)] * min(count, max(1, counts[size]))
    return _within_limits(result)


def _within_limits(expected: Sequence[_Expected]) -> tuple[_Expected, ...]:
    """Return the first arrays that do not take too much memory together."""
    total, kept = 0, []
    for each in expected[:_MAX_ARRAYS]:
        if total + each.size <= stored_value.block_limit():
            total += each.size
            kept.append(each)
    return tuple(kept)


def _is_alike(size: int, other: int) -> bool:
    """Return whether one size is about another one: memory for the larger one serves both."""
    return min(size, other) >= MIN_USED * max(size, other)


def store(box: list[Any], function: bytes, inline_limit: int, watched: bool) -> bytes:
    """Pickle and store what a task has returned.

    Parameters
    ----------
    box : list
        The value alone, to which nothing else may refer.
    function : bytes
        The pickle of the function that has returned it.
    inline_limit : int
        See `stored_value.dumps`.
    watched : bool
        See `handover.offer`.

    Returns
    -------
    bytes
        As of `stored_value.dumps`.

    Raises
    ------
    Exception
        What pickling the value raises; `OSError` if there is no memory.
    """
    pickled = stored_value.pickle_value(box[0], inline_limit)
    if not isinstance(pickled, Pickled):
        if type(pickled) is StoredValue and pickled.was_closed:
            offer(pickled, box, watched)
        return pickled
    sizes = arrays_in_place.sizes_made(box[0], pickled.buffers, MIN_KEPT_BYTES)
    if not sizes:
        return stored_value.store_pickled(pickled)
    stored, in_place = stored_value.store_in_place(pickled, box)
    del pickled  # with the last references to the arrays
    array_ranges.collect()
    _learn(key_of(function), sizes, in_place)
    return stored


def _learn(key: bytes, sizes: Sequence[int], in_place: bool | None) -> None:
    """Remember a function that has returned arrays of some sizes, in bytes.

    Parameters
    ----------
    key : bytes
        What `key_of` returns for it.
    sizes : sequence of int
        The sizes.
    in_place : bool, optional
        Whether any was stored in place; None if none was placed.
    """
    known = _known.get(key)
    if known is None:
        known = _Known(())
    elif in_place is not None:
        known = known._replace(misses=0 if in_place else known.misses + 1)
    new = [
        _Expected(size)
        for size in sizes
        if not any(_is_alike(size, each.size) for each in known.expected)
    ]
    _known[key] = known._replace(expected=_within_limits([*known.expected, *new]))
    with suppress(KeyError):  # another thread may have removed it
        _known.move_to_end(key)
    while len(_known) > _MAX_FUNCTIONS:
        _known.popitem(last=False)
