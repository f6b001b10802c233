"""Keeps events that are not formatted yet in a file, which survives a kill of its process.

A file is a header, with the number of records that have been formatted, and then records: each a
length and a pickle. The process that writes it holds a lock on it for as long as it lives.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pickle
import struct
from collections.abc import Iterator
from pathlib import Path

from daskbatch.records.event_lines import EndedLines, Lines, PlainLines, StartedLines

_FORMATTED, _LENGTH = struct.Struct("<Q"), struct.Struct("<I")

_KINDS: dict[str, type[Lines]] = {
    kind.__name__: kind for kind in (PlainLines, StartedLines, EndedLines)
}


class PendingFile:
    """Events of one run that are not formatted yet. Used by one thread at a time.

    Parameters
    ----------
    path : Path
        The file.
    is_new : bool
        Whether to make it; else the file of a process that was killed is opened.

    Raises
    ------
    BlockingIOError
        The process that writes it lives.
    """

    def __init__(self, path: Path, is_new: bool = True) -> None:
        self._path = path
        flags = os.O_CREAT | os.O_TRUNC if is_new else 0
        self._file = os.open(path, os.O_RDWR | flags, 0o666)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise
        except OSError:
            pass  # the file system has no locks
        #: The number of records that have been formatted.
        self._formatted = 0
        self._size = _FORMATTED.size
        if is_new:
            os.pwrite(self._file, _FORMATTED.pack(0), 0)

    def add(self, lines: Lines) -> None:
        """Append a record."""
        data = pickle.dumps((type(lines).__name__, tuple(lines)), 5)
        data = _LENGTH.pack(len(data)) + data
        done = 0
        while done < len(data):
            done += os.pwrite(self._file, memoryview(data)[done:], self._size + done)
        self._size += len(data)

    def mark_formatted(self) -> None:
        """Record that one more record has been formatted."""
        self._formatted += 1
        os.pwrite(self._file, _FORMATTED.pack(self._formatted), 0)

    def read(self) -> Iterator[Lines]:
        """Yield the records that have not been formatted; a part of a record at the end counts not.

        The caller calls `mark_formatted` for each.
        """
        data = os.pread(self._file, os.fstat(self._file).st_size, 0)
        if len(data) < _FORMATTED.size:
            return
        (self._formatted,) = _FORMATTED.unpack_from(data)
        start, number = _FORMATTED.size, 0
        before = self._formatted
        while start + _LENGTH.size <= len(data):
            end = start + _LENGTH.size + _LENGTH.unpack_from(data, start)[0]
            if end > len(data):
                return
            if number >= before:
                name, fields = pickle.loads(data[start + _LENGTH.size : end])
                yield _KINDS[name](*fields)
            start, number = end, number + 1

    def delete(self) -> None:
        """Delete the file."""
        with contextlib.suppress(OSError):
            self._path.unlink()
        os.close(self._file)
