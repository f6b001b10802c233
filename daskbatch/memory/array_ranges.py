"""Ranges of this process's arena that hold arrays of running tasks.

A task that returns such an array has written it where values are stored, so that nothing is copied.
Another process finds the array once it is stored (`store_ranges`). Until then it is memory of this
process, as any other: a forked child has a copy of its own. Any thread may call.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from collections.abc import Sequence
from typing import NamedTuple

from daskbatch.forking import make_rlock
from daskbatch.memory import kept_mappings, range_locks
from daskbatch.memory.arena import HEADER_BYTES, MIN_USED, Arena, own_arena
from daskbatch.memory.array_functions import MARK, MARK_BYTES, MARK_OFFSET, READY, USED, Slot
from daskbatch.memory.kept_mappings import KeptMapping, Key
from daskbatch.memory.libc import MAP_FIXED, MAP_NORESERVE, call
from daskbatch.memory.mapped_writes import map_writable
from daskbatch.memory.segment import Segment
from daskbatch.uninterrupted import uninterrupted


class ArrayRange(NamedTuple):
    """A range for an array.

    Parameters
    ----------
    arena : Arena, optional
        The arena; None in a forked child.
    key : Key
        The range.
    mapping : KeptMapping
        Where it is mapped.
    slot : Slot
        Says whether it is in use.
    is_stored : bool
        Whether it is a value that others may find: then the value frees it, and not the array.
    is_private : bool
        Whether the process has forked since: what is written now is not in the file.
    """

    arena: Arena | None
    key: Key
    mapping: KeptMapping
    slot: Slot
    is_stored: bool = False
    is_private: bool = False


#: By the address of the array; and the addresses of those that new arrays may take. Both change
#: with the lock.
_ranges: dict[int, ArrayRange] = {}
_in_pool: set[int] = set()
_lock = make_rlock()


def reserve(size: int) -> ArrayRange | None:
    """Return a range for an array; None if there is none.

    Parameters
    ----------
    size : int
        The size of the array, in bytes.
    """
    arena = own_arena()
    found = None if arena is None else arena.reserve(size)
    if arena is None or found is None:
        return None
    offset, length, may_be_gone = found
    key = Key(arena.identity, offset, length, is_private=False)
    try:
        mapping = map_writable(arena.file, key, kept_mappings.take(key), may_be_gone)
    except OSError:
        arena.drop(offset, length)
        return None
    address = mapping.address + HEADER_BYTES
    slot = Slot(address, length - HEADER_BYTES, READY, 0)
    # Arrays may be freed when the modules are empty already.
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(slot))
    ctypes.memmove(mapping.address + MARK_OFFSET, MARK, MARK_BYTES)
    where = ctypes.c_size_t.from_address(mapping.address + MARK_OFFSET + MARK_BYTES)
    where.value = ctypes.addressof(slot)
    made = ArrayRange(arena, key, mapping, slot)
    with _lock:
        _ranges[address] = made
        _in_pool.add(address)
    return made


def leave_pool(ranges: Sequence[ArrayRange]) -> None:
    """Free ranges that no new array may take any longer, once their arrays are gone."""
    with _lock:
        _in_pool.difference_update(each.slot.address for each in ranges)
    collect()


def collect() -> None:
    """Free the ranges whose arrays are gone."""
    with _lock:
        for address, found in list(_ranges.items()):
            if found.slot.state == READY and address not in _in_pool:
                del _ranges[address]
                _free(found)


def _free(found: ArrayRange) -> None:
    arena, key, mapping = found.arena, found.key, found.mapping
    if found.is_private:
        kept_mappings.release(mapping, key.length)
    else:
        kept_mappings.keep(key, mapping)
    if arena is not None and not found.is_stored:
        arena.drop(key.offset, key.length)
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(found.slot))


def has_ranges() -> bool:
    """Return whether there is any array in such a range."""
    return bool(_ranges)


def can_store(address: int, size: int) -> bool:
    """Return whether an array has a range that is not stored, and uses most of it.

    Parameters
    ----------
    address, size : int
        Where the array is, and its size in bytes.
    """
    found = _ranges.get(address)
    if found is None or found.arena is None or found.is_stored or found.is_private:
        return False
    used = size + HEADER_BYTES >= found.key.length * MIN_USED
    return used and bool(found.slot.state == USED)


def store_ranges(addresses: Sequence[int]) -> list[Segment]:
    """Make a value of each range in which an array begins.

    Nothing may write to the arrays any longer, and they must exist until this function returns.

    Raises
    ------
    OSError
        A range cannot be written to, or the process has forked since. None is a value then.
    """
    with _lock:
        found = [_ranges[address] for address in addresses]
        if any(each.is_private or each.arena is None for each in found):
            raise OSError("its memory is that of a forked process, too")
        tokens = [each.arena.complete(each.key.offset) for each in found if each.arena is not None]
        segments = []
        for address, each, token in zip(addresses, found, tokens, strict=True):
            assert each.arena is not None
            each.slot.capacity = 0  # no other array takes it
            _ranges[address] = each._replace(is_stored=True)
            where = each.key.offset, each.key.length
            segments.append(Segment(each.arena, *where, token, made_here=True))
        return segments


@uninterrupted
def _make_private() -> None:
    """Map the arrays privately, before this thread forks: the child has its own copies then.

    Nothing writes to the file any longer. The mapping locks the range as a reader's does: it is not
    used again before this process and the child have unmapped it. Other threads may write to an
    array meanwhile, since the system replaces the mapping in one step.
    """
    with _lock:
        for address, found in list(_ranges.items()):
            if found.slot.state != USED or found.is_private or found.arena is None:
                continue
            # If there is no memory for it, a child that uses the array ends with a signal.
            with contextlib.suppress(OSError):
                _map_privately(found.arena, found.key, found.mapping.address)
                _ranges[address] = found._replace(is_private=True)


def _map_privately(arena: Arena, key: Key, address: int) -> None:
    file = os.open(f"/proc/self/fd/{arena.file}", os.O_RDWR | os.O_CLOEXEC)
    try:
        range_locks.lock_shared(file, key.offset, key.length)
        protection = mmap.PROT_READ | mmap.PROT_WRITE
        flags = mmap.MAP_PRIVATE | MAP_NORESERVE | MAP_FIXED
        call("mmap", address, key.length, protection, flags, file, key.offset)
    finally:
        os.close(file)


def _forget_shared() -> None:
    """Keep the arrays that the child has copies of."""
    for address, found in list(_ranges.items()):
        if found.is_private:
            _ranges[address] = found._replace(arena=None)
        else:
            del _ranges[address]
    _in_pool.clear()


os.register_at_fork(before=_make_private, after_in_child=_forget_shared)
