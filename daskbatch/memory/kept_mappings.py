"""Keeps mappings of memory that is used again, so that the system need not map its pages anew.

To map the pages of a range one after another takes longer than to read them. So a mapping that
nobody uses any longer is kept, and serves the next value in the same range. The process has the
pages of a kept mapping in its resident memory, which Dask limits. So few are kept (`set_limits`), a
thread unmaps those that nobody has used for some time, and the oldest as soon as the process has
much resident memory. Any number of threads may call, also from finalizers.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import sys
import threading
from collections import deque
from time import monotonic
from typing import NamedTuple

from daskbatch.forking import after_fork
from daskbatch.memory.libc import call
from daskbatch.threads import start_unless_ending

#: Smaller mappings are not kept: the system maps their pages in little time.
MIN_KEPT_BYTES = 1 << 19

#: How many mappings are kept at most; how many of them are private, and so have a descriptor.
_MAX_KEPT, _MAX_DESCRIPTORS = 512, 64

#: How many bytes are kept where the memory of the process has no limit.
_DEFAULT_KEPT_BYTES = 96 << 20

#: A mapping that nobody has used for so long is unmapped; and if there is no room for another one.
_IDLE_SECONDS = 120.0
_IDLE_SECONDS_WITHOUT_ROOM = 5.0

#: How often the resident memory is compared with its limit, and how often ages are without one.
_CHECK_INTERVAL_SECONDS = 0.05
_AGE_INTERVAL_SECONDS = 1.0

#: Which part of the resident memory that is set may be resident when another mapping is kept: a
#: program that runs tasks of its own size again must not exceed it by what is kept.
_FULL_PART = 0.9

_PAGE_BYTES = mmap.PAGESIZE

#: Which byte of an entry of /proc/self/pagemap is the highest, and its bits: the page is in memory
#: or in swap; it belongs to the file. See "Examining Process Page Tables" in Linux's documentation.
_ENTRY_BYTES = 8
_HIGHEST_BYTE = _ENTRY_BYTES - 1 if sys.byteorder == "little" else 0
_PRESENT_OR_SWAPPED, _OF_FILE = 0xC0, 0x20

#: The highest bytes of pages that nobody has changed: a changed one is a copy, not the file's.
_UNCHANGED = bytes(each for each in range(256) if not each & _PRESENT_OR_SWAPPED or each & _OF_FILE)


class Key(NamedTuple):
    """What a mapping shows.

    Parameters
    ----------
    arena : bytes
        The identity of the memory file.
    offset, length : int
        The range.
    is_private : bool
        Whether its user may change it for itself; else changes go to the file.
    """

    arena: bytes
    offset: int
    length: int
    is_private: bool


class KeptMapping(NamedTuple):
    """A mapping that nobody uses at the moment.

    Parameters
    ----------
    address : int
        Where it begins.
    file : int
        The descriptor that it was made from; -1 if that is closed.
    owner : int
        The process that made the memory file.
    """

    address: int
    file: int
    owner: int


class _Kept(NamedTuple):
    mapping: KeptMapping
    since: float


_lock = threading.Lock()
#: The oldest come first.
_kept: dict[Key, _Kept] = {}
_kept_bytes = _lowest_kept_bytes = 0
_max_kept_bytes = _DEFAULT_KEPT_BYTES
_max_resident_bytes: int | None = None
_watching = False
#: One entry for each private mapping that may still have a descriptor. Using it needs no lock.
_free_descriptors = deque(range(_MAX_DESCRIPTORS))
#: How many forks this process has begun or ended: see `forks`.
_forks = 0


def set_limits(kept: int, resident: int | None) -> None:
    """Set how much is kept, and up to which resident memory of the process. Bytes."""
    global _max_kept_bytes, _max_resident_bytes
    _max_kept_bytes, _max_resident_bytes = kept, resident


def limit() -> int:
    """Return how much is kept at most. Bytes."""
    return _max_kept_bytes


def forks() -> int:
    """Return a number that changes with each fork of this process.

    A forked child may use the mappings that were in use. So what was mapped before a fork must
    not be used for another value.
    """
    return _forks


def reserve_descriptor() -> bool:
    """Return whether another private mapping may have a descriptor until `release` closes it."""
    try:
        _free_descriptors.pop()
    except IndexError:
        return False
    return True


def release(mapping: KeptMapping, length: int) -> None:
    """Unmap a mapping, and close its descriptor. Finalizers may call it."""
    with contextlib.suppress(OSError):
        call("munmap", mapping.address, length)
    if mapping.file >= 0:
        with contextlib.suppress(OSError):
            os.close(mapping.file)
        _free_descriptors.append(0)


def has_room(length: int) -> bool:
    """Return whether a mapping of some length would be kept now."""
    if not MIN_KEPT_BYTES <= length <= _max_kept_bytes or _excess_bytes() + length > 0:
        return False
    with _lock:
        removed = _remove_oldest(length)
        room = _has_room(length)
    _release_all(removed)
    return room


def take(key: Key) -> KeptMapping | None:
    """Return the kept mapping of a range, which is the caller's from now on; None without one."""
    if key.length < MIN_KEPT_BYTES:
        return None
    with _lock:
        return _remove(key)


