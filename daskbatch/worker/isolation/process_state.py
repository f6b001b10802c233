"""Sets and restores what members may change in a child process: streams, directory, environment.

What members write to the streams goes to files, even if C code or another process writes it.
The main thread of the child calls it, before and after each member.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
from typing import Any

from daskbatch.serialization.exceptions import unusable_directory_error
from daskbatch.worker.execution.block import Limits
from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.isolation.output_files import add_output
from daskbatch.worker.isolation.process_settings import ProcessSettings
from daskbatch.worker.isolation.shared_claims import SharedClaims

#: A file of output that is larger than this is emptied after it was read.
_MAX_FILE_BYTES = 1 << 20

#: `_IOLBF` of setvbuf(3).
_LINE_BUFFERED = 1

_libc = ctypes.CDLL(None)


class FileCapture(Capture):
    """The two streams of the running member, read from the files that they are written to.

    Used by the main thread of a child.

    Parameters
    ----------
    limit : int
        How many bytes of each stream are kept.
    files : (int, int)
        The files of stdout and stderr.
    claims : SharedClaims
        Tells the worker where in the files the member's output begins.
    """

    __slots__ = ("_claims", "_ends", "_files", "_limit")

    def __init__(self, limit: int, files: tuple[int, int], claims: SharedClaims) -> None:
        super().__init__(limit)
        self._limit = limit
        self._files = files
        self._claims = claims
        claims.output_starts = self._ends = _ends_of(files)

    def collect(self) -> None:
        """Add what was written since the last call."""
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(BaseException):  # a member may have put any object there
                stream.flush()
        _libc.fflush(None)
        ends = _ends_of(self._files)
        if ends == self._ends:
            return
        if max(ends) - min(self._ends) > 2 * self._limit:
            # The worker may be about to shorten the file.
            with self._claims.locked():
                self._add_output()
        else:
            self._add_output()

    def _add_output(self) -> None:
        ends = []
        for file, start, text in zip(
            self._files, self._claims.output_starts, (self.stdout, self.stderr), strict=True
        ):
            end = add_output(file, start, text, self._limit)
            if end > _MAX_FILE_BYTES:
                os.ftruncate(file, 0)
                end = 0
            ends.append(end)
        self._claims.output_starts = self._ends = (ends[0], ends[1])


def _ends_of(files: tuple[int, int]) -> tuple[int, int]:
    return os.lseek(files[0], 0, os.SEEK_END), os.lseek(files[1], 0, os.SEEK_END)


class ProcessState:
    """The streams, the directory and the environment of this process, to be restored.

    Used by the main thread of a child.

    Attributes
    ----------
    files : (int, int)
        Duplicates of the descriptors of stdout and stderr.
    """

    def __init__(self) -> None:
        self.files = os.dup(1), os.dup(2)
        self._stats = [os.fstat(file) for file in self.files]
        self.stdout, self.stderr = _text_stream(1), _text_stream(2)
        sys.stdout = sys.__stdout__ = self.stdout  # type: ignore[misc]
        sys.stderr = sys.__stderr__ = self.stderr  # type: ignore[misc]
        # If this process is killed, what is in the buffer of C's stdout is lost: so it is written
        # after each line.
        with contextlib.suppress(ValueError, AttributeError):
            stream = ctypes.c_void_p.in_dll(_libc, "stdout")
            _libc.setvbuf(stream, None, _LINE_BUFFERED, ctypes.c_size_t(0))
        self.settings = ProcessSettings()
        self._environ = os.environ
        self.keep_environment()
        self._directory: int | None = None
        with contextlib.suppress(OSError):
            self._directory = os.open(".", os.O_RDONLY)

    def has_files(self) -> bool:
        """Return whether no member has closed `files`, whose numbers others may have by now."""
        try:
            return all(map(os.path.samestat, map(os.fstat, self.files), self._stats))
        except OSError:
            return False

    def keep_environment(self) -> None:
        """Keep the environment as it is now, for `restore`."""
        self._environment = dict(os.environ)
        self._raw_environment = _read_raw_environment()

    def enter(self, limits: Limits, label: str) -> None:
        """Set the directory and the environment that a member's limits name.

        Parameters
        ----------
        limits : Limits
            The limits.
        label : str
            What messages call the member.

        Raises
        ------
        OSError
            The directory cannot be entered; the message names the member.
        """
        if limits.env:
            os.environ.update(limits.env)
        if limits.cwd is not None:
            try:
                os.chdir(limits.cwd)
            except OSError as error:
                raise unusable_directory_error(f"task {label}: its cwd", error) from None

    def restore(self) -> None:
        """Undo what `enter` and the member have changed."""
        self.settings.restore()
        for number, file in enumerate(self.files, 1):
            os.dup2(file, number)
        if sys.stdout is not self.stdout or self.stdout.closed:
            sys.stdout = self.stdout = self._reopened(self.stdout, 1)
        if sys.stderr is not self.stderr or self.stderr.closed:
            sys.stderr = self.stderr = self._reopened(self.stderr, 2)
        if self._directory is not None:
            os.fchdir(self._directory)
        os.environ = self._environ  # a member may have put another object there  # noqa: B003
        if getattr(os.environ, "_data", None) != self._raw_environment:
            for name in os.environ.keys() - self._environment.keys():
                del os.environ[name]
            os.environ.update(self._environment)
            self._raw_environment = _read_raw_environment()

    @staticmethod
    def _reopened(stream: io.TextIOWrapper, file: int) -> io.TextIOWrapper:
        return _text_stream(file) if stream.closed else stream


def _read_raw_environment() -> dict[Any, Any]:
    # The encoded form: comparing it takes a fraction of the time that decoding all of it takes.
    return dict(getattr(os.environ, "_data", ()))


def _text_stream(file: int) -> io.TextIOWrapper:
    raw = io.FileIO(file, "w", closefd=False)
    raw.name = {1: "<stdout>", 2: "<stderr>"}[file]
    stream = io.TextIOWrapper(
        io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
    )
    stream.mode = "w"  # type: ignore[misc]
    return stream
