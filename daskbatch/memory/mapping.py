"""Maps a range of a file into memory, privately: what a process changes there, no other sees.

The standard library's `mmap` keeps a descriptor for each mapping, so that a process could have
only as many arrays as descriptors. Only few of these mappings keep one: those that are used for the
next value in the same memory (`kept_mappings`). Any number of threads may call.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
from collections.abc import Callable
from typing import Any

from daskbatch.memory import kept_mappings, range_locks
from daskbatch.memory.kept_mappings import KeptMapping, Key
from daskbatch.memory.libc import MAP_NORESERVE, call, libc
from daskbatch.uninterrupted import uninterrupted


class _Mapped:
    """The owner of a mapping: NumPy keeps it for as long as an array of the memory exists."""

    def __init__(self, key: Key, mapping: KeptMapping) -> None:
        self._key = key
        self._mapping = mapping
        self._forks = kept_mappings.forks()
        self.__array_interface__ = {
            "data": (mapping.address, False),
            "shape": (key.length,),
            "typestr": "|u1",
            "version": 3,
        }

        self._munmap = libc().munmap

    def __del__(self, ends: Callable[[], bool] = sys.is_finalizing) -> None:
        if ends():  # other modules may be empty
            self._munmap(self._mapping.address, self._key.length)
        else:
            _release(self._key, self._mapping, self._forks)


@uninterrupted
def _release(key: Key, mapping: KeptMapping, forks: int) -> None:
    """Keep a mapping that nobody uses any longer, if the next value can use it; else unmap it."""
    if (
        mapping.file >= 0
        and forks == kept_mappings.forks()
        and kept_mappings.is_unchanged(mapping.address, key.length)
    ):
        with contextlib.suppress(OSError):
            range_locks.unlock(mapping.file, key.offset, key.length)
            kept_mappings.keep(key, mapping)
            return
    kept_mappings.release(mapping, key.length)


def _memory_of(key: Key, mapping: KeptMapping) -> memoryview:
    import numpy as np  # not at the top: a child starts faster without it

    interface: Any = _Mapped(key, mapping)
    array: Any = np.asarray(interface)
    return memoryview(array)


def map_private(file: int, key: Key, owner: int) -> memoryview:
    """Map a range of a file; it is unmapped when nothing refers to the memory any longer.

    Parameters
    ----------
    file : int
        A descriptor that has locked the range for reading. This function closes it, or keeps it.
    key : Key
        The range: it begins at a multiple of the size of a page.
    owner : int
        See `KeptMapping`.

    Returns
    -------
    memoryview
        The bytes, which may be changed: the changes stay in this process.

    Raises
    ------
    OSError
        The process has too many mappings, or too little address space.
    """
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | MAP_NORESERVE
    try:
        address = call("mmap", None, key.length, protection, flags, file, key.offset)
    except BaseException:
        os.close(file)
        raise
    # A mapping that may be kept needs its descriptor, to unlock the range and to lock it again.
    if key.length < kept_mappings.MIN_KEPT_BYTES or not kept_mappings.reserve_descriptor():
        os.close(file)
        file = -1
    return _memory_of(key, KeptMapping(address, file, owner))


def map_again(key: Key, token: bytes) -> memoryview | None:
    """Return the memory of a kept mapping; None if there is none, or its range has another value.

    Parameters
    ----------
    key : Key
        The range.
    token : bytes
        The first bytes of the range, if it has the value that is wanted.
    """
    mapping = kept_mappings.take(key)
    if mapping is None:
        return None
    try:
        range_locks.lock_shared(mapping.file, key.offset, key.length)
        if os.pread(mapping.file, len(token), key.offset) == token:
            return _memory_of(key, mapping)
    except OSError:
        pass
    kept_mappings.release(mapping, key.length)
    return None


def equal(one: memoryview, other: memoryview) -> bool:
    """Return whether two pieces of contiguous memory have the same content.

    Comparing two memoryviews would take ten times as long.
    """
    import numpy as np

    if one.nbytes != other.nbytes:
        return False
    arrays = [np.frombuffer(each, np.uint8) for each in (one, other)]
    addresses = [each.ctypes.data for each in arrays]
    return not libc().memcmp(*addresses, one.nbytes)
