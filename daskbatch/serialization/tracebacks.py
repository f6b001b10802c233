"""Formats tracebacks so that they show the user's own code, with its source lines.

Frames of daskbatch and of what it uses to call a function are left out; exceptions, notes and
groups are shown as Python shows them. Any thread may call `user_traceback`, which raises nothing
of the exceptions that it shows.
"""

from __future__ import annotations

import os
import traceback
from types import TracebackType

import cloudpickle

from daskbatch.serialization.safe_text import guarded, plain_traceback
from daskbatch.serialization.sources import sources_shown

#: The directories of daskbatch and of the package that makes functions of pickles.
_HIDDEN = (
    os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep,
    os.path.dirname(os.path.abspath(cloudpickle.__file__)) + os.sep,
)

#: The frames that run a coroutine function stand before the user's frames, and are hidden there.
# Not by its module: a child starts faster without asyncio.
_RUNS_COROUTINES = os.path.join(os.path.dirname(os.path.abspath(os.__file__)), "asyncio", "")


def user_traceback(error: BaseException, start: TracebackType | None) -> str:
    """Return an exception with the user's frames of its traceback, as Python shows it.

    Parameters
    ----------
    error : BaseException
        The exception, with its cause or context, its notes, and the members of a group.
    start : traceback, optional
        The first frame to show of the exception itself.
    """

    def format_user_frames() -> str:
        with sources_shown(error):
            shown = traceback.TracebackException(type(error), error, start, compact=True)
            _hide_frames(shown, set())
            return "".join(shown.format())

    return guarded(format_user_frames, lambda failure: plain_traceback(error, start, failure))


def is_hidden(filename: str) -> bool:
    """Return whether frames of a source file are not shown."""
    return filename.startswith(_HIDDEN)


def _hide_frames(shown: traceback.TracebackException, seen: set[int]) -> None:
    """Leave out the frames that are not the user's, in all exceptions that are shown together."""
    pending = [shown]
    while pending:
        each = pending.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if each.stack:
            frames = [frame for frame in each.stack if not is_hidden(frame.filename)]
            first = next(
                (n for n, frame in enumerate(frames) if not _runs_coroutines(frame.filename)), 0
            )
            # Without any frame, Python would still write the line above the frames.
            each.stack[:] = map(_with_columns, frames[first:])
            if not each.stack:
                each.stack = None  # type: ignore[assignment]
        pending += [other for other in (each.__cause__, each.__context__) if other is not None]
        pending += each.exceptions or ()


def _with_columns(frame: traceback.FrameSummary) -> traceback.FrameSummary:
    """Say at which columns a frame is, where no source line can be shown.

    Python reads a program that arrives through a pipe once, and keeps no line of it.
    """
    if frame.filename != "<stdin>" or frame.line or frame.colno is None or frame.lineno is None:
        return frame
    end = frame.end_colno if frame.end_lineno == frame.lineno else None
    # Python counts columns from 0, and the end is behind the last one; editors count from 1.
    columns = f"column {frame.colno + 1}" + (f" to {end}" if end else "")
    text = f"[{columns}; Python cannot read a pipe again to show the line]"
    return traceback.FrameSummary(frame.filename, frame.lineno, frame.name, line=text)


def _runs_coroutines(filename: str) -> bool:
    return filename.startswith(_RUNS_COROUTINES)
