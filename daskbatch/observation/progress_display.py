"""Shows progress: as one line of a terminal, as few plain lines, or below a notebook's cell.

In a terminal tqdm draws the line, where it is installed (extra ``progress``). A display is used by
one thread at a time; `Terminal` sees to that for what other threads write.
"""

from __future__ import annotations

import contextlib
import html
import importlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from shutil import get_terminal_size
from time import monotonic
from typing import Any, Protocol, TextIO

from daskbatch.observation.progress_counts import (
    ProgressCounts,
    describe_counts,
    describe_progress,
    describe_time,
    shown_name,
)

#: The intervals between plain lines: the first, by which factor the next is longer, the longest.
_FIRST_LINE_SECONDS, _LINE_FACTOR, _MAX_LINE_SECONDS = 2.0, 2.0, 300.0

_CLEAR_LINE = "\r\x1b[K"

_BAR_CELLS = 20


class ProgressDisplay(Protocol):
    """Where progress is shown. Used by one thread at a time."""

    def show(self, counts: ProgressCounts, seconds: float, remaining: float | None) -> None:
        """Show how far the tasks are; see `describe_progress`."""

    def close(self) -> None:
        """Leave the last state where it is."""


def make_display(name: str, total: int) -> ProgressDisplay:
    """Return the display that fits where this process shows what it writes to stderr.

    Parameters
    ----------
    name : str
        The name of what is going on.
    total : int
        The number of tasks.
    """
    shell = _notebook_shell()
    if shell is not None:
        return NotebookBar(name)
    stream = sys.stderr
    if stream is None:
        return NoDisplay()
    try:
        is_terminal = stream.isatty() and os.environ.get("TERM") != "dumb"
    except Exception:
        is_terminal = False
    if not is_terminal:
        return PlainLines(name, stream)
    tqdm = _import_tqdm()
    return Terminal(stream, lambda s: TqdmBar(name, total, s, tqdm) if tqdm else PlainBar(name, s))


def _notebook_shell() -> Any:
    """Return the shell of IPython, if it runs in a notebook."""
    get_shell = getattr(sys.modules.get("IPython"), "get_ipython", None)
    shell = None if get_shell is None else get_shell()
    return shell if hasattr(shell, "kernel") else None


def _import_tqdm() -> Any:
    try:
        return importlib.import_module("tqdm").tqdm
    except Exception:  # it is not there, or it is broken
        return None


class NoDisplay:
    """Shows nothing: this process has no stderr."""

    def show(self, counts: ProgressCounts, seconds: float, remaining: float | None) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class PlainLines:
    """A line from time to time, for a stream that is not a terminal.

    Parameters
    ----------
    name : str
        The name of what is going on.
    stream : text file
        Where the lines go.
    """

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = shown_name(name)
        self._stream = stream
        self._interval = _FIRST_LINE_SECONDS
        self._next = _FIRST_LINE_SECONDS
        self._last = ""

    def show(self, counts: ProgressCounts, seconds: float, remaining: float | None) -> None:
        """Write a line, if the last one was long ago."""
        self._last = describe_progress(counts, seconds, remaining)
        if seconds >= self._next:
            self._interval = min(self._interval * _LINE_FACTOR, _MAX_LINE_SECONDS)
            self._next = seconds + self._interval
            self._write()

    def _write(self) -> None:
        self._stream.write(f"{self._name}: {self._last}\n")
        self._stream.flush()
        self._last = ""

    def close(self) -> None:
        """Write the last state."""
        if self._last:
            self._write()


class TerminalBar(Protocol):
    """A line of a terminal. Used by one thread at a time."""

    def draw(self, counts: ProgressCounts, seconds: float, remaining: float | None) -> None:
        """Draw the line in place of the last one."""

    def clear(self) -> None:
        """Remove the line; the cursor is then at the beginning of its line."""

    def end(self) -> None:
        """Leave the line where it is, and go to the next one."""


class PlainBar:
    """A line that this module draws itself, where tqdm is not installed.

    Parameters
    ----------
    name : str
        The name of what is going on.
    stream : text file
        The terminal.
    """

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = shown_name(name)
        self._stream = stream

    def draw(self, counts: ProgressCounts, seconds: float, remaining: float | None) -> None:
        """Draw the line in place of the last one."""
        full = counts.over * _BAR_CELLS // max(1, counts.total)
        bar = "#" * full + "." * (_BAR_CELLS - full)
        text = f"{self._name} [{bar}] {describe_progress(counts, seconds, remaining)}"
        self._stream.write(_CLEAR_LINE + text[: _columns(self._stream)])
        self._stream.flush()

    def clear(self) -> None:
        """Remove the line."""
        self._stream.write(_CLEAR_LINE)

    def end(self) -> None:
        """Go to the next line."""
        self._stream.write("\n")
        self._stream.flush()


