"""Stores an array without a copy, if its memory is in this process's arena already.

The array must be nobody else's from then on. So its reference counts must say that only the
caller refers to it, and that no view of it exists. Any thread may call.
"""

from __future__ import annotations

import weakref
from functools import lru_cache
from sys import getrefcount, modules
from typing import Any

from daskbatch.memory import array_ranges
from daskbatch.serialization import pickling, stored_value
from daskbatch.serialization.stored_value import StoredValue


def is_array(value: object) -> bool:
    """Return whether a value is a NumPy array, and not one of a subclass."""
    return type(value) is getattr(modules.get("numpy"), "ndarray", None)


def owner_of(array: Any) -> Any:
    """Return the array that a view is a view of; else the array itself."""
    return array if array.base is None else array.base


def dumps(box: list[Any]) -> StoredValue | None:
    """Store the only object in a list where it is, and empty the list.

    Parameters
    ----------
    box : list
        The object alone, to which nothing else may refer.

    Returns
    -------
    StoredValue or None
        None if it must be pickled and copied: the list is unchanged then.

    Raises
    ------
    OSError
        The memory cannot be written to.
    """
    if not array_ranges.has_ranges() or not is_array(box[0]):
        return None
    owner = owner_of(box[0])
    address = owner.ctypes.data if is_array(owner) else 0
    del owner
    if array_ranges.capacity(address) is None or _references(box) not in _references_alone():
        return None
    data, buffers = pickling.dumps_with_buffers(box[0], pickling.MIN_SHARED_BUFFER_BYTES)
    if len(buffers) != 1:
        return None
    size = _size_at(buffers[0], address)
    buffers.pop().release()
    if size is None or not array_ranges.can_store(address, size):
        return None
    stored = stored_value.refer_to_range(data, size, address)
    if stored is not None:
        box.clear()
    return stored


def _references(box: list[Any]) -> tuple[bool, int, int]:
    """Return whether an array is a view, and how many references to it and its owner there are.

    The last number is that of weak references.
    """
    owner = owner_of(box[0])
    weak = weakref.getweakrefcount(box[0]) + weakref.getweakrefcount(owner)
    if owner is box[0]:
        return False, getrefcount(owner), weak
    return True, getrefcount(box[0]) + getrefcount(owner), weak


@lru_cache(maxsize=1)
def _references_alone() -> frozenset[tuple[bool, int, int]]:
    """Return the counts of arrays that nothing else refers to.

    They are counted by the same function, since versions of Python count different references of
    its own.
    """
    import numpy as np

    return frozenset({_references([np.empty(1)]), _references([np.empty(1)[:]])})


def _size_at(buffer: Any, address: int) -> int | None:
    """Return the size of a buffer in bytes; None if it begins elsewhere."""
    import numpy as np

    with buffer.raw() as content:
        array = np.frombuffer(content, np.uint8)
        size = array.nbytes if array.ctypes.data == address else None
        del array
    return size
