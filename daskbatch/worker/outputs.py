"""Takes from files what a member in a child process has written to stdout and stderr.

Does not know when: the child does it when a member is over, its worker when it has killed
the child, or when there is more than what is kept in any case.
"""

from __future__ import annotations

import contextlib
import os

from daskbatch.worker.board import Board
from daskbatch.worker.capture import BoundedText, Capture

#: Files are too large when they hold so many times the limit, and so much more. Bytes.
_TIMES, _SPARE = 4, 1 << 20

_CHUNK = 1 << 20


class Outputs:
    """What a child's members write, as the worker sees it.

    Parameters
    ----------
    board : Board
        Says which member runs, and where its output begins.
    limit : int
        How many bytes of each stream are kept.
    """

    def __init__(self, board: Board, limit: int) -> None:
        self._board = board
        self._limit = limit
        #: What was taken before its end, of which attempt of which member.
        self._taken: tuple[int, int, Capture] | None = None

    def are_large(self, files: tuple[int, int]) -> bool:
        """Say whether the files hold far more than is kept."""
        room = _TIMES * self._limit + _SPARE
        marks = self._board.marks
        return any(
            os.fstat(file).st_size - mark > room for file, mark in zip(files, marks, strict=True)
        )

    def shorten(self, files: tuple[int, int]) -> None:
        """Take what there is of the member that runs, and empty the files; with the lock held."""
        now = self._board.running, self._board.attempt
        if self._taken is None or self._taken[:2] != now:
            self._taken = (*now, Capture(self._limit))
        self._add(files, self._taken[2])
        for file, mark in zip(files, self._board.marks, strict=True):
            os.ftruncate(file, mark)

    def so_far(self, files: tuple[int, int]) -> tuple[str, str] | None:
        """Give what the member has written that ran last, if anything."""
        now = self._board.running, self._board.attempt
        taken, self._taken = self._taken, None
        capture = Capture(self._limit)
        if taken is not None and taken[:2] == now:
            capture = taken[2]
        self._add(files, capture)
        wrote = capture.stdout.size or capture.stderr.size
        return capture.texts() if wrote else None

    def completed(
        self, member: int, attempt: int, output: tuple[str, str] | None
    ) -> tuple[str, str] | None:
        """Put together what a member has written, of which the child had only the rest."""
        if self._taken is None or self._taken[:2] != (member, attempt):
            return output
        capture, self._taken = self._taken[2], None
        for stream, text in zip((capture.stdout, capture.stderr), output or (), strict=False):
            stream.add(text.encode("utf-8", "replace"))
        return capture.texts()

    def _add(self, files: tuple[int, int], capture: Capture) -> None:
        streams = capture.stdout, capture.stderr
        for file, mark, text in zip(files, self._board.marks, streams, strict=True):
            add_output(file, mark, text, self._limit)


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
