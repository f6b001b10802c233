"""Ranges of this process's arena that hold arrays of running tasks.

A task that returns such an array has written it where values are stored, so that nothing is copied.
Another process finds the array once it is stored (`store_range`). Until then it is memory of this
process, as any other: a forked child gets a copy of its own. Any thread may call, also while it
finalizes objects.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable
from threading import get_ident
from typing import NamedTuple

from daskbatch.memory import arena as arenas
from daskbatch.memory import kept_mappings
from daskbatch.memory.arena import HEADER_BYTES, Arena
from daskbatch.memory.kept_mappings import KeptMapping, Key
from daskbatch.memory.libc import MADV_POPULATE_READ, MAP_NORESERVE, MREMAP_TO, call, libc
from daskbatch.memory.mapped_writes import map_shared
from daskbatch.memory.segment import Segment
from daskbatch.uninterrupted import uninterrupted

#: The part of a range that an array must use to be stored in it.
_MIN_USED = 0.75


class _ArrayRange(NamedTuple):
    """A range with an array.

    Parameters
    ----------
    arena : Arena, optional
        The arena; None for a copy in a forked child.
    key : Key
        The range.
    mapping : KeptMapping
        Where it is mapped.
    is_stored : bool
        Whether it is a value that others may find: then the value frees it, and not the array.
    """

    arena: Arena | None
    key: Key
    mapping: KeptMapping
    is_stored: bool = False


#: By the address of the array. Using it needs no lock.
_ranges: dict[int, _ArrayRange] = {}

#: By the thread that forks: the copies for the child, each with the range that it is a copy of.
_copies: dict[int, list[tuple[int, int, _ArrayRange]]] = {}


@uninterrupted
def allocate(size: int) -> int | None:
    """Return the address of memory in the arena; None if there is none.

    Parameters
    ----------
    size : int
        How much, in bytes. Its content may be anything.
    """
    arena = arenas.existing_arena()
    found = None if arena is None else arena.reserve(size)
    if arena is None or found is None:
        return None
    offset, length, may_be_gone = found
    key = Key(arena.identity, offset, length, is_private=False)
    mapping = kept_mappings.take(key)
    try:
        if mapping is None:
            mapping, may_be_gone = map_shared(arena.file, key), True
        if may_be_gone:
            # As in `write_mapped`. If there were no memory for a page, to touch it would be fatal.
            call("madvise", mapping.address, length, MADV_POPULATE_READ)
    except OSError:
        if mapping is not None:
            kept_mappings.release(mapping, length)
        arena.drop(offset, length)
        return None
    address = mapping.address + HEADER_BYTES
    _ranges[address] = _ArrayRange(arena, key, mapping)
    return address


@uninterrupted
def free(address: int, ends: Callable[[], bool] = sys.is_finalizing) -> bool:
    """Free memory, if it is in a range with an array: return whether it is.

    Parameters
    ----------
    address : int
        Where the memory begins.
    ends : callable
        Whether the interpreter ends: then other modules may be empty.
    """
    found = _ranges.pop(address, None)
    if found is None:
        return False
    if not ends():
        arena, key, mapping, is_stored = found
        if arena is None:
            kept_mappings.release(mapping, key.length)
            return True
        kept_mappings.keep(key, mapping)
        if not is_stored:
            arena.drop(key.offset, key.length)
    return True


def capacity(address: int) -> int | None:
    """Return how much memory begins at an address; None if it is in no range with an array."""
    found = _ranges.get(address)
    return None if found is None else found.key.length - HEADER_BYTES


def can_store(address: int, size: int) -> bool:
    """Return whether memory is a range that is not stored, and of which most is used."""
    found = _ranges.get(address)
    if found is None or found.arena is None or found.is_stored:
        return False
    return size + HEADER_BYTES >= found.key.length * _MIN_USED


def has_ranges() -> bool:
    """Return whether there is any array in such a range."""
    return bool(_ranges)


def store_range(address: int) -> Segment:
    """Make a value of the range in which an array begins.

    Nothing may write to the array any longer, and it must exist until this function returns.

    Raises
    ------
    OSError
        The range cannot be written to.
    """
    found = _ranges[address]
    arena, key, _, _ = found
    assert arena is not None
    token = arena.complete(key.offset)
    _ranges[address] = found._replace(is_stored=True)
    return Segment(arena, key.offset, key.length, token, made_here=True)


def _copy_for_child() -> None:
    """Copy all arrays, before this thread forks: the child does not have the mapped ranges."""
    copies = []
    for address, found in list(_ranges.items()):
        protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        length = found.key.length
        try:
            copy = call("mmap", None, length, protection, flags | MAP_NORESERVE, -1, 0)
        except OSError:
            continue  # a child that uses this array ends with a segmentation fault
        libc().memcpy(copy, found.mapping.address, length)
        copies.append((copy, address, found))
    if copies:
        _copies[get_ident()] = copies


def _drop_copies() -> None:
    for copy, _, found in _copies.pop(get_ident(), ()):
        kept_mappings.release(KeptMapping(copy, -1, os.getpid()), found.key.length)


def _move_copies() -> None:
    """Put the copies where the arrays are, in the child."""
    copies = _copies.pop(get_ident(), ())
    _copies.clear()
    for copy, address, found in copies:
        length, target = found.key.length, found.mapping.address
        # Another thread may have freed the array since it was copied.
        if _ranges.get(address) is found:
            call("mremap", copy, length, length, MREMAP_TO, target)
            _ranges[address] = found._replace(arena=None)


os.register_at_fork(
    before=_copy_for_child, after_in_parent=_drop_copies, after_in_child=_move_copies
)
