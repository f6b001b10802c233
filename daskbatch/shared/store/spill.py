"""Keeps values in memory, and those that there is no room for on disk.

Does not know keys. A value is there as long as somebody has its slot; it never changes, and
what has gone to disk is read from there.
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

from daskbatch.shared.data.codec import Value, part_of, size_of

_COUNT = struct.Struct("=I")
_LENGTH = struct.Struct("=q")

#: Slots that are gone are dropped from the line when there are so many more than those there.
_SLACK = 10_000


class StoredValue:
    """What keeps a value; it goes with the last one who has it.

    Parameters
    ----------
    vault : SpillStore
        Where it is.
    key : object
        What the value belongs to, as it is sent.
    value : Value
        The value.
    """

    __slots__ = ("__weakref__", "_value", "_vault", "file", "key", "own", "size", "trace")

    def __init__(self, vault: SpillStore, key: Any, value: Value) -> None:
        self._vault = vault
        self._value: Value | None = value
        self.key = key
        #: The key itself, as it is in the mapping that this is in, if it is in one.
        self.own: Any = None
        self.file: str | None = None
        self.size = size_of(value)
        #: What stays of it for a moment, once it is gone.
        self.trace: _Trace | None = None

    @property
    def value(self) -> Value:
        """The value, from wherever it is."""
        value = self._value
        return self._vault.read(self) if value is None else value

    def leave_memory(self, file: str) -> None:
        """Be on disk from here on."""
        self.file = file
        if self.trace is not None:
            self.trace.file = file
        self._value = None


class _Trace(weakref.ref[StoredValue]):
    """What a vault knows of a slot, also when that is gone."""

    __slots__ = ("file", "size")

    def __init__(self, slot: StoredValue, gone: Callable[[weakref.ref[StoredValue]], None]) -> None:
        self.size = slot.size
        self.file: str | None = None

    def __new__(cls, slot: StoredValue, gone: Callable[[weakref.ref[StoredValue]], None]) -> _Trace:
        return super().__new__(cls, slot, gone)


class SpillStore:
    """Values in memory up to a limit, the others on disk.

    Parameters
    ----------
    limit : int
        How much there may be in memory. Bytes.
    directory : Path
        Where the others go; it is there as long as there are some.
    """

    def __init__(self, limit: int, directory: Path) -> None:
        self._limit = limit
        self._directory = directory
        self._disk: File | None = None
        self._lock = threading.Lock()
        #: In the order in which they came.
        self._line: deque[_Trace] = deque()
        self._number = 0
        self._count = 0
        self._memory = 0
        self._spilled = 0
        #: Slots that are gone. It is told in whatever thread lets go of the last one, which may
        #: hold anything, and may be stopped: by what is in C, and so is done or not.
        self._gone: deque[weakref.ref[StoredValue]] = deque()

    def keep(self, key: Any, value: Value) -> StoredValue:
        """Keep a value; if there is no room, others go to disk before this returns.

        Raises
        ------
        OSError
            There is no room on disk either.
        """
        slot = StoredValue(self, key, value)
        with self._lock:
            slot.trace = _Trace(slot, self._gone.append)
            self._line.append(slot.trace)
            self._count += 1
            self._memory += slot.size
            if self._memory > self._limit or len(self._gone) > _SLACK:
                self._make_room()
        return slot

    def sweep(self) -> None:
        """Remove from the disk what nobody has any more."""
        if self._gone and self._disk is not None:
            with self._lock:
                self._settle()

    def _make_room(self) -> None:
        self._settle()
        while self._memory > self._limit and self._line:
            slot = self._line.popleft()()
            if slot is None:
                continue
            try:
                self._write(slot)
            except OSError:
                assert slot.trace is not None
                self._line.appendleft(slot.trace)
                raise
            self._memory -= slot.size
            self._spilled += slot.size

    def _settle(self) -> None:
        """Take in which slots are gone."""
        while self._gone:
            trace = self._gone.popleft()
            assert isinstance(trace, _Trace)
            self._count -= 1
            if trace.file is None:
                self._memory -= trace.size
            else:
                self._spilled -= trace.size
                if self._disk is not None:
                    self._disk.pop(trace.file, None)
        if len(self._line) > 2 * self._count + _SLACK:
            self._line = deque(each for each in self._line if each() is not None)

    def _write(self, slot: StoredValue) -> None:
        if self._disk is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._disk = File(self._directory)
        value = slot.value
        parts = value if isinstance(value, tuple) else (value,)
        views = [memoryview(each).cast("B") for each in parts]
        apart = isinstance(value, tuple)
        head = _COUNT.pack(len(views) if apart else 0)
        head += b"".join(_LENGTH.pack(each.nbytes) for each in views if apart)
        self._number += 1
        file = str(self._number)
        self._disk[file] = [head, *views]
        slot.leave_memory(file)

    def read(self, slot: StoredValue) -> Value:
        """Read what is on disk."""
        self.sweep()
        assert self._disk is not None
        assert slot.file is not None
        data = memoryview(self._disk[slot.file])
        (count,) = _COUNT.unpack_from(data)
        start = _COUNT.size + count * _LENGTH.size
        if not count:
            return bytes(data[start:])
        parts = []
        for position in range(count):
            (length,) = _LENGTH.unpack_from(data, _COUNT.size + position * _LENGTH.size)
            parts.append(part_of(data, start, length))
            start += length
        return tuple(parts)

    def sizes(self) -> tuple[int, int]:
        """Say how much there is in memory, and how much on disk. Bytes."""
        with self._lock:
            self._settle()
            return self._memory, self._spilled

    def tidy(self) -> None:
        """Remove what nobody has any more, and the directory if there is nothing left."""
        with self._lock:
            self._settle()
            if self._disk is not None and not len(self._disk):
                self._disk = None
                with contextlib.suppress(OSError):
                    self._directory.rmdir()