class TqdmBar:
    """A line that tqdm draws.

    Parameters
    ----------
    name : str
        The name of what is going on.
    total : int
        The number of tasks.
    stream : text file
        The terminal.
    tqdm : type
        The class of tqdm.
    """

    def __init__(self, name: str, total: int, stream: TextIO, tqdm: Any) -> None:
        self._stream = stream
        self._bar = tqdm(
            total=total,
            desc=shown_name(name),
            file=stream,
            ncols=_columns(stream),
            miniters=0,
            mininterval=0,
            leave=True,
            bar_format="{desc} |{bar}| {n_fmt}/{total_fmt}{postfix}",
        )

    def draw(self, counts: ProgressCounts, seconds: float, remaining: float | None) -> None:
        """Draw the line in place of the last one."""
        parts = [*describe_counts(counts), f"{describe_time(seconds)} elapsed"]
        if remaining is not None and counts.over < counts.total:
            parts.append(f"about {describe_time(remaining)} left")
        self._bar.n = counts.over
        self._bar.ncols = _columns(self._stream)
        self._bar.set_postfix_str(", ".join(parts), refresh=False)
        self._bar.refresh()

    def clear(self) -> None:
        """Remove the line."""
        self._bar.clear()

    def end(self) -> None:
        """Go to the next line."""
        self._bar.close()


class Terminal:
    """A line at the bottom of a terminal, above which everything else is written.

    While it is there, `sys.stdout`, `sys.stderr` and the handlers of the logging module write
    through it. Any thread may write; one thread at a time shows progress.

    Parameters
    ----------
    stream : text file
        The terminal.
    make_bar : callable
        Makes the `TerminalBar` of a stream.
    """

    def __init__(self, stream: TextIO, make_bar: Callable[[TextIO], TerminalBar]) -> None:
        self._lock = threading.RLock()
        self._is_drawn = False
        #: Whether what was written last has not ended its line: then the bar waits.
        self._is_in_line = False
        self._bar = make_bar(stream)
        self._replaced: list[tuple[str, Any, _Above]] = []
        for name in ("stderr", "stdout"):
            original = getattr(sys, name)
            if original is not None and _is_terminal(original):
                above = _Above(original, self)
                self._replaced.append((name, original, above))
                setattr(sys, name, above)
                _redirect_handlers(original, above)

    def show(self, counts: ProgressCounts, seconds: float, remaining: float | None) -> None:
        """Draw the line."""
        with self._lock:
            if not self._is_in_line:
                self._bar.draw(counts, seconds, remaining)
                self._is_drawn = True

    def write(self, stream: TextIO, text: str) -> int:
        """Write a text above the line."""
        with self._lock:
            if self._is_drawn:
                self._bar.clear()
                self._is_drawn = False
            written = stream.write(text)
            if text:
                self._is_in_line = not text.endswith("\n")
            stream.flush()
            return written

    def close(self) -> None:
        """Leave the last state where it is, and have everything written as before."""
        with self._lock:
            for name, original, above in self._replaced:
                # The program may have set another stream meanwhile.
                if getattr(sys, name) is above:
                    setattr(sys, name, original)
                _redirect_handlers(above, original)
            self._replaced = []
            self._bar.end()


class _Above:
    """Stands for a stream of this process while a line is shown at the bottom of the terminal."""

    def __init__(self, stream: TextIO, terminal: Terminal) -> None:
        self._stream = stream
        self._terminal = terminal

    def write(self, text: str) -> int:
        return self._terminal.write(self._stream, text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _columns(stream: TextIO) -> int:
    """Return how long a line of a terminal can be, so that the cursor stays in it."""
    columns = 0
    with contextlib.suppress(OSError, ValueError, AttributeError):
        columns = os.get_terminal_size(stream.fileno()).columns
    # A terminal may not know its size.
    return (columns or get_terminal_size().columns) - 1


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except Exception:
        return False


def _redirect_handlers(former: Any, stream: Any) -> None:
    """Have all log handlers that write to one stream write to another one."""
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if isinstance(handler, logging.StreamHandler) and handler.stream is former:
                handler.setStream(stream)


class NotebookBar:
    """A bar below the cell of a notebook, which needs no extension of the notebook.

    Parameters
    ----------
    name : str
        The name of what is going on.
    """

    def __init__(self, name: str) -> None:
        self._name = html.escape(shown_name(name))
        self._handle: Any = None
        self._drawn_at = 0.0
        self._last = ""

    def show(self, counts: ProgressCounts, seconds: float, remaining: float | None) -> None:
        """Draw the bar in place of the last one, but not too often."""
        text = html.escape(describe_progress(counts, seconds, remaining))
        part = 100.0 * counts.over / max(1, counts.total)
        colour = "#c0392b" if counts.failed else "#2e86c1"
        self._last = (
            f'<div style="font-family:sans-serif;font-size:90%">{self._name}'
            '<div style="display:inline-block;width:14em;height:0.8em;margin:0 0.6em;'
            f'background:#ddd"><div style="width:{part:.1f}%;height:100%;background:{colour}">'
            f"</div></div>{text}</div>"
        )
        if monotonic() >= self._drawn_at + 0.5:
            self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML, display  # the process runs in IPython

        self._drawn_at = monotonic()
        if self._handle is None:
            self._handle = display(HTML(self._last), display_id=True)  # type: ignore[no-untyped-call]
        elif self._handle is not None:
            self._handle.update(HTML(self._last))  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Draw the last state."""
        if self._last:
            self._draw()