def keep(key: Key, mapping: KeptMapping) -> None:
    """Keep a mapping, or release it. Finalizers may call it.

    Parameters
    ----------
    key : Key
        What it shows. The caller has not locked this range.
    mapping : KeptMapping
        The mapping.
    """
    global _kept_bytes
    # Not blocking: the garbage collector may run in the thread that has the lock.
    if (
        sys.is_finalizing()
        or not MIN_KEPT_BYTES <= key.length <= _max_kept_bytes
        or _excess_bytes() > 0
        or not _lock.acquire(blocking=False)
    ):
        release(mapping, key.length)
        return
    removed, watch = [], False
    try:
        removed = _remove_oldest(key.length)
        if key not in _kept and _has_room(key.length):
            _kept[key] = _Kept(mapping, monotonic())
            _kept_bytes += key.length
            watch = _set_watching()
        else:
            removed.append((mapping, key.length))
    finally:
        _lock.release()
    _release_all(removed)
    if watch and not start_unless_ending(_watch, name="daskbatch-mappings"):
        _set_not_watching()


def release_kept(owner_ended: bool = False) -> None:
    """Unmap all kept mappings, or those of memory files whose process has ended."""
    with _lock:
        keys = [
            key
            for key, kept in _kept.items()
            if not owner_ended or not os.path.exists(f"/proc/{kept.mapping.owner}")
        ]
        removed = [(mapping, key.length) for key in keys if (mapping := _remove(key))]
    _release_all(removed)


def _release_oldest(size: float) -> None:
    """Unmap the oldest kept mappings, until they have some size together, in bytes."""
    removed: list[tuple[KeptMapping, int]] = []
    with _lock:
        while _kept and size > 0:
            key, kept = next(iter(_kept.items()))
            _remove(key)
            removed.append((kept.mapping, key.length))
            size -= key.length
    _release_all(removed)


