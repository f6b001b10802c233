"""Maps a range of a file into memory, privately: what a process changes there, no other sees.

The standard library's `mmap` keeps a descriptor for each mapping, so that a process could have
only as many arrays as descriptors. These mappings keep none. Any number of threads may call.
"""

from __future__ import annotations

import mmap
from typing import Any

from daskbatch.memory.libc import call, libc

#: Without it, a system that counts what processes might use would refuse large mappings.
_MAP_NORESERVE = 0x4000


class _Mapped:
    """The owner of a mapping: NumPy keeps it for as long as an array of the memory exists."""

    def __init__(self, address: int, length: int) -> None:
        self._range = address, length
        self.__array_interface__ = {
            "data": (address, False),
            "shape": (length,),
            "typestr": "|u1",
            "version": 3,
        }

        self._munmap = libc().munmap

    def __del__(self) -> None:
        self._munmap(*self._range)


def map_private(file: int, offset: int, length: int) -> memoryview:
    """Map a range of a file; it is unmapped when nothing refers to the memory any longer.

    Parameters
    ----------
    file : int
        A descriptor, which may be closed afterwards.
    offset : int
        Where the range begins: a multiple of the size of a page.
    length : int
        Its length.

    Returns
    -------
    memoryview
        The bytes, which may be changed: the changes stay in this process.

    Raises
    ------
    OSError
        The process has too many mappings, or too little address space.
    """
    import numpy as np  # not at the top: a child starts faster without it

    protection = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_PRIVATE | _MAP_NORESERVE
    address = call("mmap", None, length, protection, flags, file, offset)
    interface: Any = _Mapped(address, length)
    array: Any = np.asarray(interface)
    return memoryview(array)


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
