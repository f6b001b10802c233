"""Sends the source lines of functions that travel by value, so that tracebacks show them.

A function of `__main__`, of a notebook or of a program that Python reads from its standard input
has a source that the worker cannot read. Its lines travel with its code. `sources_shown` shows
them to Python's formatter, and only while a traceback is formatted: two clients may have sent
different sources for one file name, such as ``<stdin>``.

Any thread may call all functions.
"""

from __future__ import annotations

import contextlib
import linecache
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from operator import itemgetter
from types import CodeType, FrameType
from typing import Any, NamedTuple

from daskbatch.forking import make_lock
from daskbatch.serialization.safe_text import has_type

#: The source of a longer function does not travel.
_MAX_SOURCE_CHARACTERS = 64 * 1024

#: Held while the cache of source lines, which all threads share, has the lines of one traceback.
_cache_lock = make_lock()


class Source(NamedTuple):
    """The source lines of a code object.

    Parameters
    ----------
    first : int
        The number of the first line in its file.
    text : str
        The lines.
    """

    first: int
    text: str


#: The sources that have arrived, by the code that they belong to. Equal code has equal sources, and
#: may arrive several times. So these are kept, the last ones, and not weakly.
_received: dict[CodeType, Source] = {}
_MAX_RECEIVED = 10_000


def source_of(code: CodeType) -> Source | None:
    """Return the source of a code object of this process; None if it cannot be read here."""
    if code in _received:  # it came from another process, and travels on
        return _received[code]
    with contextlib.suppress(Exception):
        lines = linecache.getlines(code.co_filename) or _main_lines(code.co_filename)
        if not lines:
            return None
        last = max(map(_last_line, (code, *_nested(code))))
        text = "".join(lines[code.co_firstlineno - 1 : last])
        if text and len(text) <= _MAX_SOURCE_CHARACTERS:
            return Source(code.co_firstlineno, text)
    return None


def make_code(make: Any, arguments: tuple[Any, ...], first: int, text: str) -> CodeType:
    """Make a code object that has arrived with its source; pickles refer to this function.

    Parameters
    ----------
    make, arguments : callable, tuple
        What makes the code object.
    first, text
        See `Source`.
    """
    code: CodeType = make(*arguments)
    source = Source(first, text)
    if len(_received) > _MAX_RECEIVED:
        _received.clear()
    _received[code] = source
    for each in _nested(code):
        _received[each] = source
    return code


@contextmanager
def sources_shown(error: BaseException) -> Iterator[None]:
    """Show the sources that have arrived to `linecache`, for the body of a ``with`` statement.

    Parameters
    ----------
    error : BaseException
        The exception whose frames, and those of its causes and members, will be shown.
    """
    found = _sources_in(error) if _received else {}
    if not found:
        yield
        return
    with _cache_lock:
        before = {name: linecache.cache.get(name) for name in found}
        for name, sources in found.items():
            lines = _merged(sources, linecache.getlines(name))
            # Without a time of change, Python does not compare it with a file of this name.
            linecache.cache[name] = (sum(map(len, lines)), None, lines, name)
        try:
            yield
        finally:
            for name, entry in before.items():
                if entry is None:
                    linecache.cache.pop(name, None)
                else:
                    linecache.cache[name] = entry


def _sources_in(error: BaseException) -> dict[str, list[Source]]:
    """Return the sources that have arrived of the frames of an exception, by file name."""
    found: dict[str, list[Source]] = {}
    seen: set[int] = set()
    pending: list[BaseException | None] = [error]
    while pending:
        each = pending.pop()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        for frame in _frames(each):
            source = _received.get(frame.f_code)
            if source is not None:
                found.setdefault(frame.f_code.co_filename, []).append(source)
        pending += [each.__cause__, each.__context__]
        if has_type(each, BaseExceptionGroup):
            pending += each.exceptions
    return found


def _frames(error: BaseException) -> Iterator[FrameType]:
    trace = error.__traceback__
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _merged(sources: list[Source], file: list[str]) -> list[str]:
    """Return the lines of a file: those of the functions that have arrived, the others as here."""
    lines = list(file)
    for first, text in sources:
        some = text.splitlines(keepends=True)
        lines += ["\n"] * (first - 1 + len(some) - len(lines))
        lines[first - 1 : first - 1 + len(some)] = some
    return lines


def _nested(code: CodeType) -> Iterator[CodeType]:
    """Yield the code objects of the functions and classes within a function."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from _nested(constant)


#: The last line of a position.
_end_of = itemgetter(1)


def _last_line(code: CodeType) -> int:
    return max(filter(None, map(_end_of, code.co_positions())), default=0)


def _main_lines(filename: str) -> list[str]:
    """Return the program that Python was given by ``-c`` or on its standard input."""
    if filename == "<string>" and "-c" in sys.orig_argv:
        return _lines(sys.orig_argv[sys.orig_argv.index("-c") + 1])
    if filename == "<stdin>":
        return _stdin_lines()
    return []


@lru_cache(maxsize=1)
def _stdin_lines() -> list[str]:
    """Return the program on the standard input, if that is a file, which can be read again."""
    if not stat.S_ISREG(os.fstat(0).st_mode):
        return []
    size = os.fstat(0).st_size
    return _lines(os.pread(0, size, 0).decode("utf-8", "replace"))


def _lines(text: str) -> list[str]:
    return text.splitlines(keepends=True)
