"""Keeps values in memory up to a limit, and the others on disk.

A value is kept as long as something refers to its `StoredValue`, and never changes. A value on disk
is read from there each time, since moving it back into memory would move others to disk. Any number
of threads may use a `SpillStore`.

`zict.Buffer` is not used, since it has one value per key: here a snapshot or a reader may still use
an old value of a key. `zict.File` writes and reads the files.

See Also
--------
zict.File : Stores the buffers of a value in a file.
"""

from __future__ import annotations

import contextlib
import struct
import threading
import weakref
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zict import File

from daskbatch.shared.data.codec import Value, content_of, independent_part, size_of

#: In a file: the number of buffers, and the size of each; 0 buffers for a plain pickle.
_COUNT = struct.Struct("=I")
_SIZE = struct.Struct("=q")

#: How many references to dropped values there may be before they are removed.
_MAX_DEAD_REFERENCES = 10_000


class StoredValue:
    """A stored value; removed from memory and disk when the last reference is dropped.

    Parameters
    ----------
    store : SpillStore
        The store that it is in.
    key : object
        The encoded key that it was written under.
    value : Value
        The value.

    Notes
    -----
    Any number of threads may read it while one moves it to disk, without a common lock. This is
    correct because of the order in which `leave_memory` sets the two attributes that `value` reads:

    1. Thread 1 finds the value in `_value`: then it has a reference to it, whatever happens
       afterwards.
    2. Thread 2 moves the value to disk: it writes the file, sets `file`, and only then sets
       `_value` to None.
    3. Thread 1 finds None in `_value` the next time: then `file` was set before, and the file is
       complete. In the other order, thread 1 could find neither.
    """

    __slots__ = (
        "__weakref__",
        "_store",
        "_value",
        "decoded",
        "file",
        "key",
        "reference",
        "size",
    )

    def __init__(self, store: SpillStore, key: Any, value: Value) -> None:
        self._store = store
        self._value: Value | None = value
        self.key = key
        #: The decoded key, as the very object that the shard's dict has; None in a queue.
        self.decoded: Any = None
        self.file: str | None = None
        self.size = size_of(value)
        #: How the store knows the size and file of the value after it has been dropped.
        self.reference: _Reference | None = None

    @property
    def value(self) -> Value:
        """The value, from memory or from disk."""
        value = self._value
        return self._store.read(self) if value is None else value

    def leave_memory(self, file: str) -> None:
        """Record that the value is in a file; see the notes for the order."""
        self.file = file
        if self.reference is not None:
            self.reference.file = file
        self._value = None


class _Reference(weakref.ref[StoredValue]):
    """A weak reference that keeps the size and file of a value that has been dropped."""

    __slots__ = ("file", "size")

    def __init__(
        self, stored: StoredValue, on_drop: Callable[[weakref.ref[StoredValue]], None]
    ) -> None:
        self.size = stored.size
        self.file: str | None = None

    def __new__(
        cls, stored: StoredValue, on_drop: Callable[[weakref.ref[StoredValue]], None]
    ) -> _Reference:
        return super().__new__(cls, stored, on_drop)