def is_unchanged(address: int, length: int) -> bool:
    """Return whether no page of a private mapping was changed, as far as the system says."""
    size = length // _PAGE_BYTES * _ENTRY_BYTES
    try:
        file = os.open("/proc/self/pagemap", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        data = os.pread(file, size, address // _PAGE_BYTES * _ENTRY_BYTES)
    except OSError:
        return False
    finally:
        os.close(file)
    return len(data) == size and not data[_HIGHEST_BYTE::_ENTRY_BYTES].translate(None, _UNCHANGED)


def lowest_kept_bytes() -> int:
    """Return the lowest number of bytes that were kept at any time since the last call."""
    global _lowest_kept_bytes
    lowest, _lowest_kept_bytes = _lowest_kept_bytes, _kept_bytes
    return lowest


def kept_bytes() -> int:
    """Return how many bytes are kept now: resident memory that no task uses."""
    return _kept_bytes


def _remove(key: Key) -> KeptMapping | None:
    """Remove a mapping from the kept ones. Called with the lock."""
    global _kept_bytes, _lowest_kept_bytes
    kept = _kept.pop(key, None)
    if kept is None:
        return None
    _kept_bytes -= key.length
    _lowest_kept_bytes = min(_lowest_kept_bytes, _kept_bytes)
    return kept.mapping


def _has_room(length: int) -> bool:
    return len(_kept) < _MAX_KEPT and _kept_bytes + length <= _max_kept_bytes


def _remove_oldest(length: int) -> list[tuple[KeptMapping, int]]:
    """Remove mappings that nobody has used for long, if a new one has no room. With the lock.

    Those that were used lately stay, and the new one is not kept: a program that uses more ranges
    than have room, one after another, would else find none of them again.
    """
    removed = []
    end = monotonic() - _IDLE_SECONDS_WITHOUT_ROOM
    while _kept and not _has_room(length):
        key, kept = next(iter(_kept.items()))
        if kept.since > end:
            break
        _remove(key)
        removed.append((kept.mapping, key.length))
    return removed


def _release_all(removed: list[tuple[KeptMapping, int]]) -> None:
    for mapping, length in removed:
        release(mapping, length)


def is_resident_memory_short() -> bool:
    """Return whether the process has more resident memory than was set; False without a limit."""
    if _max_resident_bytes is None:
        return False
    return resident_bytes() > _max_resident_bytes


def _excess_bytes() -> float:
    """Return how much must be unmapped before another mapping is kept; negative if there is room.

    All mappings of this process count, also those that are to be kept.
    """
    if _max_resident_bytes is None:
        return -math.inf
    return resident_bytes() - _FULL_PART * _max_resident_bytes


def resident_bytes() -> int:
    """Return the resident memory of this process; 0 if it is not known."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def _set_watching() -> bool:
    """Return whether the thread is to be started. Called with the lock."""
    global _watching
    if _watching:
        return False
    _watching = True
    return True


def _set_not_watching() -> None:
    global _watching
    _watching = False


def _watch() -> None:
    """Unmap what nobody has used for long, and what the resident memory has no room for."""
    pause = threading.Event()
    ages_at = monotonic()
    while True:
        limited = _max_resident_bytes is not None
        pause.wait(_CHECK_INTERVAL_SECONDS if limited else _AGE_INTERVAL_SECONDS)
        if is_resident_memory_short():
            _release_oldest(_excess_bytes())
        if monotonic() > ages_at:
            ages_at = monotonic() + _AGE_INTERVAL_SECONDS
            release_kept(owner_ended=True)
        end = monotonic() - _IDLE_SECONDS
        with _lock:
            old = [key for key, kept in _kept.items() if kept.since < end]
            removed = [(mapping, key.length) for key in old if (mapping := _remove(key))]
            ends = not _kept
            if ends:
                _set_not_watching()
        _release_all(removed)
        if ends:
            return


def _count_fork() -> None:
    global _forks
    _forks += 1


# Twice: what another thread maps between the two may be in the child, too.
os.register_at_fork(before=_count_fork, after_in_parent=_count_fork)


@after_fork
def _forget_mappings() -> None:
    """Release the child's copies of private mappings; it has none of the others."""
    global _lock, _kept_bytes, _lowest_kept_bytes, _watching, _free_descriptors
    _lock = threading.Lock()
    inherited = list(_kept.items())
    _kept.clear()
    _kept_bytes = _lowest_kept_bytes = 0
    _watching = False
    for key, kept in inherited:
        if key.is_private:
            release(kept.mapping, key.length)
    _free_descriptors = deque(range(_MAX_DESCRIPTORS))
