"""What members find in a child process: streams, a directory, an environment.

Does not know members. What they write to the streams goes to files, also where it is C code
or another process that writes; whatever they change is put back.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from typing import Any

from daskbatch.serialization.exceptions import unusable_path_error
from daskbatch.worker.execution.block import Limits
from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.isolation.output_files import add_output
from daskbatch.worker.isolation.shared_claims import SharedClaims

#: A file of output is emptied when it is larger than this, and nobody needs what it holds.
_LARGE = 1 << 20

_LINE_BUFFERED = 1

_libc = ctypes.CDLL(None)


class FileCapture(Capture):
    """The two streams of the member that runs, by way of the files that they are."""

    __slots__ = ("_board", "_ends", "_files", "_limit")

    def __init__(self, limit: int, files: tuple[int, int], board: SharedClaims) -> None:
        super().__init__(limit)
        self._limit = limit
        self._files = files
        self._board = board
        board.marks = self._ends = _ends_of(files)

    def collect(self) -> None:
        """Take what was written since the last time."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        _libc.fflush(None)
        ends = _ends_of(self._files)
        if ends == self._ends:
            return
        if max(ends) - min(self._ends) > 2 * self._limit:
            # The worker may be about to shorten it.
            with self._board.locked():
                self._take()
        else:
            self._take()

    def _take(self) -> None:
        ends = []
        for file, start, text in zip(
            self._files, self._board.marks, (self.stdout, self.stderr), strict=True
        ):
            end = add_output(file, start, text, self._limit)
            if end > _LARGE:
                os.ftruncate(file, 0)
                end = 0
            ends.append(end)
        self._board.marks = self._ends = (ends[0], ends[1])


def _ends_of(files: tuple[int, int]) -> tuple[int, int]:
    return os.lseek(files[0], 0, os.SEEK_END), os.lseek(files[1], 0, os.SEEK_END)


class ProcessState:
    """What members find: streams, a directory, an environment; and put back after each."""

    def __init__(self) -> None:
        #: The files that its stdout and stderr are.
        self.files = os.dup(1), os.dup(2)
        self.stdout, self.stderr = _text_stream(1), _text_stream(2)
        sys.stdout = sys.__stdout__ = self.stdout  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.stderr  # type: ignore[misc]
        # What is in the buffer of C's own stream when this is killed would be lost.
        with contextlib.suppress(ValueError, AttributeError):
            stream = ctypes.c_void_p.in_dll(_libc, "stdout")
            _libc.setvbuf(stream, None, _LINE_BUFFERED, ctypes.c_size_t(0))
        self._environment = dict(os.environ)
        self._raw = self._raw_environment()
        self._home: int | None = None
        with contextlib.suppress(OSError):
            self._home = os.open(".", os.O_RDONLY)

    @staticmethod
    def _raw_environment() -> dict[Any, Any]:
        # To compare that takes a fraction of what it takes to decode it all.
        return dict(getattr(os.environ, "_data", ()))

    def enter(self, limits: Limits, label: str) -> None:
        """Give a member a directory and an environment of its own, if it is to have any.

        Raises
        ------
        OSError
            The directory cannot be entered; says so of what messages call the member.
        """
        if limits.env:
            os.environ.update(limits.env)
        if limits.cwd is not None:
            try:
                os.chdir(limits.cwd)
            except OSError as error:
                raise unusable_path_error(f"task {label}: its cwd", error) from None

    def restore(self) -> None:
        """Undo what a member has done to them, whether it was told to or not."""
        for number, file in enumerate(self.files, 1):
            os.dup2(file, number)
        if sys.stdout is not self.stdout or self.stdout.closed:
            sys.stdout = self.stdout = self._reopened(self.stdout, 1)
        if sys.stderr is not self.stderr or self.stderr.closed:
            sys.stderr = self.stderr = self._reopened(self.stderr, 2)
        if self._home is not None:
            os.fchdir(self._home)
        if getattr(os.environ, "_data", None) != self._raw:
            for name in os.environ.keys() - self._environment.keys():
                del os.environ[name]
            os.environ.update(self._environment)
            self._raw = self._raw_environment()

    @staticmethod
    def _reopened(stream: io.TextIOWrapper, file: int) -> io.TextIOWrapper:
        return _text_stream(file) if stream.closed else stream


def _text_stream(file: int) -> io.TextIOWrapper:
    raw = io.FileIO(file, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
