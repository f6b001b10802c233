"""Finds the arrays of a value that can be stored without a copy: their memory is in the arena.

They must be nobody else's from then on. So the value is pickled, its object is dropped, and then
the reference counts must say that only the pickle refers to an array. This is done for objects
of NumPy and pandas and for built-in containers, since other objects could run code when they are
dropped. Any thread may call.
"""

from __future__ import annotations

import pickle
import weakref
from collections.abc import Iterable, Sequence
from functools import lru_cache
from sys import getrefcount, modules
from typing import Any, NamedTuple

from daskbatch.memory import array_ranges
from daskbatch.serialization import pickling

#: A value with more objects than this is copied.
_MAX_OBJECTS = 1_000

#: How many arrays of a value are stored in place, and how many if some are small. To map a range
#: takes as long as to copy some hundred kilobytes.
_MAX_RANGES, _MAX_SMALL_RANGES = 100, 8
_SMALL_BYTES = 1 << 20

#: A frame with more columns than this is copied.
_MAX_COLUMNS = 100

_CONTAINERS = frozenset({list, tuple, dict})

#: The kinds of NumPy's types whose values are no objects.
_PLAIN_KINDS = frozenset("biufcmMSU")


class ArrayInPlace(NamedTuple):
    """A buffer of a pickled value that can be stored where it is.

    Parameters
    ----------
    position : int
        Its position among the buffers.
    address : int
        Where it begins, as `array_ranges` knows it.
    size : int
        How long it is, in bytes.
    """

    position: int
    address: int
    size: int


def take(box: list[Any], buffers: Sequence[pickle.PickleBuffer]) -> tuple[list[ArrayInPlace], bool]:
    """Return which buffers of a value can be stored where they are, and whether any is placed.

    Parameters
    ----------
    box : list
        The value alone, to which nothing else may refer, and which `is_plain`. It may be empty
        afterwards.
    buffers : sequence of pickle.PickleBuffer
        The buffers of its pickle.
    """
    if not array_ranges.has_ranges():
        return [], False
    found = []
    for position, each in enumerate(buffers):
        address, size = _memory_of(each)
        if array_ranges.can_store(address, size):
            found.append(ArrayInPlace(position, address, size))
    if len(found) > _MAX_SMALL_RANGES:
        found = [each for each in found if each.size >= _SMALL_BYTES][:_MAX_RANGES]
    if not found:
        return [], False
    box.clear()
    # A container that something else refers to still exists, and refers to its arrays.
    alone = [each for each in found if _references(buffers[each.position]) in _references_alone()]
    return alone, True


def sizes_made(value: Any, buffers: Sequence[pickle.PickleBuffer], smallest: int) -> list[int]:
    """Return the sizes of the arrays of a value that its function could have made in place.

    Parameters
    ----------
    value : object
        The value.
    buffers : sequence of pickle.PickleBuffer
        The buffers of its pickle.
    smallest : int
        Smaller arrays are not made in place. Bytes.
    """
    sizes = []
    for each in buffers:
        with each.raw() as content:
            owner = _owner_of(content.obj)
        if owner is not None and owner.nbytes >= smallest:
            sizes.append(owner.nbytes)
    return sizes if sizes and is_plain(value) else []


def is_array(value: object) -> bool:
    """Return whether a value is a NumPy array, and not one of a subclass."""
    return type(value) is getattr(modules.get("numpy"), "ndarray", None)


def is_plain(value: Any) -> bool:
    """Return whether a value consists of objects that run no code of others when they are dropped.

    These are NumPy's arrays and numbers, pandas' frames and series of numbers, built-in containers,
    and texts and numbers.
    """
    pending, count = [value], 0
    while pending:
        each = pending.pop()
        count += 1
        if count > _MAX_OBJECTS:
            return False
        kind = type(each)
        if kind in pickling.PLAIN or kind in _numbers():
            continue
        if kind in _CONTAINERS:
            if len(each) > _MAX_OBJECTS:
                return False
            pending.extend(each)
            if kind is dict:
                pending.extend(each.values())
        elif is_array(each):
            if not _is_plain_array(each):
                return False
        elif not _is_plain_frame(each):
            return False
    return True


def _is_plain_array(array: Any) -> bool:
    """Return whether no object but arrays goes with an array."""
    # What is not an array, or is the memory of something else, may do anything when it is dropped.
    return _owner_of(array) is not None and _is_plain_type(array.dtype)


