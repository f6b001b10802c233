"""Gives a captured stream a descriptor: a file, whose contents belong to the stream.

A task in a thread shares the descriptors 1 and 2 of its process with other tasks. So where a task
asks its `sys.stdout` for a descriptor, for example to pass it to `subprocess.run`, it receives the
one of a `StreamFile`. The thread of the task uses a `StreamFile`; the processes that the task
starts write to the file.
"""

from __future__ import annotations

import fcntl
import os
from typing import Protocol

from daskbatch.worker.isolation.unnamed_file import new_file, write_file

#: How much is read with one system call.
_READ_BYTES = 1 << 20


class ByteSink(Protocol):
    """Receives what was written to a stream."""

    def add(self, data: bytes) -> None:
        """Add data that was written."""


class StreamFile:
    """A file without a name, to which each write is appended, whichever process writes.

    Used by one thread at a time.

    Attributes
    ----------
    number : int
        The descriptor.
    """

    __slots__ = ("_read_bytes", "number")

    def __init__(self) -> None:
        self.number = new_file()
        flags = fcntl.fcntl(self.number, fcntl.F_GETFL)
        fcntl.fcntl(self.number, fcntl.F_SETFL, flags | os.O_APPEND)
        self._read_bytes = 0

    def drain(self, sink: ByteSink | None) -> None:
        """Move what was written since the last call to a sink; with None, drop it."""
        end = os.fstat(self.number).st_size
        while sink is not None and self._read_bytes < end:
            size = min(_READ_BYTES, end - self._read_bytes)
            data = os.pread(self.number, size, self._read_bytes)
            if not data:
                break
            sink.add(data)
            self._read_bytes += len(data)
        self._read_bytes = end
        # Nothing is lost by this, unless a process writes at this very moment.
        if end > _READ_BYTES and os.fstat(self.number).st_size == end:
            os.ftruncate(self.number, 0)
            self._read_bytes = 0

    def close(self) -> None:
        """Close the descriptor; processes that have a copy may go on writing to theirs."""
        os.close(self.number)


class ForkedSink:
    """Where a process that a task has forked writes: to the file, which its parent reads.

    Any thread may use it.

    Parameters
    ----------
    number : int
        The descriptor of a `StreamFile`.
    """

    __slots__ = ("_number",)

    size = 0

    def __init__(self, number: int) -> None:
        self._number = number

    def add(self, data: bytes) -> None:
        """Write data to the file."""
        write_file(self._number, data)
