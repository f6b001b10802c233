"""A child process as its worker has it: started, told things, listened to, ended.

Does not know what is run in it, nor when it is to end.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import subprocess
import sys
import threading
from time import monotonic

from daskbatch.worker.execution import executable
from daskbatch.worker.isolation.frames import ANNOUNCEMENT, READY, Frames, write_file
from daskbatch.worker.isolation.shared_claims import SharedClaims, new_file
from daskbatch.worker.processes import process_tree
from daskbatch.worker.processes.reaper import warden

_PROGRAM = """\
import sys
sys.path[:] = {path!r}
from daskbatch.worker.isolation.child_main import main
main({bell}, {pipe}, {parent})
"""

#: How large a pipe is asked for: as large as the system lets one be.
_PIPE_SIZE = 1 << 20

#: How long the start of a child may take, and how long it may take to be gone when killed.
_START, _END = 60.0, 5.0

#: How long a child may take to end that has closed what it says things by. Seconds.
_LAST_MOMENT = 1.0

#: How often is looked whether a child has ended, on systems that do not tell. Seconds.
_POLL = 0.05

#: The system cannot be told to wait for a month. Seconds.
_LONGEST = 86400.0


class ChildLost(Exception):
    """A child could not be started."""


class ChildProcess:
    """A child process, from outside."""

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            self.marker = os.urandom(12).hex()
            #: What its stdout and stderr are.
            self.files = _file(undo), _file(undo)
            self._bell, bell = socket.socketpair()
            undo.callback(self._bell.close)
            self._pipe, pipe = os.pipe()
            undo.callback(os.close, self._pipe)
            self._awake, self._waker = os.pipe()
            undo.callback(os.close, self._awake)
            undo.callback(os.close, self._waker)
            for each in (self._pipe, pipe, self._waker, self._awake):
                os.set_blocking(each, False)
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
            with bell:
                try:
                    self._process = self._start(bell.fileno(), pipe)
                finally:
                    os.close(pipe)
            self._bell.setblocking(False)
            self._end: int | None = None
            with contextlib.suppress(OSError, AttributeError):
                self._end = os.pidfd_open(self._process.pid)
                undo.callback(os.close, self._end)
            self._poll = select.poll()
            for file in (self._bell.fileno(), self._awake, self._end):
                if file is not None:
                    self._poll.register(file, select.POLLIN)
            self._close = undo.pop_all().close
        self.frames = Frames(self._pipe)
        #: The executors whose initializers it has called.
        self.prepared: set[str] = set()
        self._watches_pipe = False
        #: Whether it has closed what it says things by.
        self.is_mute = False
        self._is_ready = False
        self._lock = threading.Lock()
        self._closed = False

    def _start(self, bell: int, pipe: int) -> subprocess.Popen[bytes]:
        guard = warden()
        program = _PROGRAM.format(path=sys.path, bell=bell, pipe=pipe, parent=os.getpid())
        # The same as multiprocessing starts its children with.
        flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
        carried = {process_tree.MARKER: self.marker, process_tree.OWNER: guard.owner}
        return subprocess.Popen(
            [sys.executable, *flags, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=self.files[0],
            stderr=self.files[1],
            env=executable.clean_environment(carried),
            pass_fds=[bell, pipe],
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    def has_gone(self) -> bool:
        """Say whether nothing more can come from it: it has ended, or is about to."""
        return self.is_mute or self.frames.ended or self.has_ended()

    def wait_for_end(self) -> None:
        """Wait for a moment until it has ended, so that its exit code is its own."""
        deadline = monotonic() + _LAST_MOMENT
        poll = select.poll()
        if self._end is not None:
            poll.register(self._end, select.POLLIN)
        while not self.has_ended() and monotonic() < deadline:
            poll.poll(_POLL * 1000)

    def has_ended(self) -> bool:
        """Say whether it has ended by itself."""
        if self._end is None:
            return self._process.poll() is not None
        poll = select.poll()
        poll.register(self._end, select.POLLIN)
        return bool(poll.poll(0))

    def wait(self, seconds: float | None, frames: bool) -> bytes:
        """Wait until it wants attention, or has ended, or somebody calls `wake`.

        Parameters
        ----------
        seconds : float, optional
            Not for longer than this.
        frames : bool
            Whether frames that have come are a reason to return.

        Returns
        -------
        bytes
            What it has said to get attention.
        """
        if frames is not self._watches_pipe:
            self._watches_pipe = frames
            if frames:
                self._poll.register(self._pipe, select.POLLIN)
            else:
                self._poll.unregister(self._pipe)
        if self._end is None:
            seconds = _POLL if seconds is None else min(seconds, _POLL)
        said = b""
        if seconds is not None:
            seconds = min(max(0.0, seconds), _LONGEST)
        for file, _ in self._poll.poll(None if seconds is None else seconds * 1000 + 1):
            with contextlib.suppress(BlockingIOError, ConnectionError):
                if file == self._awake:
                    os.read(file, 1024)
                elif file == self._bell.fileno():
                    said = self._bell.recv(1024)
                    if not said:
                        self.is_mute = True
                        self._poll.unregister(file)
        return said

    def wake(self) -> None:
        """Have `wait` return; from any thread."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._waker, b"!")

    def wait_until_ready(self) -> None:
        """Wait until it has started."""
        if self._is_ready:
            return
        deadline = monotonic() + _START
        while READY not in self.wait(deadline - monotonic(), frames=False):
            if self.has_ended() or self.is_mute:
                raise ChildLost(f"it ended at once{self._complaint()}")
            if monotonic() > deadline:
                raise ChildLost(f"it did not start within {_START:g} s{self._complaint()}")

        self._is_ready = True

    def _complaint(self) -> str:
        with contextlib.suppress(OSError):
            text = os.pread(self.files[1], 1 << 16, 0).decode("utf-8", "replace").strip()
            return f": {text}" if text else ""
        return ""

    def order(self, board: SharedClaims, order: bytes) -> None:
        """Send it an order, with the board that it shall use; it may have ended."""
        file = new_file()
        try:
            write_file(file, order)
            with contextlib.suppress(ConnectionError):
                announcement = ANNOUNCEMENT.pack(len(order))
                socket.send_fds(self._bell, [announcement], [board.file, file])
        finally:
            os.close(file)

    def memory(self) -> int:
        """Say how much memory it has now; 0 if that is not known."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0

    def kill(self) -> None:
        """End it with all that it has started; what it has written can still be read."""
        process_tree.kill_tree(self.pid, self.marker, 0.0)

    def end(self) -> None:
        """End it, and let go of it."""
        self.kill()
        self.close()

    def close(self) -> int | None:
        """Let go of it, once it has ended; gives its exit code."""
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_END)
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close()
        return code


def _file(undo: contextlib.ExitStack) -> int:
    """Make a file whose end is where whatever is written to it goes."""
    file = new_file()
    undo.callback(os.close, file)
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
    return file
