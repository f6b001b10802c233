"""Writes to memory that is used again: through a mapping, with pages that the system has mapped.

A write by a system call looks each page up in the file. To copy to pages that are mapped takes less
than half of that time. The mapping is kept for the next value in the same range (`kept_mappings`).
New memory is written by a system call: if there is none, that is an error, while a process that
touches a page of a mapping would be killed. Any number of threads may call.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from typing import Any

from daskbatch.memory import kept_mappings
from daskbatch.memory.kept_mappings import KeptMapping, Key
from daskbatch.memory.libc import (
    MADV_DONTFORK,
    MADV_POPULATE_READ,
    MAP_NORESERVE,
    call,
    libc,
)


def write_mapped(
    file: int, key: Key, buffers: Sequence[Any], starts: Sequence[int], may_be_gone: bool
) -> bool:
    """Write buffers to a range that was written to before, if its mapping is kept, or can be.

    Parameters
    ----------
    file : int
        The memory file.
    key : Key
        The range, which nobody else writes to.
    buffers : sequence
        Contiguous objects that support the buffer protocol.
    starts : sequence of int
        Where they begin in the range.
    may_be_gone : bool
        Whether another process may have returned memory of the range to the system.

    Returns
    -------
    bool
        Whether it has written them; else the range may have any content.
    """
    kept = kept_mappings.take(key)
    if kept is None and not kept_mappings.has_room(key.length):
        return False
    try:
        mapping = map_writable(file, key, kept, may_be_gone)
    except OSError:
        return False
    try:
        _copy(mapping.address, buffers, starts)
    except BaseException:
        kept_mappings.release(mapping, key.length)
        raise
    kept_mappings.keep(key, mapping)
    return True


def map_writable(file: int, key: Key, kept: KeptMapping | None, may_be_gone: bool) -> KeptMapping:
    """Return a mapping of a range whose pages can be written to, for the file.

    Forked children do not have it.

    Parameters
    ----------
    file, key, may_be_gone
        As for `write_mapped`.
    kept : KeptMapping, optional
        The kept mapping of the range, if there is one.

    Raises
    ------
    OSError
        It cannot be mapped, or there is no memory; the kept mapping is released then.
    """
    mapping = _map_shared(file, key) if kept is None else kept
    if kept is None or may_be_gone:
        try:
            # Reading finds the pages of the file, and makes those that were erased. The pages of
            # a shared mapping of a memory file can then be written to without another fault. If
            # there were no memory for a page, to touch it would be fatal.
            call("madvise", mapping.address, key.length, MADV_POPULATE_READ)
        except OSError:
            kept_mappings.release(mapping, key.length)
            raise
    return mapping


def _map_shared(file: int, key: Key) -> KeptMapping:
    protection = mmap.PROT_READ | mmap.PROT_WRITE
    flags = mmap.MAP_SHARED | MAP_NORESERVE
    address = call("mmap", None, key.length, protection, flags, file, key.offset)
    mapping = KeptMapping(address, -1, os.getpid())
    try:
        call("madvise", address, key.length, MADV_DONTFORK)
    except OSError:
        kept_mappings.release(mapping, key.length)
        raise
    return mapping


def _copy(address: int, buffers: Sequence[Any], starts: Sequence[int]) -> None:
    import numpy as np  # not at the top: a child starts faster without it

    copy = libc().memcpy
    for buffer, start in zip(buffers, starts, strict=True):
        view = memoryview(buffer)
        if view.nbytes:
            content = np.frombuffer(view.cast("B"), np.uint8)
            # Without the interpreter's lock: other threads run meanwhile.
            copy(address + start, content.ctypes.data, content.nbytes)
