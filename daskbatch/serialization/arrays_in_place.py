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
        owner = _owner_of(each)
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
            if not _is_plain_type(each.dtype):
                return False
        elif not _is_plain_frame(each):
            return False
    return True


def _is_plain_type(dtype: Any) -> bool:
    """Return whether values of a NumPy type are no objects."""
    return not getattr(dtype, "hasobject", True) and getattr(dtype, "metadata", 1) is None


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
        types, labels = list(value.dtypes), [value.index, value.columns]
    elif kind is getattr(pandas, "Series", None):
        types, labels = [value.dtype], [value.index]
        if type(value.name) not in pickling.PLAIN:
            return False
    else:
        return False
    # pandas itself refers to it weakly, without a function that is called when it is dropped.
    if value.attrs or any(each.__callback__ is not None for each in weakref.getweakrefs(value)):
        return False
    if any(getattr(each, "kind", "O") not in _PLAIN_KINDS for each in types):
        return False
    return all(_is_plain_index(each, pandas) for each in labels)


def _is_plain_index(index: Any, pandas: Any) -> bool:
    """Return whether labels are numbers or texts."""
    if type(index) is pandas.RangeIndex:
        return True
    if type(index) is not pandas.Index or type(index.name) not in pickling.PLAIN:
        return False
    if getattr(index.dtype, "kind", "O") in _PLAIN_KINDS:
        return True
    return len(index) <= _MAX_OBJECTS and pickling.are_plain(list(index))


def _memory_of(buffer: pickle.PickleBuffer) -> tuple[int, int]:
    """Return the address and the size of a buffer of an array that owns its memory; else zeros."""
    if _owner_of(buffer) is None:
        return 0, 0
    with buffer.raw() as content:
        array: Any = content.obj
        found = array.ctypes.data, content.nbytes
        del array
    return found


def _owner_of(buffer: pickle.PickleBuffer) -> Any:
    """Return the array that owns the memory of a buffer; None if no array does.

    That an array does not own its memory does not show in its address: it may begin where the
    memory of another one does, which something else refers to.
    """
    with buffer.raw() as content:
        array: Any = content.obj
        if not is_array(array):
            return None
        owner = array if array.base is None else array.base
        del array
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