def _is_plain_type(dtype: Any) -> bool:
    """Return whether a type is one of NumPy's for single numbers, texts and dates."""
    return (
        isinstance(dtype, modules["numpy"].dtype)
        and dtype.kind in _PLAIN_KINDS
        and dtype.metadata is None
    )


@lru_cache(maxsize=1)
def _numbers() -> frozenset[type]:
    """Return NumPy's types of single numbers."""
    import numpy as np

    kinds: Iterable[type[np.generic]] = set(np.sctypeDict.values())
    return frozenset(kind for kind in kinds if np.dtype(kind).kind in _PLAIN_KINDS)


def _is_plain_frame(value: Any) -> bool:
    """Return whether a value is a frame or a series of pandas, and holds only numbers and dates."""
    pandas: Any = modules.get("pandas")
    kind = type(value)
    if kind is getattr(pandas, "DataFrame", None):
        labels = [value.index, value.columns]
        if len(value.columns) > _MAX_COLUMNS:
            return False
        columns = [value.iloc[:, position] for position in range(len(value.columns))]
        own = _attributes(pandas.DataFrame())
    elif kind is getattr(pandas, "Series", None):
        labels, columns = [value.index], [value]
        own = _attributes(pandas.Series([0.0]))
        if type(value.name) not in pickling.PLAIN:
            return False
    else:
        return False
    if value.attrs or not _attributes(value) <= own or _calls_when_dropped(value):
        return False
    if not all(_is_plain_type(each.dtype) for each in columns):
        return False
    if not all(_is_plain_array(each.to_numpy()) for each in columns):
        return False
    return all(_is_plain_index(each, pandas) for each in labels)


def _attributes(value: Any) -> set[str]:
    """Return the names of what was set on an object."""
    return set(vars(value))


def _calls_when_dropped(value: Any) -> bool:
    """Return whether a weak reference calls a function when an object is dropped."""
    return any(each.__callback__ is not None for each in weakref.getweakrefs(value))


def _is_plain_index(index: Any, pandas: Any) -> bool:
    """Return whether labels are numbers or texts."""
    kind = type(index)
    if kind not in (pandas.RangeIndex, pandas.Index) or type(index.name) not in pickling.PLAIN:
        return False
    own = _attributes(pandas.RangeIndex(1) if kind is pandas.RangeIndex else pandas.Index([0]))
    # An index keeps what it has computed.
    if not _attributes(index) <= {*own, "_cache"} or _calls_when_dropped(index):
        return False
    if kind is pandas.RangeIndex:
        return True
    if _is_plain_type(index.dtype):
        return _is_plain_array(index.to_numpy())
    return len(index) <= _MAX_OBJECTS and pickling.are_plain(list(index))


def _memory_of(buffer: pickle.PickleBuffer) -> tuple[int, int]:
    """Return the address and the size of a buffer of an array that owns its memory; else zeros."""
    with buffer.raw() as content:
        array: Any = content.obj
        return (0, 0) if _owner_of(array) is None else (array.ctypes.data, content.nbytes)


def _owner_of(array: Any) -> Any:
    """Return the array that owns the memory of an array; None if no array does.

    That an array does not own its memory does not show in its address: it may begin where the
    memory of another one does, which something else refers to.
    """
    if not is_array(array):
        return None
    owner = array if array.base is None else array.base
    return owner if is_array(owner) and owner.flags.owndata else None


def _references(buffer: pickle.PickleBuffer) -> tuple[bool, int, int]:
    """Return whether an array is a view, and how many references to it and its owner there are.

    The last number is that of weak references. A view of a view is one of its owner in NumPy.
    """
    with buffer.raw() as content:
        array: Any = content.obj
        owner = array if array.base is None else array.base
        weak = weakref.getweakrefcount(array)
        if owner is array:
            return False, getrefcount(owner), weak
        weak += weakref.getweakrefcount(owner)
        return True, getrefcount(array) + getrefcount(owner), weak


@lru_cache(maxsize=1)
def _references_alone() -> frozenset[tuple[bool, int, int]]:
    """Return the counts of arrays to which only a buffer refers.

    They are counted by the same function, since versions of Python count different references of
    its own.
    """
    import numpy as np

    buffer: Any = pickle.PickleBuffer
    return frozenset(map(_references, [buffer(np.empty(1)), buffer(np.empty(1)[:])]))
