"""Takes from files what a member in a child process has written to stdout and stderr.

Does not know when: the child does it when a member is over, its worker when it has killed the
child. Of what is too much for a file, the middle is let go of meanwhile: nobody would read it.
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

#: Files are too large when they hold so many times the limit, and so much more. Bytes.
_TIMES, _SPARE = 4, 1 << 20

_CHUNK = 1 << 20

#: What a file's room is counted and given back in. Bytes.
_SECTOR, _PAGE = 512, 1 << 12

#: Of fallocate(2): the rest of the file stays where it is.
_PUNCH_HOLE, _KEEP_SIZE = 0x02, 0x01

#: The same on macOS.
_F_PUNCHHOLE = 99

_libc = ctypes.CDLL(None)


class OutputFiles:
    """What a child's members write, as the worker sees it.

    Parameters
    ----------
    board : SharedClaims
        Says where the output of the member begins that runs.
    limit : int
        How many bytes of each stream are kept.
    """

    def __init__(self, board: SharedClaims, limit: int) -> None:
        self._board = board
        self._limit = limit

    def are_large(self, files: tuple[int, int]) -> bool:
        """Say whether the files take far more room than what is kept needs."""
        room = _TIMES * self._limit + _SPARE
        return any(
            os.fstat(file).st_blocks * _SECTOR - mark > room
            for file, mark in zip(files, self._board.marks, strict=True)
        )

    def shorten(self, files: tuple[int, int]) -> None:
        """Give back the room between what is kept of the files; with the board's lock held."""
        for file, mark in zip(files, self._board.marks, strict=True):
            begin = mark + self._limit + _PAGE
            end = os.lseek(file, 0, os.SEEK_END) - self._limit
            begin, end = begin - begin % _PAGE, end - end % _PAGE
            if begin < end:
                _punch(file, begin, end - begin)

    def so_far(self, files: tuple[int, int]) -> tuple[str, str] | None:
        """Give what the member has written that ran last, if anything."""
        capture = Capture(self._limit)
        streams = capture.stdout, capture.stderr
        for file, mark, text in zip(files, self._board.marks, streams, strict=True):
            add_output(file, mark, text, self._limit)
        wrote = capture.stdout.size or capture.stderr.size
        return capture.texts() if wrote else None


def _punch(file: int, begin: int, size: int) -> None:
    """Have a part of a file take no room; where this cannot be done, it goes on taking it."""
    with contextlib.suppress(OSError, AttributeError):
        if sys.platform == "darwin":
            fcntl.fcntl(file, _F_PUNCHHOLE, struct.pack("IIqq", 0, 0, begin, size))
        else:
            mode = _PUNCH_HOLE | _KEEP_SIZE
            _libc.fallocate(file, mode, ctypes.c_int64(begin), ctypes.c_int64(size))


def add_output(file: int, start: int, text: BoundedText, limit: int) -> int:
    """Add what a file holds from some place on; gives its size.

    No more is read than the text keeps.
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
    done = 0
    with contextlib.suppress(OSError):
        while start + done < end:
            data = os.pread(file, min(_CHUNK, end - start - done), start + done)
            if not data:
                break
            text.add(data)
            done += len(data)
    return done
