"""A file in memory in which one process stores large buffers, and which other processes map.

The file has no name, so nothing remains of it when the last process that has it open or mapped has
ended, however that ended. A process has one file, not one for each value: so it needs one
descriptor, whatever the number of values.

Each value has a *range* of the file, which begins with a random *token*. A reader locks the range,
and then compares the token (`segment.py`). When the value is dropped and no reader has the range
locked, the token is erased and the range is used again: writing to memory that the system has
provided already takes less than half of the time of writing to new memory. This is how a slab
allocator keeps freed objects (Bonwick 1994).
"""

from __future__ import annotations

import bisect
import contextlib
import mmap
import os
import struct
import sys
import threading
from collections import deque
from collections.abc import Sequence
from time import monotonic
from typing import Any

from daskbatch.forking import after_fork, keep_inherited
from daskbatch.memory import range_locks
from daskbatch.memory.kept_mappings import Key, is_resident_memory_short, set_limits
from daskbatch.memory.libc import call
from daskbatch.memory.mapped_writes import write_mapped
from daskbatch.threads import start_unless_ending
from daskbatch.uninterrupted import uninterrupted

#: Before the first buffer of a range: the token, and zeros up to a good alignment.
HEADER_BYTES = 64

TOKEN_BYTES = 16

#: What follows the token of a spare range whose memory was not returned to the system.
_INTACT = b"\xffintact\xff"

#: How the system names the files.
FILE_NAME = "daskbatch-values"

_PROCESS = struct.Struct("=i")

#: Buffers begin at multiples of this number.
_ALIGNMENT = 64

_PAGE_BYTES = mmap.PAGESIZE

#: The size of the file. It takes memory only where something was written.
FILE_BYTES = 1 << 46

#: How much memory of dropped values is kept for new ones, however long nobody needs it, where the
#: memory of the process has no limit.
_MAX_IDLE_SPARE_BYTES = 256 << 20

#: The interval after which memory is returned to the system that nobody has needed in it.
SPARE_INTERVAL_SECONDS = 120.0

#: How much is kept during such an interval, and how much of it after that; see `set_spare_limit`.
_spare_limit = _idle_spare_limit = _MAX_IDLE_SPARE_BYTES

#: Values and spare memory may take this many times `_spare_limit` together: so a program that runs
#: again finds the memory of all its values, and not only of those that fit the limit.
_TOTAL_LIMITS = 2

#: A spare range is used for a value that takes at least this part of it.
MIN_USED = 0.75

#: How many dropped ranges one call looks at, and how many of these that a reader has locked: each
#: call looks at others. A child drops its values while its worker holds them.
_MAX_CHECKS, _MAX_LOCKED_CHECKS = 32, 3

#: If readers had locked all that a call has looked at, this number of calls do not look, unless
#: they find no spare memory: to look at locked ranges takes longer than all else that a call does.
_SKIPPED_CALLS = 8

#: The interval at which dropped ranges are looked at which a reader had locked.
_CHECK_INTERVAL_SECONDS = 0.5

#: How much one system call writes at most, and how many buffers.
_MAX_WRITE_BYTES = 1 << 30
_MAX_WRITE_BUFFERS = 512

_PUNCH_HOLE = 0x01 | 0x02  # FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE


def make_identity() -> bytes:
    """Return what references call a new file: a random text that begins with this process."""
    return _PROCESS.pack(os.getpid()) + os.urandom(8)


def owner_of(identity: bytes) -> int:
    """Return the process that has made a file."""
    process: int = _PROCESS.unpack_from(identity)[0]
    return process


