"""Ranges of memory files that this process holds, and references by which others find them.

A process that made a value *holds* its range, and so does a process that has adopted it: as long
as one of them holds it, the range keeps its content. A process that only reads a range maps it,
and the mapping keeps the content, too (`range_locks`). Any number of threads may call.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from daskbatch.forking import after_fork, keep_inherited
from daskbatch.memory import range_locks
from daskbatch.memory.arena import (
    FILE_BYTES,
    FILE_NAME,
    SPARE_INTERVAL_SECONDS,
    TOKEN_BYTES,
    Arena,
    erase,
    layout,
    make_identity,
    new_memory_file,
    own_arena,
    owner_of,
    spare_limits,
)
from daskbatch.memory.host import host_id
from daskbatch.memory.kept_mappings import Key, release_kept
from daskbatch.memory.mapping import map_again, map_private
from daskbatch.threads import start_unless_ending
from daskbatch.uninterrupted import uninterrupted


class ValueGone(Exception):
    """The memory of a value no longer exists, or this process cannot reach it."""


class Reference(NamedTuple):
    """Where a value is stored.

    Parameters
    ----------
    host : str
        The host; see `host_id`.
    arena : bytes
        The identity of the memory file.
    process, descriptor : int
        A process that has the file open, and its descriptor.
    offset, length : int
        The range.
    token : bytes
        The first bytes of the range, as long as the value is there.
    """

    host: str
    arena: bytes
    process: int
    descriptor: int
    offset: int
    length: int
    token: bytes


class AdoptedArena:
    """The memory file of another process, in which this one holds ranges. Any thread may use it.

    Parameters
    ----------
    file : int
        The file, opened by this process; closed once nothing refers to this object.
    identity : bytes
        The identity of the arena.
    erases : bool
        Whether this process returns the memory of dropped ranges to the system: the process
        that writes does not do it.
    """

    def __init__(self, file: int, identity: bytes, erases: bool = False) -> None:
        self.file = file
        self.location = os.getpid(), file
        self.identity = identity
        self._erases = erases
        #: Whether the process that writes to the file has ended.
        self.orphaned = False
        self._lock = threading.Lock()
        #: By token, the ranges that are held: (offset, length), and by how many segments.
        self._held: dict[bytes, tuple[int, int]] = {}
        self._holders: dict[bytes, int] = {}
        #: The ranges of deleted segments: (offset, length, token). Appending needs no lock.
        self._dropped: deque[tuple[int, int, bytes]] = deque()
        #: By offset, the ranges that the other process may use again, and that this one may erase:
        #: their lengths and tokens. The oldest come first.
        self._spare: dict[int, tuple[int, bytes]] = {}
        self._spare_bytes = 0
        #: How much of them was used again since the thread has looked last; None without it.
        self._reused_bytes: int | None = None
        # Not `__del__`: while that runs, another thread may still find the object.
        weakref.finalize(self, _close, file).atexit = False

    def hold(self, offset: int, length: int, token: bytes) -> None:
        """Hold a range. Raises `ValueGone` if its value is not there."""
        with self._lock:
            range_locks.lock_shared(self.file, offset, length)
            if os.pread(self.file, TOKEN_BYTES, offset) != token:
                if not self._holds_any(offset, length):
                    range_locks.unlock(self.file, offset, length)
                raise ValueGone("its memory has been used again")
            self._holders[token] = self._holders.get(token, 0) + 1
            self._held[token] = offset, length
            if self._remove_spare(offset) and self._reused_bytes is not None:
                self._reused_bytes += length
            self._release_dropped()

    @uninterrupted
    def drop(self, offset: int, length: int, token: bytes) -> None:
        """Stop holding a range. A finalizer may call it, at any moment."""
        if sys.is_finalizing():
            return  # a process that ends drops all by itself, and imports no more modules
        self._dropped.append((offset, length, token))
        # Not blocking: the garbage collector may run in the thread that has the lock.
        if self._lock.acquire(blocking=False):
            try:
                self._release_dropped()
            finally:
                self._lock.release()

    def _release_dropped(self) -> None:
        released = bool(self._dropped)
        while self._dropped:
            offset, length, token = self._dropped.popleft()
            # Another segment may have been made of the range since.
            self._holders[token] -= 1
            if self._holders[token]:
                continue
            del self._holders[token], self._held[token]
            range_locks.unlock(self.file, offset, length)
            if self._erases:
                self._remove_spare(offset)
                self._spare[offset] = length, token
                self._spare_bytes += length
        most, idle = spare_limits()
        self._keep_spare(0 if self.orphaned else most)
        if self._spare_bytes > idle and self._reused_bytes is None:
            self._reused_bytes = 0
            if not start_unless_ending(partial(_watch, weakref.ref(self)), name="daskbatch-values"):
                self._reused_bytes = None
        # That of a child names this process, which has made it.
        if released and not self._erases and not _exists(owner_of(self.identity)):
            self._erase_unheld()

    def _remove_spare(self, offset: int) -> bool:
        """Remove a range from the spare ones; return whether it was one."""
        found = self._spare.pop(offset, None)
        if found is not None:
            self._spare_bytes -= found[0]
        return found is not None

    def _keep_spare(self, most: int) -> None:
        """Return the oldest spare ranges to the system that are more than this. With the lock."""
        if self._spare_bytes <= most:
            return
        for offset, (length, token) in list(self._spare.items()):
            if self._erase(offset, length, token):
                self._remove_spare(offset)
                if self._spare_bytes <= most:
                    return

    def trim(self) -> bool:
        """Keep as much spare memory as was used again since the last call.

        Returns whether to call again.
        """
        _, idle = spare_limits()
        with self._lock:
            self._keep_spare(max(self._reused_bytes or 0, idle))
            self._reused_bytes = 0 if self._spare_bytes > idle else None
            return self._reused_bytes is not None

    def erase_unheld(self) -> None:
        """Return to the system what no process holds or has mapped; its writer has ended."""
        with self._lock:
            self._erase_unheld()

    def _erase_unheld(self) -> None:
        # The kernel keeps all memory of the file as long as one process has any of it.
        position = 0
        for offset, length in (*sorted(self._held.values()), (FILE_BYTES, 0)):
            gap = offset - position
            if gap > 0 and range_locks.try_lock(self.file, position, gap):
                erase(self.file, position, gap)
                range_locks.unlock(self.file, position, gap)
            position = offset + length

    def _holds_any(self, offset: int, length: int) -> bool:
        """Return whether a value of a range is held, which may be another one than before.

        This process has one description of the file, and so one lock of each byte. To lock such a
        range for writing, and to unlock it, would unlock the value that is held there.
        """
        return any(
            start < offset + length and offset < start + size for start, size in self._held.values()
        )

    def _erase(self, offset: int, length: int, token: bytes) -> bool:
        """Return a range to the system, unless it is used again; False if a reader has it."""
        if self._holds_any(offset, length):
            return True  # the other process has used it again
        if not range_locks.try_lock(self.file, offset, length):
            return False
        try:
            # The other process erases the token when it makes the range a spare one of its own,
            # and locks the range while it writes to it.
            if os.pread(self.file, TOKEN_BYTES, offset) in (token, bytes(TOKEN_BYTES)):
                erase(self.file, offset, length)
        finally:
            range_locks.unlock(self.file, offset, length)
        return True


def _close(file: int) -> None:
    with contextlib.suppress(OSError):
        os.close(file)


def _watch(reference: weakref.ref[AdoptedArena]) -> None:
    """Return spare memory to the system from time to time, until little is left."""
    pause = threading.Event()
    while True:
        pause.wait(SPARE_INTERVAL_SECONDS)
        arena = reference()
        if arena is None or not arena.trim():
            return
        del arena


class Segment:
    """A range that this process holds as long as anything refers to the object.

    Any thread may use it.

    Parameters
    ----------
    arena : Arena or AdoptedArena
        The memory file.
    offset, length : int
        The range.
    token : bytes
        Its token.
    made_here : bool
        Whether the value was made by this process or for it. Else another process counts the
        memory as its own.
    """

    __slots__ = ("__weakref__", "arena", "length", "made_here", "offset", "token")

    def __init__(
        self, arena: Arena | AdoptedArena, offset: int, length: int, token: bytes, made_here: bool
    ) -> None:
        self.arena = arena
        self.offset = offset
        self.length = length
        self.token = token
        self.made_here = made_here
        held = _HeldSegment(self, _drop)
        held.arena, held.offset, held.length, held.token = arena, offset, length, token
        _held[id(held)] = _segments[token] = held

    @property
    def reference(self) -> Reference:
        """Where other processes find it."""
        return Reference(
            *(host_id(), self.arena.identity, *self.arena.location),
            *(self.offset, self.length, self.token),
        )


class _HeldSegment(weakref.ref[Segment]):
    """Refers to a segment weakly, and knows its range. Its callback is `_drop`.

    A `Segment.__del__` would not do: while that runs, another thread may still find the segment.
    """

    __slots__ = ("arena", "length", "offset", "token")

    arena: Arena | AdoptedArena
    offset: int
    length: int
    token: bytes


@uninterrupted
def _drop(held: _HeldSegment) -> None:
    """Stop holding the range of a segment that is gone."""
    _held.pop(id(held), None)
    if _segments.get(held.token) is held:
        del _segments[held.token]
    if isinstance(held.arena, Arena):
        held.arena.drop(held.offset, held.length)
    else:
        held.arena.drop(held.offset, held.length, held.token)


#: The segments of this process, by the number of the reference; and the last one of each token.
_held: dict[int, _HeldSegment] = {}
_segments: dict[bytes, _HeldSegment] = {}


def _find(token: bytes) -> Segment | None:
    """Return the segment with a token, if this process has it."""
    held = _segments.get(token)
    return None if held is None else held()


#: The files of other processes, by their identities.
_adopted: weakref.WeakValueDictionary[bytes, AdoptedArena] = weakref.WeakValueDictionary()
_adopting = threading.Lock()


def _exists(process: int) -> bool:
    return os.path.exists(f"/proc/{process}")


def erase_orphans() -> None:
    """Return memory to the system that processes which have ended had written, and nobody holds."""
    release_kept(owner_ended=True)
    for arena in list(_adopted.values()):
        if not _exists(owner_of(arena.identity)):
            arena.erase_unheld()


def store(buffers: Sequence[Any], sizes: Sequence[int]) -> Segment | None:
    """Store buffers in this process's arena; None if this system has no memory files.

    Raises
    ------
    OSError
        There is no memory.
    """
    arena = own_arena() if host_id() else None
    if arena is None:
        return None
    return Segment(arena, *arena.write(buffers, sizes), made_here=True)


def adopt(reference: Reference, made_here: bool = False) -> Segment:
    """Hold a range that another process has written, or this one.

    Raises
    ------
    ValueGone
        It is gone, or is on another host.
    """
    found = _find(reference.token)
    if found is not None:
        return found
    if reference.host != host_id() or not reference.host:
        raise ValueGone("its memory is on another host")
    try:
        arena = _adopted.get(reference.arena)
        if arena is None or arena.location != (reference.process, reference.descriptor):
            # Also if this process has the file open already: what nobody held when the process
            # that the reference names ended is lost.
            _require_file(reference)
        with _adopting:
            arena = _adopted.get(reference.arena)
            if arena is None:
                file = _open(reference, os.O_RDWR)
                arena = _adopted[reference.arena] = AdoptedArena(file, reference.arena)
            found = _find(reference.token)
            if found is not None:
                return found
            arena.hold(reference.offset, reference.length, reference.token)
            return Segment(arena, reference.offset, reference.length, reference.token, made_here)
    except OSError as error:
        raise ValueGone(f"its memory cannot be opened: {error}") from error


def open_range(reference: Reference) -> int:
    """Open the memory file of a range, and lock the range for the new description.

    The range keeps its content until the descriptor and all mappings made of it are closed.

    Raises
    ------
    ValueGone
        It is gone, or is on another host.
    """
    held = _find(reference.token)
    try:
        if held is not None:
            file = os.open(f"/proc/self/fd/{held.arena.file}", os.O_RDONLY | os.O_CLOEXEC)
        elif reference.host == host_id() and reference.host:
            file = _open(reference, os.O_RDONLY)
        else:
            raise ValueGone("its memory is on another host")
        try:
            range_locks.lock_shared(file, reference.offset, reference.length)
            if os.pread(file, TOKEN_BYTES, reference.offset) != reference.token:
                raise ValueGone("its memory has been used again")
        except BaseException:
            os.close(file)
            raise
    except OSError as error:
        raise ValueGone(f"its memory cannot be opened: {error}") from error
    return file


def attach(reference: Reference) -> memoryview:
    """Map a range; return its bytes, which this process may change for itself.

    Raises
    ------
    ValueGone
        It is gone, or is on another host.
    OSError
        It cannot be mapped, for example because this process has too many mappings.
    """
    key = Key(reference.arena, reference.offset, reference.length, is_private=True)
    memory = map_again(key, reference.token)
    if memory is None:
        memory = map_private(open_range(reference), key, owner_of(reference.arena))
    return memory


def cut(memory: memoryview, sizes: Sequence[int]) -> list[memoryview]:
    """Return the buffers of a range, from its bytes and their sizes."""
    starts, _ = layout(sizes)
    return [memory[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _open(reference: Reference, flags: int) -> int:
    """Open the memory file of another process."""
    return os.open(_require_file(reference), flags | os.O_CLOEXEC)


def _require_file(reference: Reference) -> str:
    """Return the path of a memory file that another process has open."""
    path = f"/proc/{reference.process}/fd/{reference.descriptor}"
    # The process may have ended since, and another one may have its number.
    if not os.readlink(path).startswith(f"/memfd:{FILE_NAME}"):
        raise ValueGone("the process that has its memory has ended")
    return path


def new_child_arena() -> AdoptedArena | None:
    """Make the memory file that a child process will write to.

    Returns
    -------
    AdoptedArena or None
        This process's end. None if this system has no memory files.
    """
    if not host_id():
        return None
    try:
        file = new_memory_file()
    except OSError:
        return None
    arena = AdoptedArena(file, make_identity(), erases=True)
    _adopted[arena.identity] = arena
    return arena


@after_fork
def _forget_segments() -> None:
    """Leave what the parent holds to the parent."""
    global _adopting
    _adopting = threading.Lock()
    keep_inherited([*[held() for held in list(_held.values())], *_adopted.values()])
    _held.clear()
    _segments.clear()
    _adopted.clear()
