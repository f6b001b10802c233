"""Captures what a task writes to stdout and stderr, even if several tasks run in one process.

A context variable says where the writes of this thread, or of this coroutine, go. A thread that
a task starts does not have its context, so `threading.Thread.start` notes whose thread it is, as
long as the task runs. A process that a task forks writes to a `StreamFile` of the task. Any number
of threads may capture at the same time.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
import threading
import weakref
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, TextIO

from daskbatch.forking import make_lock
from daskbatch.worker.execution.ranked_text import RankedText
from daskbatch.worker.execution.stream_file import ForkedSink, StreamFile

#: A longer line of a rank is passed on before its end.
_MAX_LINE_BYTES = 1 << 16


class BoundedText:
    """What a task has written to one stream: all of it, or its head and its tail.

    Several threads may use it: those that a task starts write to the same text.

    Parameters
    ----------
    limit : int
        How many bytes of UTF-8 are kept.
    """

    __slots__ = ("_head", "_limit", "_lock", "_merged", "_ranks", "_tail", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget all that was written."""
        with self._lock:
            self._head = bytearray()
            self._tail = bytearray()
            self._ranks: Sequence[BoundedText] = ()
            #: The lines of all ranks of a job, in the order in which they have arrived.
            self._merged: BoundedText | None = None
            self.size = 0

    def for_ranks(self, count: int) -> list[BoundedText]:
        """Return a text for each rank of a job; together they keep as much as this one."""
        self._merged = merged = BoundedText(self._limit)
        return [_RankText(self._limit // count, merged) for _ in range(count)]

    def since(self, position: int, most: int) -> tuple[int, bytes]:
        """Return what was written from a position on, as far as it is kept.

        Parameters
        ----------
        position : int
            The position in the stream; a negative one counts from the end. Bytes.
        most : int
            How many bytes to return at most.

        Returns
        -------
        (int, bytes)
            The position of the data, which is later than `position` if that part is not kept; and
            the data. For a job these are the lines of all ranks, as they have arrived.
        """
        if self._merged is not None:
            return self._merged.since(position, most)
        with self._lock:
            if position < 0:
                position = max(0, self.size + position)
            kept = len(self._head)
            if position >= kept and self.size > kept:
                start = self.size - len(self._tail)
                position = max(position, start)
                return position, bytes(self._tail[position - start : position - start + most])
            return position, bytes(self._head[position : position + most])

    def set_ranks(self, texts: Sequence[BoundedText]) -> None:
        """Have this text consist of those of the ranks of a job, which are complete."""
        self._ranks = texts
        self.size = sum(text.size for text in texts)

    def add(self, data: bytes) -> None:
        """Add UTF-8 data that was written."""
        with self._lock:
            self.size += len(data)
            if self.size <= self._limit:
                self._head += data
            else:
                self._add_beyond_limit(data)

    def _add_beyond_limit(self, data: bytes) -> None:
        half = self._limit // 2
        if len(self._head) > half or not self._tail:
            # The first data that does not fit: from here on the head is one half.
            self._head += data
            self._tail = self._head[half:]
            del self._head[half:]
        else:
            self._tail += data
        rest = self._limit - half
        if len(self._tail) > 2 * rest:
            del self._tail[: len(self._tail) - rest]

    def text(self) -> str:
        """Return the text, without the last newline; for a job a `RankedText`."""
        if self._ranks:
            return RankedText(text.text() + "\n" if text.size else "" for text in self._ranks)
        with self._lock:
            return self._text()

    def _text(self) -> str:
        if self.size <= self._limit:
            return self._head.decode("utf-8", "replace").removesuffix("\n")
        rest = self._limit - self._limit // 2
        # Without `final`, the decoder leaves out a character that is cut at the end.
        head = codecs.getincrementaldecoder("utf-8")("replace").decode(self._head)
        tail = self._tail[len(self._tail) - rest :]
        while tail and tail[0] & 0xC0 == 0x80:
            del tail[0]
        line = f"[daskbatch: {self.size - self._limit} bytes dropped, see daskbatch.output-limit]"
        return f"{head}\n{line}\n{tail.decode('utf-8', 'replace')}".removesuffix("\n")


class _RankText(BoundedText):
    """What one rank of a job has written; its lines are also added to those of all ranks.

    Parameters
    ----------
    limit : int
        How many bytes of UTF-8 are kept.
    merged : BoundedText
        The lines of all ranks.
    """

    __slots__ = ("_line", "_of_all")

    def __init__(self, limit: int, merged: BoundedText) -> None:
        super().__init__(limit)
        self._of_all = merged
        self._line = b""

    def add(self, data: bytes) -> None:
        """Add UTF-8 data that was written."""
        super().add(data)
        lines, newline, rest = data.rpartition(b"\n")
        if newline or len(self._line) > _MAX_LINE_BYTES:
            self._of_all.add(self._line + lines + newline)
            self._line = rest
        else:
            self._line += rest


class Capture:
    """The two streams of the task that runs in a context.

    One thread at a time uses it, the task's. The threads that a task starts only find out where
    they write, and ask for descriptors.

    Parameters
    ----------
    limit : int
        How many bytes of each stream are kept.

    Attributes
    ----------
    task_number : int
        Increases when a task ends, so that the threads of one task do not write for the next.
    closed : bool
        Whether nothing more is captured: contexts that were copied outlive the capture.
    """

    __slots__ = (
        "__weakref__",
        "_file_lock",
        "_open_files",
        "closed",
        "stderr",
        "stdout",
        "task_number",
    )

    def __init__(self, limit: int) -> None:
        self.stdout = BoundedText(limit)
        self.stderr = BoundedText(limit)
        self.task_number = 0
        self.closed = False
        #: The files of the streams whose descriptors were asked for, by "stdout" and "stderr".
        self._open_files: dict[str, StreamFile] = {}
        #: Held while these files are read: another thread may ask for what was written so far.
        self._file_lock = threading.Lock()

    def clear(self) -> None:
        """Forget all that was written."""
        with self._file_lock:
            for file in self._open_files.values():
                file.drain(None)
        self.stdout.clear()
        self.stderr.clear()

    def texts(self) -> tuple[str, str]:
        """Return the texts of stdout and stderr."""
        self._drain_files()
        return self.stdout.text(), self.stderr.text()

    def end_task(self) -> None:
        """Add what is not yet part of the texts; threads that still run no longer write here."""
        if type(sys.stdout) is not _Router or type(sys.stderr) is not _Router:
            self._flush_replaced()
        if self._open_files:
            self._drain_files()
        self.task_number += 1

    def _flush_replaced(self) -> None:
        """Flush the streams that the task has put in place of a router: they may write to it."""
        for stream in (sys.stdout, sys.stderr):
            if type(stream) is not _Router and stream is not None:
                with suppress(BaseException):
                    stream.flush()

    def _drain_files(self) -> None:
        with self._file_lock:
            for name, file in list(self._open_files.items()):
                file.drain(getattr(self, name))

    def add(self, name: str, data: bytes) -> None:
        """Add UTF-8 data that the task has written to a stream.

        Parameters
        ----------
        name : str
            "stdout" or "stderr".
        data : bytes
            The data.
        """
        sink = self.stdout if name == "stdout" else self.stderr
        if self._open_files and type(sink) is BoundedText and name in self._open_files:
            with self._file_lock:
                self._open_files[name].drain(sink)  # it was written before
        sink.add(data)

    def descriptor(self, name: str) -> int:
        """Return a descriptor; what any process writes to it is part of a stream.

        Parameters
        ----------
        name : str
            "stdout" or "stderr".
        """
        file = self._open_files.get(name)
        if file is None:
            file = self._open_files.setdefault(name, StreamFile())
        return file.number

    def since(self, name: str, position: int, most: int) -> tuple[int, bytes]:
        """Return what was written to a stream from a position on; see `BoundedText.since`.

        Any thread may call it.

        Parameters
        ----------
        name : str
            "stdout" or "stderr".
        position, most : int
            See `BoundedText.since`.
        """
        sink = self.stdout if name == "stdout" else self.stderr
        if type(sink) is not BoundedText:
            return position, b""
        file = self._open_files.get(name)
        if file is not None:
            # What the processes of the task have written becomes a part of the text now.
            with self._file_lock, suppress(OSError):
                if not self.closed:
                    file.drain(sink)
        return sink.since(position, most)

    def continue_in_fork(self) -> None:
        """Write to the files from now on, in a forked process, where no other process reads."""
        self.stdout = ForkedSink(self.descriptor("stdout"))  # type: ignore[assignment]
        self.stderr = ForkedSink(self.descriptor("stderr"))  # type: ignore[assignment]

    def close(self) -> None:
        """Capture nothing more, and close the descriptors."""
        self.end_task()
        with self._file_lock:
            self.closed = True
            for file in self._open_files.values():
                file.close()
            self._open_files.clear()


#: Where the writes of the current context go; None for where they go without capturing.
current_capture: ContextVar[Capture | None] = ContextVar("daskbatch_capture", default=None)

#: The attribute of a thread that a task has started: the task's capture, and the task's number.
_OWNER = "_daskbatch_capture"


#: Whether a thread begins with the context of the one that starts it: an option of Python 3.14.
_THREADS_INHERIT_CONTEXT = bool(getattr(sys.flags, "thread_inherit_context", False))


def find_capture() -> Capture | None:
    """Return where the writes of this thread go; None for where they go without capturing."""
    capture = current_capture.get()
    if capture is None or _THREADS_INHERIT_CONTEXT:
        owner = vars(threading.current_thread()).get(_OWNER)
        if owner is not None:
            started_by = owner[0]()
            if capture is None or capture is started_by:
                capture = started_by
                if capture is not None and capture.task_number != owner[1]:
                    return None
    return None if capture is None or capture.closed else capture


_start_thread = threading.Thread.start


def _start_thread_of_task(thread: threading.Thread) -> None:
    """Start a thread, and note which task it belongs to; in place of `Thread.start`."""
    capture = find_capture()
    if capture is not None:
        vars(thread)[_OWNER] = weakref.ref(capture), capture.task_number
    _start_thread(thread)


def _before_fork() -> None:
    capture = find_capture()
    if capture is not None:
        capture.descriptor("stdout")
        capture.descriptor("stderr")


def _after_fork_in_child() -> None:
    capture = find_capture()
    if capture is not None:
        capture.continue_in_fork()


@contextmanager
def capturing(limit: int) -> Iterator[Capture]:
    """Route what this context writes to a new `Capture`.

    Parameters
    ----------
    limit : int
        How many bytes of each stream are kept.
    """
    capture = Capture(limit)
    token = current_capture.set(capture)
    _install()
    try:
        yield capture
    finally:
        try:
            capture.close()
        finally:
            _uninstall()
            current_capture.reset(token)


class _BinaryRouter(io.BufferedIOBase):
    """Replaces the `buffer` of sys.stdout or sys.stderr: what is written there is output, too."""

    mode = "wb"

    def __init__(self, text: _Router) -> None:
        self._text = text

    @property
    def name(self) -> str:
        return self._text.name

    @property
    def raw(self) -> _BinaryRouter:
        return self

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if isinstance(data, str):
            raise TypeError("a bytes-like object is required, not 'str'")
        capture = find_capture()
        if capture is None:
            return int(self._text.original.buffer.write(data))
        content = bytes(memoryview(data))
        capture.add(self._text.stream, content)
        return len(content)

    def fileno(self) -> int:
        return self._text.fileno()

    def isatty(self) -> bool:
        return self._text.isatty()

    def flush(self) -> None:
        self._text.flush()

    def close(self) -> None:
        # A task that closes its stdout, or a wrapper around it, must not close the worker's.
        pass


class _Router(io.TextIOBase):
    """Replaces sys.stdout or sys.stderr, and asks the context where a write belongs."""

    mode = "w"
    write_through = False

    def __init__(self, stream: str) -> None:
        self.stream = stream
        self.name = f"<{stream}>"
        self.original: TextIO = getattr(sys, stream)
        self.buffer = _BinaryRouter(self)

    def __getattr__(self, name: str) -> Any:
        # What this class does not define is as the original has it: a notebook's, for example.
        if name == "original":  # this object is not complete
            raise AttributeError(name)
        return getattr(self.original, name)

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        capture = find_capture()
        if capture is None:
            return self.original.write(text)
        capture.add(self.stream, text.encode("utf-8", "backslashreplace"))
        return len(text)

    @property
    def line_buffering(self) -> bool:
        # What a task writes is kept at once.
        return find_capture() is not None or bool(getattr(self.original, "line_buffering", True))

    def detach(self) -> Any:
        # The task may wrap what this returns; the stream itself must stay as it is.
        return self.buffer

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        # Python flushes a stream when it is collected; the original may be closed by then.
        if find_capture() is None and not getattr(self.original, "closed", False):
            self.original.flush()

    def isatty(self) -> bool:
        return find_capture() is None and self.original.isatty()

    def fileno(self) -> int:
        capture = find_capture()
        return self.original.fileno() if capture is None else capture.descriptor(self.stream)

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8" if find_capture() is not None else self.original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.original.errors

    def reconfigure(self, **options: Any) -> None:
        # What a task writes is always kept as UTF-8: there is nothing to configure.
        if find_capture() is None:
            self.original.reconfigure(**options)  # type: ignore[attr-defined]

    def close(self) -> None:
        # A task that closes its stdout must not close the worker's.
        pass


_lock = make_lock()
#: The number of blocks that capture now.
_users = 0
#: By "stdout" and "stderr".
_routers: dict[str, _Router] = {}
#: Holds an entry once `Thread.start` is replaced.
_patched: list[bool] = []


def _install() -> None:
    """Replace stdout and stderr of this process, unless another block has done so."""
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        if not _patched:
            # For good: another library may replace the method, too, and call this one.
            _patched.append(True)
            threading.Thread.start = _start_thread_of_task  # type: ignore[assignment,method-assign]
            os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
        changes: list[tuple[Any, Any]] = []
        # stderr first: it is the one that log handlers use, if both are the same stream.
        for name in ("stderr", "stdout"):
            stream = getattr(sys, name)
            if isinstance(stream, _Router) or stream is None:
                continue
            router = _routers.get(name)
            if router is None:
                router = _routers[name] = _Router(name)
            router.original = stream
            setattr(sys, name, router)
            changes.append((stream, router))
        _redirect_handlers(changes)


def _uninstall() -> None:
    """Restore stdout and stderr when the last block that captures ends."""
    global _users
    with _lock:
        _users -= 1
        if _users:
            return
        for name, router in _routers.items():
            # A task may have set another stream meanwhile: then that stays.
            if getattr(sys, name) is router:
                setattr(sys, name, router.original)
        _redirect_handlers([(router, router.original) for router in _routers.values()])


def _redirect_handlers(changes: Sequence[tuple[Any, Any]]) -> None:
    """Make all log handlers that write to one stream write to another.

    Parameters
    ----------
    changes : sequence of (stream, stream)
        The former streams, each with the one that replaces it. Of two for one former stream, the
        first counts.
    """
    # All loggers are looked through for each block, so this is quick: most have no handlers.
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        handlers = getattr(logger, "handlers", None)
        if not handlers:
            continue
        for handler in handlers:
            if isinstance(handler, logging.StreamHandler):
                for former, stream in changes:
                    if handler.stream is former:
                        handler.setStream(stream)
                        break
