"""Starts a child process, sends it requests, waits for its messages, and ends it.

The thread of the block that uses a child calls it; any thread may call `wake`. It raises
`ChildLost` if the child does not start; if the child ends later, `has_gone` says so.
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

from daskbatch.memory import kept_mappings
from daskbatch.memory.arena import spare_limits
from daskbatch.memory.segment import AdoptedArena, new_child_arena
from daskbatch.timeouts import Deadline
from daskbatch.worker.execution import executable
from daskbatch.worker.isolation.control import READY, REQUEST_SIZE
from daskbatch.worker.isolation.frames import FrameReader
from daskbatch.worker.isolation.shared_claims import SharedClaims
from daskbatch.worker.isolation.unnamed_file import new_file, write_file
from daskbatch.worker.processes import initial_state, interpreter, process_tree
from daskbatch.worker.processes.interpreter import HASH_SEED
from daskbatch.worker.processes.reaper import get_reaper

#: What the interpreter of a child runs.
_PROGRAM = """\
import sys
sys.path[:] = {path!r}
from daskbatch.worker.isolation.child_main import main
from daskbatch.worker.processes.interpreter import apply
apply({settings!r}, hides_seed={hides_seed})
main({control}, {pipe}, {parent}, {arena})
"""

#: The size that is requested for the frames pipe; by default the system allows no more.
_PIPE_BYTES = 1 << 20

#: How long the start of a child may take.
_START_TIMEOUT_SECONDS = 60.0

#: How long a child that was sent SIGKILL may take to end.
_KILL_TIMEOUT_SECONDS = 5.0

#: How long a child that has closed its socket or pipe may take to end by itself.
_EXIT_TIMEOUT_SECONDS = 1.0

#: How often to look whether a child has ended, on systems that offer no way to wait for it.
_POLL_INTERVAL_SECONDS = 0.05

#: How much of a child's stderr is read for a message.
_MAX_ERROR_BYTES = 1 << 16


class ChildLost(Exception):
    """A child could not be started."""


class ChildProcess:
    """A child process, seen from outside.

    The thread of the block that uses the child calls all methods. Any thread may call `wake` and
    `memory_bytes`.

    Attributes
    ----------
    marker : str
        The value of `MARKER` in the environment of the child and of all that it starts.
    files : (int, int)
        The descriptors of the files that are its stdout and stderr.
    frames : FrameReader
        What it sends.
    initialized : set of str
        The executors whose initializers it has called.
    used : bool
        Whether it has been taken to run a block.
    control_closed : bool
        Whether it has closed its end of the control socket.
    """

    def __init__(self) -> None:
        with contextlib.ExitStack() as undo:
            self.marker = os.urandom(12).hex()
            self.files = _output_file(undo), _output_file(undo)
            initial_state.open_standard_descriptors()
            self._control, control = socket.socketpair()
            undo.callback(self._control.close)
            control.settimeout(None)  # a task may have set a default, which would hold for it
            self._pipe, pipe = os.pipe()
            undo.callback(os.close, self._pipe)
            self._wake_read, self._wake_write = os.pipe()
            undo.callback(os.close, self._wake_read)
            undo.callback(os.close, self._wake_write)
            for each in (self._pipe, pipe, self._wake_write, self._wake_read):
                os.set_blocking(each, False)
            with contextlib.suppress(OSError, AttributeError):
                fcntl.fcntl(self._pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
            #: The memory that its values are stored in: it outlives the process.
            self._arena: AdoptedArena | None = None
            with control:
                try:
                    self._process = self._start(control.fileno(), pipe)
                finally:
                    os.close(pipe)
            self._control.setblocking(False)
            #: Readable once the process has ended; None where the system has no such thing.
            self._pidfd: int | None = None
            with contextlib.suppress(OSError, AttributeError):
                self._pidfd = os.pidfd_open(self._process.pid)
                undo.callback(os.close, self._pidfd)
            self._poll = select.poll()
            for file in (self._control.fileno(), self._wake_read, self._pidfd):
                if file is not None:
                    self._poll.register(file, select.POLLIN)
            self._close_files = undo.pop_all().close
        self.frames = FrameReader(self._pipe)
        self.initialized: set[str] = set()
        self.used = False
        self.control_closed = False
        self._polls_pipe = False
        self._is_ready = False
        self._lock = threading.Lock()  # between `wake` and `close`
        self._closed = False

    def _start(self, control: int, pipe: int) -> subprocess.Popen[bytes]:
        self._arena = new_child_arena()
        arena = None
        if self._arena is not None:
            arena = (
                *(self._arena.location, self._arena.identity),
                *(spare_limits()[0], kept_mappings.limit()),
            )
        program = _PROGRAM.format(
            arena=arena,
            path=sys.path,
            settings=interpreter.applied(),
            hides_seed=HASH_SEED in os.environ.get(executable.ADDED_VARIABLE, "").split(","),
            control=control,
            pipe=pipe,
            parent=os.getpid(),
        )
        flags = interpreter.command_line_options()
        if interpreter.applied() is None:
            flags += [f"-W{each}" for each in sys.warnoptions]
        marked = {process_tree.MARKER: self.marker, process_tree.OWNER: get_reaper().owner}
        # The hash of a text is the same as in the worker.
        seed = interpreter.hash_seed()
        if seed is not None:
            marked[HASH_SEED] = seed
        return subprocess.Popen(
            [sys.executable, *flags, "-c", program],
            stdin=subprocess.DEVNULL,
            stdout=self.files[0],
            stderr=self.files[1],
            env=executable.clean_environment(marked),
            cwd=initial_state.directory(),
            umask=initial_state.umask(),
            pass_fds=[control, pipe],
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    # -- messages -------------------------------------------------------------------------

    def wait_until_ready(self) -> None:
        """Wait until the child has started.

        Raises
        ------
        ChildLost
            It has ended, or takes too long.
        """
        if self._is_ready:
            return
        deadline = Deadline(_START_TIMEOUT_SECONDS)
        while READY not in self.wait(deadline.remaining(), frames=False):
            if self.has_ended() or self.control_closed:
                raise ChildLost(f"it ended at once{self._error_text()}")
            if deadline.passed:
                raise ChildLost(
                    f"it did not start within {_START_TIMEOUT_SECONDS:g} s{self._error_text()}"
                )
        self._is_ready = True

    def _error_text(self) -> str:
        """Return what it has written to stderr, for a message."""
        with contextlib.suppress(OSError):
            data = os.pread(self.files[1], _MAX_ERROR_BYTES, 0)
            text = data.decode("utf-8", "replace").strip()
            return f": {text}" if text else ""
        return ""

    def send_request(self, claims: SharedClaims, data: bytes) -> None:
        """Send the child a request; no error if the child has ended.

        Parameters
        ----------
        claims : SharedClaims
            The claims on the members of the block.
        data : bytes
            The packed request.
        """
        file = new_file()
        try:
            write_file(file, data)
            with contextlib.suppress(ConnectionError):
                size = REQUEST_SIZE.pack(len(data))
                socket.send_fds(self._control, [size], [claims.file, file])
        finally:
            os.close(file)

    def wait(self, seconds: float | None, frames: bool) -> bytes:
        """Wait until the child sends a message, or has ended, or `wake` is called.

        Parameters
        ----------
        seconds : float, optional
            How long to wait at most; None for no limit.
        frames : bool
            Whether to return also when frames arrive.

        Returns
        -------
        bytes
            The messages; see `control`.
        """
        if frames is not self._polls_pipe:
            self._polls_pipe = frames
            if frames:
                self._poll.register(self._pipe, select.POLLIN)
            else:
                self._poll.unregister(self._pipe)
        if self._pidfd is None:
            seconds = (
                _POLL_INTERVAL_SECONDS if seconds is None else min(seconds, _POLL_INTERVAL_SECONDS)
            )
        messages = b""
        if seconds is not None:
            seconds = min(max(0.0, seconds), executable.MAX_POLL_SECONDS)
        for file, _ in self._poll.poll(None if seconds is None else seconds * 1000 + 1):
            with contextlib.suppress(BlockingIOError, ConnectionError):
                if file == self._wake_read:
                    os.read(file, 1024)
                elif file == self._control.fileno():
                    messages = self._control.recv(1024)
                    if not messages:
                        self.control_closed = True
                        self._poll.unregister(file)
        return messages

    def wake(self) -> None:
        """Make `wait` return; from any thread."""
        with self._lock, contextlib.suppress(BlockingIOError):
            if not self._closed:
                os.write(self._wake_write, b"!")

    # -- the process ----------------------------------------------------------------------

    def has_gone(self) -> bool:
        """Return whether it sends nothing more: it has ended, or is about to."""
        return self.control_closed or self.frames.ended or self.has_ended()

    def has_ended(self) -> bool:
        """Return whether it has ended."""
        if self._pidfd is None:
            return self._process.poll() is not None
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def wait_for_end(self) -> None:
        """Wait a moment for its end: if it were killed now, that would hide its exit code."""
        deadline = Deadline(_EXIT_TIMEOUT_SECONDS)
        poll = select.poll()
        if self._pidfd is not None:
            poll.register(self._pidfd, select.POLLIN)
        while not self.has_ended() and not deadline.passed:
            poll.poll(_POLL_INTERVAL_SECONDS * 1000)

    def memory_bytes(self) -> int:
        """Return how much memory it has now (resident set size); 0 if unknown."""
        try:
            with open(f"/proc/{self.pid}/statm", "rb") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError, IndexError):
            return 0

    def kill(self) -> None:
        """End it with all that it has started; what it has written can still be read."""
        process_tree.kill_tree(self.pid, self.marker, 0.0)

    def close(self) -> int | None:
        """Close its files, once it has ended; return its exit code."""
        code = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_KILL_TIMEOUT_SECONDS)
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close_files()
                if self._arena is not None:
                    self._arena.orphaned = True
                    self._arena = None
        return code

    def end(self) -> None:
        """Kill and close it."""
        self.kill()
        self.close()


def _output_file(undo: contextlib.ExitStack) -> int:
    """Make a file to which each write is appended, whichever process writes."""
    file = new_file()
    undo.callback(os.close, file)
    fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) | os.O_APPEND)
    return file
