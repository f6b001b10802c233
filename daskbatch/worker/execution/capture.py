"""Captures what a task writes to stdout and stderr, even if several tasks run in one process.

A context variable says where the writes of this thread, or of this coroutine, go. Threads that
a task starts itself do not have its context; what they write goes where it would go without
this module. Any number of threads may capture at the same time.
"""

from __future__ import annotations

import codecs
import io
import logging
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TextIO

from daskbatch.worker.execution.ranked_text import RankedText


class BoundedText:
    """What a task has written to one stream: all of it, or its head and its tail.

    Used by one thread at a time.

    Parameters
    ----------
    limit : int
        How many bytes of UTF-8 are kept.
    """

    __slots__ = ("_head", "_limit", "_ranks", "_tail", "size")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.clear()

    def clear(self) -> None:
        """Forget all that was written."""
        self._head = bytearray()
        self._tail = bytearray()
        self._ranks: Sequence[BoundedText] = ()
        self.size = 0

    def for_ranks(self, count: int) -> list[BoundedText]:
        """Return a text for each rank of a job; together they keep as much as this one."""
        return [BoundedText(self._limit // count) for _ in range(count)]

    def set_ranks(self, texts: Sequence[BoundedText]) -> None:
        """Have this text consist of those of the ranks of a job, which are complete."""
        self._ranks = texts
        self.size = sum(text.size for text in texts)

    def add(self, data: bytes) -> None:
        """Add UTF-8 data that was written."""
        self.size += len(data)
        if self.size <= self._limit:
            self._head += data
            return
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


class Capture:
    """The two streams of the task that runs in a context. Used by one thread at a time.

    Parameters
    ----------
    limit : int
        How many bytes of each stream are kept.
    """

    __slots__ = ("stderr", "stdout")

    def __init__(self, limit: int) -> None:
        self.stdout = BoundedText(limit)
        self.stderr = BoundedText(limit)

    def clear(self) -> None:
        """Forget all that was written."""
        self.stdout.clear()
        self.stderr.clear()

    def texts(self) -> tuple[str, str]:
        """Return the texts of stdout and stderr."""
        return self.stdout.text(), self.stderr.text()


#: Where the writes of the current context go; None for where they go without capturing.
current_capture: ContextVar[Capture | None] = ContextVar("daskbatch_capture", default=None)


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
        _uninstall()
        current_capture.reset(token)


class _BinaryRouter(io.RawIOBase):
    """Replaces the `buffer` of sys.stdout or sys.stderr: what is written there is output, too."""

    def __init__(self, text: _Router) -> None:
        self._text = text

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        sink = self._text.sink()
        if sink is None:
            return int(self._text.original.buffer.write(data))
        content = bytes(data)
        sink.add(content)
        return len(content)

    def flush(self) -> None:
        self._text.flush()


class _Router(io.TextIOBase):
    """Replaces sys.stdout or sys.stderr, and asks the context where a write belongs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.original: TextIO = getattr(sys, name)
        self.buffer = _BinaryRouter(self)

    def sink(self) -> BoundedText | None:
        capture = current_capture.get()
        return None if capture is None else getattr(capture, self.name)

    def write(self, text: str) -> int:
        sink = self.sink()
        if sink is None:
            return self.original.write(text)
        sink.add(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:  # type: ignore[override]
        for line in lines:
            self.write(line)

    def writable(self) -> bool:
        return True

    def flush(self) -> None:
        # Python flushes a stream when it is collected; the original may be closed by then.
        if current_capture.get() is None and not getattr(self.original, "closed", False):
            self.original.flush()

    def isatty(self) -> bool:
        return current_capture.get() is None and self.original.isatty()

    def fileno(self) -> int:
        return self.original.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8" if current_capture.get() is not None else self.original.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        return self.original.errors

    def reconfigure(self, **options: Any) -> None:
        # What a task writes is always kept as UTF-8: there is nothing to configure.
        if current_capture.get() is None:
            self.original.reconfigure(**options)  # type: ignore[attr-defined]

    def close(self) -> None:
        # A task that closes its stdout must not close the worker's.
        pass


_lock = threading.Lock()
#: The number of blocks that capture now.
_users = 0
#: By "stdout" and "stderr".
_routers: dict[str, _Router] = {}


def _install() -> None:
    """Replace stdout and stderr of this process, unless another block has done so."""
    global _users
    with _lock:
        _users += 1
        if _users > 1:
            return
        # stderr first: it is the one that log handlers use, if both are the same stream.
        for name in ("stderr", "stdout"):
            stream = getattr(sys, name)
            if isinstance(stream, _Router) or stream is None:
                continue
            router = _routers.setdefault(name, _Router(name))
            router.original = stream
            setattr(sys, name, router)
            _redirect_handlers(router, stream)


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
            _redirect_handlers(router.original, router)


def _redirect_handlers(stream: Any, former: Any) -> None:
    """Make all log handlers that write to the stream `former` write to `stream`."""
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is former:
                handler.setStream(stream)