def layout(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Return where buffers of some sizes begin in a range, and how long the range is."""
    starts, position = [], HEADER_BYTES
    for size in sizes:
        starts.append(position)
        position += -(-size // _ALIGNMENT) * _ALIGNMENT
    return starts, -(-position // _PAGE_BYTES) * _PAGE_BYTES


def new_memory_file() -> int:
    """Return the descriptor of a new arena's file.

    Raises
    ------
    OSError
        The system has no memory files, or does not allow large files.
    """
    file = os.memfd_create(FILE_NAME, os.MFD_CLOEXEC)
    try:
        os.ftruncate(file, FILE_BYTES)
    except BaseException:
        os.close(file)
        raise
    return file


def set_spare_limit(limit: int) -> None:
    """Set how much memory of dropped values this process keeps for some time. Bytes."""
    global _spare_limit, _idle_spare_limit
    _spare_limit = limit
    _idle_spare_limit = min(limit, _MAX_IDLE_SPARE_BYTES)


def spare_limits() -> tuple[int, int]:
    """Return how much memory of dropped values is kept for some time, and how much for longer."""
    return _spare_limit, _idle_spare_limit


def erase(file: int, offset: int, length: int) -> None:
    """Return the memory of a range to the system."""
    with contextlib.suppress(OSError):
        call("fallocate", file, _PUNCH_HOLE, offset, length)


class Arena:
    """The memory file that this process writes to. Any thread may use it.

    Parameters
    ----------
    file : int
        The file. Only this process writes to it, but a process that holds ranges may erase them.
    location : (int, int)
        A process and its descriptor of the file, by which other processes open it.
    identity : bytes, optional
        What references call the file; else a random one.
    watches : bool
        Whether a thread waits for readers of dropped ranges, and returns spare memory to the
        system. Else dropped ranges are used again at the next `write`, and another process returns
        spare memory to the system.
    """

    def __init__(
        self,
        file: int,
        location: tuple[int, int],
        identity: bytes | None = None,
        watches: bool = True,
    ) -> None:
        self.file = file
        self.location = location
        self.identity = make_identity() if identity is None else identity
        self._watches = watches
        self._lock = threading.Lock()
        self._end = 0
        #: Ranges that can be used again: (length, offset), sorted; and in the order of their age.
        self._spare: list[tuple[int, int]] = []
        self._by_age: deque[tuple[int, int]] = deque()
        self._spare_bytes = 0
        #: How much the ranges of values take, with the dropped ones that were not looked at.
        self._taken_bytes = 0
        #: How much of the spare memory was used again since it was last trimmed, and when that was.
        self._reused_bytes = 0
        self._trimmed_at = 0.0
        #: The ranges of dropped values: (offset, length). Appending needs no lock.
        self._dropped: deque[tuple[int, int]] = deque()
        #: How many calls may still leave them as they are.
        self._may_skip = 0
        self._watching = False

    def write(self, buffers: Sequence[Any], sizes: Sequence[int]) -> tuple[int, int, bytes]:
        """Store buffers in a range; return the offset and the length of it, and its token.

        Parameters
        ----------
        buffers : sequence
            Contiguous objects that support the buffer protocol.
        sizes : sequence of int
            Their sizes in bytes.

        Raises
        ------
        OSError
            There is no memory.
        """
        starts, length = layout(sizes)
        offset, length, is_used_again = self._take(length)
        token = os.urandom(TOKEN_BYTES)
        may_be_gone = False
        if not self._watches:
            # Another process may return spare memory to the system, and must not do it now.
            range_locks.lock(self.file, offset, length)
            may_be_gone = not self._is_intact(offset)
        try:
            header = token + bytes(HEADER_BYTES - TOKEN_BYTES)
            buffers, starts = [header, *buffers], [0, *starts]
            key = Key(self.identity, offset, length, is_private=False)
            if not is_used_again or not write_mapped(self.file, key, buffers, starts, may_be_gone):
                self._write_all(offset, buffers, starts, [HEADER_BYTES, *sizes])
        except BaseException:
            self.drop(offset, length)
            raise
        finally:
            if not self._watches:
                range_locks.unlock(self.file, offset, length)
        return offset, length, token

    def reserve(self, size: int) -> tuple[int, int, bool] | None:
        """Take a range for one buffer, which the caller writes through a mapping.

        Parameters
        ----------
        size : int
            The size of the buffer in bytes.

        Returns
        -------
        (int, int, bool) or None
            The offset and the length of the range, and whether its memory may be gone. None if
            there is no memory.
        """
        _, length = layout([size])
        offset, length, is_used_again = self._take(length)
        may_be_gone = not is_used_again
        try:
            if not is_used_again:
                call("fallocate", self.file, 0, offset, length)
            elif not self._watches:
                # Another process may return it to the system, unless it has another token.
                range_locks.lock(self.file, offset, length)
                try:
                    may_be_gone = not self._is_intact(offset)
                    os.pwrite(self.file, os.urandom(TOKEN_BYTES), offset)
                finally:
                    range_locks.unlock(self.file, offset, length)
        except OSError:
            self.drop(offset, length)
            return None
        return offset, length, may_be_gone

    def _is_intact(self, offset: int) -> bool:
        """Return whether a spare range has its memory. The range is locked."""
        return os.pread(self.file, len(_INTACT), offset + TOKEN_BYTES) == _INTACT

    def complete(self, offset: int) -> bytes:
        """Make a reserved range one that others can find; return its token."""
        token = os.urandom(TOKEN_BYTES)
        os.pwrite(self.file, token, offset)
        return token

    def _write_all(
        self, offset: int, buffers: Sequence[Any], starts: Sequence[int], sizes: Sequence[int]
    ) -> None:
        pieces: list[Any] = []
        position, total = offset, 0

        def flush() -> None:
            nonlocal pieces, position, total
            while total:
                done = os.pwritev(self.file, pieces[:_MAX_WRITE_BUFFERS], position)
                position += done
                total -= done
                while done:
                    if done < len(pieces[0]):
                        pieces[0] = pieces[0][done:]
                        break
                    done -= len(pieces.pop(0))
            pieces = []

        for buffer, start, size in zip(buffers, starts, sizes, strict=True):
            view = memoryview(buffer).cast("B") if size else memoryview(b"")
            gap = offset + start - position - total
            if gap:
                pieces.append(memoryview(bytes(gap)))
                total += gap
            for begin in range(0, size, _MAX_WRITE_BYTES):
                piece = view[begin : begin + _MAX_WRITE_BYTES]
                pieces.append(piece)
                total += len(piece)
                if total >= _MAX_WRITE_BYTES:
                    flush()
        flush()

    def _take(self, length: int) -> tuple[int, int, bool]:
        """Return the smallest spare range that fits well, or a new one; and whether it is spare."""
        with self._lock:
            found = self._find_spare(length) if self._skips_dropped() else None
            if found is None:
                self._reuse_dropped()
                found = self._find_spare(length)
            if found is None:
                offset, is_used_again = self._end, False
                self._end += length
            else:
                (length, offset), is_used_again = self._spare.pop(found), True
                self._by_age.remove((length, offset))
                self._spare_bytes -= length
                self._reused_bytes += length
            self._taken_bytes += length
            return offset, length, is_used_again

    def _find_spare(self, length: int) -> int | None:
        """Return the position of the smallest spare range that fits well; None without one."""
        position = bisect.bisect_left(self._spare, (length, 0))
        if position < len(self._spare) and length >= self._spare[position][0] * MIN_USED:
            return position
        return None

    def _skips_dropped(self) -> bool:
        """Return whether to leave the dropped ranges as they are. Called with the lock."""
        if not self._may_skip:
            return False
        self._may_skip -= 1
        return True

    @uninterrupted
    def drop(self, offset: int, length: int) -> None:
        """Drop the value of a range. A finalizer may call it, at any moment."""
        if sys.is_finalizing():
            return  # a process that ends imports no more modules
        self._dropped.append((offset, length))
        # Not blocking: the garbage collector may run in the thread that has the lock.
        if self._lock.acquire(blocking=False):
            try:
                if not self._skips_dropped():
                    self._reuse_dropped()
                watch = self._has_work() and not self._watching
                self._watching |= watch
            finally:
                self._lock.release()
            if watch and not start_unless_ending(self._watch, name="daskbatch-values"):
                self._watching = False

    def _reuse_dropped(self, max_locked: int = _MAX_LOCKED_CHECKS) -> None:
        """Make spare ranges of the dropped ones that no reader has locked. Called with the lock."""
        locked = freed = 0
        for _ in range(min(len(self._dropped), _MAX_CHECKS)):
            offset, length = self._dropped.popleft()
            if not range_locks.try_lock(self.file, offset, length):
                self._dropped.append((offset, length))
                locked += 1
                if locked == max_locked:
                    break
                continue
            freed += 1
            try:
                # Another process may have returned its memory to the system since.
                erased = bytes(TOKEN_BYTES)
                intact = self._watches or os.pread(self.file, TOKEN_BYTES, offset) != erased
                os.pwrite(self.file, erased + (_INTACT if intact else b""), offset)
                self._taken_bytes -= length
                if length > self._most_spare():
                    erase(self.file, offset, length)
                    continue
            finally:
                range_locks.unlock(self.file, offset, length)
            bisect.insort(self._spare, (length, offset))
            self._by_age.append((length, offset))
            self._spare_bytes += length
        self._may_skip = _SKIPPED_CALLS if locked and not freed else 0
        self._keep_spare(self._most_spare())

    def _most_spare(self) -> int:
        """Return how much may be spare now. Bytes."""
        return max(_spare_limit, _TOTAL_LIMITS * _spare_limit - self._taken_bytes)

    def _keep_spare(self, most: int) -> None:
        """Return the oldest spare ranges to the system that are more than this. With the lock."""
        while self._spare_bytes > most:
            capacity, offset = self._by_age.popleft()
            self._spare.remove((capacity, offset))
            self._spare_bytes -= capacity
            erase(self.file, offset, capacity)

    def _trim(self) -> None:
        """Keep as much spare memory as was used again since the last call. With the lock."""
        now = monotonic()
        if now - self._trimmed_at > SPARE_INTERVAL_SECONDS:
            self._keep_spare(max(self._reused_bytes, _idle_spare_limit))
            self._reused_bytes, self._trimmed_at = 0, now

    def _has_work(self) -> bool:
        """Return whether the thread is needed."""
        return self._watches and (bool(self._dropped) or self._spare_bytes > _idle_spare_limit)

    def _watch(self) -> None:
        pause = threading.Event()
        self._trimmed_at = monotonic()
        while True:
            pause.wait(_CHECK_INTERVAL_SECONDS)
            with self._lock:
                # All of them, a few at a time: in each round the first ones come last.
                for _ in range(len(self._dropped) // _MAX_CHECKS + 1):
                    self._reuse_dropped(max_locked=_MAX_CHECKS)
                if is_resident_memory_short():
                    self._keep_spare(_spare_limit)  # the tasks may need it
                self._trim()
                if not self._has_work():
                    self._watching = False
                    return


_own: Arena | None = None
_own_lock = threading.Lock()
_unavailable = False
#: The file that this process is to write to, if its parent has made one: see `use_arena`.
_given: tuple[tuple[int, int], bytes] | None = None


def own_arena() -> Arena | None:
    """Return the arena of this process; None if this system has no memory files."""
    global _own, _unavailable
    if _own is None and not _unavailable:
        with _own_lock:
            if _own is None:
                try:
                    _own = _open_arena()
                except (OSError, AttributeError):
                    _unavailable = True
    return _own


def _open_arena() -> Arena:
    if _given is None:
        file = new_memory_file()
        return Arena(file, (os.getpid(), file))
    (process, descriptor), identity = _given
    # Opened again, and not inherited: the locks of this process must not be those of its parent.
    file = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | os.O_CLOEXEC)
    return Arena(file, (process, descriptor), identity, watches=False)


def use_arena(
    location: tuple[int, int], identity: bytes, spare: int | None = None, kept: int | None = None
) -> None:
    """Have this process write to a file that its parent has made, which outlives this process.

    Parameters
    ----------
    location, identity
        See `Arena`.
    spare : int, optional
        The parameter of `set_spare_limit`.
    kept : int, optional
        How many bytes of mappings are kept; see `kept_mappings`. Dask does not measure a child.
    """
    global _given
    _given = location, identity
    if spare is not None:
        set_spare_limit(spare)
    if kept is not None:
        set_limits(kept, None)


@after_fork
def _forget_arena() -> None:
    """Leave the parent's arena to the parent."""
    global _own, _own_lock, _given
    _own_lock = threading.Lock()
    _given = None
    if _own is not None:
        keep_inherited([_own])
        _own = None