class SpillStore:
    """Values in memory up to a limit, the others on disk.

    Parameters
    ----------
    limit : int
        How many bytes of values there may be in memory.
    directory : Path
        The directory of the files of the others. It exists only while it is needed.

    Notes
    -----
    Any number of threads may use it; a lock protects its counters. The thread that drops the last
    reference to a value may hold this lock, or any other, and it may be interrupted at any point.
    So it only appends to a deque, which is one step in C; the next thread that takes the lock
    updates the counters and removes the file.
    """

    def __init__(self, limit: int, directory: Path) -> None:
        self._limit = limit
        self._directory = directory
        self._disk: File | None = None
        self._lock = threading.Lock()
        #: The values in memory, the oldest first; some of them may have been dropped.
        self._in_memory: deque[_Reference] = deque()
        self._last_file_number = 0
        self._count = 0
        self._memory_bytes = 0
        self._disk_bytes = 0
        #: References to dropped values that the counters still include.
        self._dropped: deque[weakref.ref[StoredValue]] = deque()

    def keep(self, key: Any, value: Value) -> StoredValue:
        """Store a value; if memory is full, the oldest values go to disk before this returns.

        Parameters
        ----------
        key : object
            See `StoredValue`.
        value : Value
            The value.

        Raises
        ------
        OSError
            The disk is full, too, or cannot be written.
        """
        stored = StoredValue(self, key, value)
        with self._lock:
            stored.reference = _Reference(stored, self._dropped.append)
            self._in_memory.append(stored.reference)
            self._count += 1
            self._memory_bytes += stored.size
            if self._memory_bytes > self._limit or len(self._dropped) > _MAX_DEAD_REFERENCES:
                self._make_room()
        return stored

    def sweep(self) -> None:
        """Remove the files of dropped values."""
        if self._dropped and self._disk is not None:
            with self._lock:
                self._remove_dropped()

    def _make_room(self) -> None:
        """Write the oldest values to disk until the others fit; with the lock held."""
        self._remove_dropped()
        while self._memory_bytes > self._limit and self._in_memory:
            stored = self._in_memory.popleft()()
            if stored is None:
                continue
            try:
                self._write(stored)
            except OSError:
                assert stored.reference is not None
                self._in_memory.appendleft(stored.reference)
                raise
            self._memory_bytes -= stored.size
            self._disk_bytes += stored.size

    def _remove_dropped(self) -> None:
        """Subtract dropped values from the counters, and remove their files; with the lock held."""
        while self._dropped:
            reference = self._dropped.popleft()
            assert isinstance(reference, _Reference)
            self._count -= 1
            if reference.file is None:
                self._memory_bytes -= reference.size
            else:
                self._disk_bytes -= reference.size
                if self._disk is not None:
                    self._disk.pop(reference.file, None)
        if len(self._in_memory) > 2 * self._count + _MAX_DEAD_REFERENCES:
            self._in_memory = deque(each for each in self._in_memory if each() is not None)

    def _write(self, stored: StoredValue) -> None:
        """Write a value to a file: the number and sizes of its buffers, then the buffers."""
        if self._disk is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._disk = File(self._directory)
        value = stored.value
        buffers = value if isinstance(value, tuple) else (value,)
        views = [memoryview(content_of(each)).cast("B") for each in buffers]
        has_buffers = isinstance(value, tuple)
        header = _COUNT.pack(len(views) if has_buffers else 0)
        header += b"".join(_SIZE.pack(each.nbytes) for each in views if has_buffers)
        self._last_file_number += 1
        file = str(self._last_file_number)
        try:
            self._disk[file] = [header, *views]
        except BaseException:
            # The part that was written must not take the space of other values.
            for unfinished in self._directory.glob(f"{file}#*"):
                unfinished.unlink(missing_ok=True)
            raise
        stored.leave_memory(file)

    def read(self, stored: StoredValue) -> Value:
        """Read a value that is on disk."""
        self.sweep()
        assert self._disk is not None
        assert stored.file is not None
        data = memoryview(self._disk[stored.file])
        (count,) = _COUNT.unpack_from(data)
        start = _COUNT.size + count * _SIZE.size
        if not count:
            return bytes(data[start:])
        parts = []
        for position in range(count):
            (size,) = _SIZE.unpack_from(data, _COUNT.size + position * _SIZE.size)
            parts.append(independent_part(data, start, size))
            start += size
        return tuple(parts)

    def sizes(self) -> tuple[int, int]:
        """Return the bytes of values in memory, and on disk."""
        with self._lock:
            self._remove_dropped()
            return self._memory_bytes, self._disk_bytes

    def tidy(self) -> None:
        """Remove the files of dropped values, and the directory if it is empty then."""
        with self._lock:
            self._remove_dropped()
            if self._disk is not None and not len(self._disk):
                self._disk = None
                with contextlib.suppress(OSError):
                    self._directory.rmdir()
