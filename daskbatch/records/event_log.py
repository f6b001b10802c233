"""Appends events to `events.jsonl`, so that a kill at any moment leaves whole lines.

The kernel may end a write in the middle when the process is killed, but only at the boundary of
two pages (`generic_perform_write` in mm/filemap.c looks for a fatal signal between two pages). So
no line crosses such a boundary, unless it is longer than a page: spaces in front of its end fill
the rest of the page. Several processes may append to the same file: each locks it while it writes.

To format a line takes as long as a short task takes to run. So after many lines in a short time,
further ones are first written as they are, pickled, to a file beside it, and are formatted when
the program has come to rest. If the process is killed before, `complete` formats them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

from daskbatch.records.event_lines import Lines
from daskbatch.records.event_schema import EVENTS_FILE
from daskbatch.records.pending_events import PendingFile
from daskbatch.threads import Condition

_PAGE_BYTES = 4096

#: How many lines are formatted at once, and how many more each second.
_BURST_LINES, _LINES_PER_SECOND = 250, 1000

#: Pending events are formatted after this time without new ones, and at the latest after this time.
_REST_SECONDS = 0.25
_MAX_PENDING_SECONDS = 3.0

#: How the names of the files with pending events begin.
_PENDING = "events.pending-"


class EventLog:
    """The events of one run, appended to the file of a directory. Any thread may use it.

    It raises nothing once it is made: if the disk is full, `failure` says so, and the log ends. A
    forked child writes nothing.

    Parameters
    ----------
    directory : Path
        The directory; it is made if it is not there.
    run : str
        The run.

    Attributes
    ----------
    failure : OSError, optional
        Why nothing more is written.
    """

    def __init__(self, directory: Path, run: str) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        complete(directory)
        self.failure: OSError | None = None
        self._process = os.getpid()
        self._file = _open_log(directory)
        self._pending_path = directory / f"{_PENDING}{run}"
        self._pending: PendingFile | None = None
        #: What was written to the pending file, and is not formatted yet.
        self._waiting: deque[Lines] = deque()
        self._waiting_since = 0.0
        self._allowed = float(_BURST_LINES)
        self._added_at = monotonic()
        self._changed = Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def add(self, lines: Lines, count: int) -> None:
        """Append lines; once this returns, they survive a kill of this process.

        Parameters
        ----------
        lines : Lines
            The lines.
        count : int
            The number of lines.
        """
        if os.getpid() != self._process:
            return
        with self._changed:
            if self.failure is not None or self._closed:
                return
            try:
                if self._waiting or not self._allows(count):
                    self._postpone(lines)
                else:
                    append(self._file, lines.format().encode())
            except OSError as error:
                self.failure = error

    def _allows(self, count: int) -> bool:
        """Return whether so many lines may be formatted now."""
        now = monotonic()
        more = (now - self._added_at) * _LINES_PER_SECOND
        self._added_at = now
        self._allowed = min(_BURST_LINES, self._allowed + more)
        if count > max(1.0, self._allowed):
            return False
        self._allowed -= count
        return True

    def _postpone(self, lines: Lines) -> None:
        """Write lines to the pending file, and have a thread format them later."""
        if self._pending is None:
            self._pending = PendingFile(self._pending_path)
        self._pending.add(lines)
        self._added_at = monotonic()
        if not self._waiting:
            self._waiting_since = self._added_at
        self._waiting.append(lines)
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="daskbatch-events", daemon=True)
            with contextlib.suppress(RuntimeError):  # the interpreter ends: `close` formats all
                thread.start()
                self._thread = thread

    def _run(self) -> None:
        """Format what is pending, once the program has come to rest."""
        with self._changed:
            while self._waiting:
                due = self._added_at + _REST_SECONDS
                rest = min(due, self._waiting_since + _MAX_PENDING_SECONDS) - monotonic()
                if rest > 0 and not self._closed:
                    self._changed.wait(rest)
                else:
                    self._format_first()
            self._thread = None
            self._changed.notify_all()

    def _format_first(self) -> None:
        """Format the first of the pending lines; called by one thread at a time, with the lock."""
        lines = self._waiting[0]
        # Other threads may add lines meanwhile.
        self._changed.release()
        try:
            text = lines.format().encode()
        finally:
            self._changed.acquire()
        try:
            append(self._file, text)
            self._waiting.popleft()
            assert self._pending is not None
            self._pending.mark_formatted()
            if not self._waiting:
                self._pending.delete()
                self._pending = None
        except OSError as error:
            self.failure = error
            self._waiting.clear()

    def close(self) -> None:
        """Format what is pending, and close the files; nothing more is written."""
        if os.getpid() != self._process:
            return
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            while self._thread is not None and self._thread.is_alive():
                self._changed.wait(0.1)
            while self._waiting:  # no thread could be started
                self._format_first()
            os.close(self._file)


def _open_log(directory: Path) -> int:
    """Open the file of events, and drop the end of a line that another writer has left."""
    file = os.open(directory / EVENTS_FILE, os.O_CREAT | os.O_RDWR, 0o666)
    with locked(file):
        size = end = os.fstat(file).st_size
        while end:
            start = max(0, end - _PAGE_BYTES)
            found = os.pread(file, end - start, start).rfind(b"\n")
            if found >= 0:
                end = start + found + 1
                break
            end = start
        if end < size:
            os.ftruncate(file, end)
    return file


@contextlib.contextmanager
def locked(file: int) -> Iterator[None]:
    """Lock a file against all other writers, also of this process."""
    with contextlib.suppress(OSError):  # not all file systems have locks
        fcntl.flock(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)


def append(file: int, data: bytes) -> None:
    """Append whole lines to a file of lines; either all of them, or as many as there is room for.

    Parameters
    ----------
    file : int
        The descriptor of the file, opened to read and to write.
    data : bytes
        The lines, each with its end.

    Raises
    ------
    OSError
        The lines cannot be written.
    """
    with locked(file):
        begin = os.fstat(file).st_size
        if begin:
            begin += _fill_page(file, begin, data)
        data = b"".join(_in_pages(data, begin))
        done = 0
        try:
            while done < len(data):
                done += os.pwrite(file, memoryview(data)[done:], begin + done)
        except OSError:
            os.ftruncate(file, begin + data.rfind(b"\n", 0, done) + 1)
            raise


def _fill_page(file: int, size: int, data: bytes) -> int:
    """Fill the last page of a file if the next line does not fit there; return how far."""
    room = -size % _PAGE_BYTES
    first = data.find(b"\n") + 1
    if not room or not room < first <= _PAGE_BYTES:
        return 0
    # In front of the end of the last line, which is in the same page.
    os.pwrite(file, b" " * room + b"\n", size - 1)
    return room


def _in_pages(data: bytes, begin: int) -> Iterator[bytes]:
    """Yield lines, with spaces so that none crosses the boundary of two pages of the file."""
    position = 0
    while position < len(data):
        room = _PAGE_BYTES - begin % _PAGE_BYTES
        if len(data) - position <= room:
            yield data[position:]
            return
        # The whole lines that fit into the page; if there are none, the next line is longer.
        end = data.rfind(b"\n", position, position + room) + 1
        if not end:
            end = data.find(b"\n", position) + 1
        begin += end - position
        following = data.find(b"\n", end) + 1 - end
        gap = -begin % _PAGE_BYTES
        if gap and gap < following <= _PAGE_BYTES:
            yield data[position : end - 1]
            yield b" " * gap + b"\n"
            begin += gap
        else:
            yield data[position:end]
        position = end


def complete(directory: Path) -> None:
    """Format the events that a process which was killed had not formatted yet.

    Parameters
    ----------
    directory : Path
        A log directory.
    """
    for path in sorted(directory.glob(f"{_PENDING}*")):
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            pending = PendingFile(path, is_new=False)
            file = _open_log(directory)
            try:
                for lines in pending.read():
                    append(file, lines.format().encode())
                    pending.mark_formatted()
            finally:
                os.close(file)
            pending.delete()
