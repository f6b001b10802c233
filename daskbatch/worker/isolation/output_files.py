"""Reads from files what a member in a child process has written to stdout and stderr.

The child reads the files when a member is over; its worker reads them when it has killed the
child. While a member writes far more than is kept, the worker frees the space of the middle of
the file. The thread of the block and the event loop may use it at the same time.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import struct
import sys

from daskbatch.worker.execution.capture import BoundedText, Capture
from daskbatch.worker.isolation.shared_claims import SharedClaims

#: A file is large when it takes more space than this many times the limit, plus spare bytes.
_LARGE_FACTOR, _SPARE_BYTES = 4, 1 << 20

#: How much is read with one system call.
_READ_BYTES = 1 << 20

#: The units in which a file's space is counted (`st_blocks`), and in which it is freed.
_SECTOR_BYTES, _PAGE_BYTES = 512, 1 << 12

#: Flags of fallocate(2): free the space; the file keeps its size.
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01

#: The fcntl command on macOS that does the same.
_F_PUNCHHOLE = 99

_libc = ctypes.CDLL(None)


class OutputFiles:
    """What the members of a block write in a child, as its worker sees it.

    Parameters
    ----------
    claims : SharedClaims
        Says where in the files the output of the running member begins.
    limit : int
        How many bytes of each stream are kept.
    """

    def __init__(self, claims: SharedClaims, limit: int) -> None:
        self._claims = claims
        self._limit = limit

    def are_large(self, files: tuple[int, int]) -> bool:
        """Return whether the files take far more space than what is kept needs."""
        space = _LARGE_FACTOR * self._limit + _SPARE_BYTES
        return any(
            os.fstat(file).st_blocks * _SECTOR_BYTES - start > space
            for file, start in zip(files, self._claims.output_starts, strict=True)
        )

    def shorten(self, files: tuple[int, int]) -> None:
        """Free the space between the head and the tail that are kept; with the claims locked."""
        for file, start in zip(files, self._claims.output_starts, strict=True):
            begin = start + self._limit + _PAGE_BYTES
            end = os.lseek(file, 0, os.SEEK_END) - self._limit
            begin, end = begin - begin % _PAGE_BYTES, end - end % _PAGE_BYTES
            if begin < end:
                _free_space(file, begin, end - begin)

    def since(
        self, files: tuple[int, int], stream: int, position: int, most: int
    ) -> tuple[int, bytes]:
        """Return what the running member has written to a stream; see `BoundedText.since`."""
        file, start = files[stream], self._claims.output_starts[stream]
        size = max(0, os.fstat(file).st_size - start)
        if position < 0:
            position = max(0, size + position)
        # What lies between the head and the tail may have been freed.
        if position > self._limit:
            position = max(position, size - self._limit)
        with contextlib.suppress(OSError):
            return position, os.pread(file, min(most, max(0, size - position)), start + position)
        return position, b""

    def texts(self, files: tuple[int, int]) -> tuple[str, str] | None:
        """Return the output of the member that ran last, if it has written anything."""
        capture = Capture(self._limit)
        streams = capture.stdout, capture.stderr
        for file, start, text in zip(files, self._claims.output_starts, streams, strict=True):
            add_output(file, start, text, self._limit)
        wrote = capture.stdout.size or capture.stderr.size
        return capture.texts() if wrote else None


def _free_space(file: int, begin: int, size: int) -> None:
    """Free the space of a part of a file; does nothing on a system that cannot do this."""
    with contextlib.suppress(OSError, AttributeError):
        if sys.platform == "darwin":
            fcntl.fcntl(file, _F_PUNCHHOLE, struct.pack("IIqq", 0, 0, begin, size))
        else:
            mode = _PUNCH_HOLE | _KEEP_SIZE
            _libc.fallocate(file, mode, ctypes.c_int64(begin), ctypes.c_int64(size))


def add_output(file: int, start: int, text: BoundedText, limit: int) -> int:
    """Add the contents of a file from `start` on to a text; return the file's size.

    Only the parts that the text keeps are read.

    Parameters
    ----------
    file : int
        The file's descriptor.
    start : int
        Where to begin.
    text : BoundedText
        The text to add to.
    limit : int
        How many bytes the text keeps.
    """
    end = os.lseek(file, 0, os.SEEK_END)
    if end - start > 2 * limit:
        if text.size <= limit:
            start += _add(file, start, start + limit, text)
        text.size += max(end - limit - start, 0)
        start = max(start, end - limit)
    _add(file, start, end, text)
    return end


def _add(file: int, start: int, end: int, text: BoundedText) -> int:
    """Add a part of a file to a text; return how many bytes could be read."""
    done = 0
    with contextlib.suppress(OSError):
        while start + done < end:
            data = os.pread(file, min(_READ_BYTES, end - start - done), start + done)
            if not data:
                break
            text.add(data)
            done += len(data)
    return done
