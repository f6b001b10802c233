"""Starts and watches the ranks of a job on the host of its worker, without a process beside each.

A supervisor written in Python costs each rank the start of a Python. Under MPICH on one host this
is not needed. There the launcher starts a small script of the shell in place of each rank, the
*placeholder*. The placeholder reports its process number, and waits until the job ends. The worker
reads the environment that the launcher has set from ``/proc``, and starts the rank itself, as it
starts a serial executable. So it knows the output and the exit code of each rank. The rank finds
the launcher by the TCP port in its environment (the option ``-pmi-port``; otherwise the launcher
would pass an open file to its child, which only a child can inherit)::

    worker -- launcher -- placeholder     (PMI_PORT, PMI_ID)
           -- rank                        (the same environment)

If the launcher kills a placeholder, the rank is sent SIGTERM, and SIGKILL after a while. If the
worker dies, its reaper ends all of them.

The thread that runs the job uses the objects of this module. Nothing blocks.
"""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator
from typing import IO

from daskbatch.worker.mpi import rank_supervisor
from daskbatch.worker.mpi.rank_events import Ended, Event, NotStarted, Output, RankStart, StartOf
from daskbatch.worker.processes.captured_process import start_captured
from daskbatch.worker.processes.process_tree import MARKER, sweep_all

_SHELL = "/bin/sh"

#: What the launcher starts in place of each rank. The pipes of the worker are opened by their
#: names in /proc, since launchers pass no open files on. The second pipe is read until the worker
#: writes a line or ends.
_PLACEHOLDER = 'echo $$ >"/proc/$1/fd/$2" || exit 1; read -r line <"/proc/$1/fd/$3"; exit 0'

#: The most ranks of a job: each one takes five open files of the worker.
MAX_RANKS = 64

#: How the launcher names a rank, with the names that it uses if there is no port.
_RANK, _RANK_ALIAS, _SIZE_ALIAS = b"PMI_ID", b"PMI_RANK", b"PMI_SIZE"

#: Where the rank reaches the launcher: ``host:port``. The launcher names the host by its own name,
#: which not each system can resolve. It listens on all addresses.
_PORT, _HOST = b"PMI_PORT", b"127.0.0.1"

#: Names an open file of the placeholder, which the rank does not have.
_CONTROL = b"HYDI_CONTROL_FD"

#: The bit among the flags of a process in /proc that says that it is about to end (`PF_EXITING`).
_EXITING_FLAG = 0x4

#: What stands behind the name of a process in /proc: its state, its parent, and its flags.
_STATE_POSITION, _PARENT_POSITION, _FLAGS_POSITION = 0, 1, 6

#: How long an executable may take to end after SIGTERM.
_GRACE_SECONDS = 2.0

#: How long to wait for more output once a rank has ended, as for serial executables.
_FINAL_OUTPUT_SECONDS = 0.2

_PROBE_TIMEOUT_SECONDS = 10.0

_READ_BYTES = 1 << 16


def can_watch_locally(ranks: int) -> bool:
    """Return whether this worker can start and watch the ranks of a job by `LocalRanks`."""
    return ranks <= MAX_RANKS and _placeholders_work(os.getpid())


@functools.lru_cache(maxsize=1)
def _placeholders_work(pid: int) -> bool:
    """Return whether a placeholder can open the pipes of this process; tries it once."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    with _Pipes() as pipes:
        pipes.release(1)
        try:
            subprocess.run(
                pipes.placeholder(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=_PROBE_TIMEOUT_SECONDS,
                check=True,
            )
            return bool(pipes.read_pids())
        except (OSError, subprocess.SubprocessError):
            return False


class _Pipes:
    """Two pipes between the worker and all placeholders of a job."""

    def __init__(self) -> None:
        # This process keeps both ends of the first one open: it never ends.
        self.pids, self._pids_write = os.pipe()
        self._end_read, self._end_write = os.pipe()
        for fd in (self.pids, self._end_write):
            os.set_blocking(fd, False)
        self._received = b""

    def __enter__(self) -> _Pipes:
        return self

    def __exit__(self, *_: object) -> None:
        for fd in (self.pids, self._pids_write, self._end_read, self._end_write):
            os.close(fd)

    def placeholder(self) -> list[str]:
        """Return the command of a placeholder."""
        numbers = (os.getpid(), self.pids, self._end_read)
        return [_SHELL, "-c", _PLACEHOLDER, "sh", *map(str, numbers)]

    def read_pids(self) -> list[int]:
        """Return the numbers of the placeholders that have started since the last call."""
        with contextlib.suppress(BlockingIOError):
            self._received += os.read(self.pids, _READ_BYTES)
        *lines, self._received = self._received.split(b"\n")
        return [int(line) for line in lines if line.isdigit()]

    def release(self, ranks: int) -> None:
        """Have all placeholders end."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._end_write, b"\n" * ranks)


class _LocalRank:
    """One rank: its process, its pipes, and the end of its placeholder."""

    def __init__(self, process: subprocess.Popen[bytes], marker: str, placeholder: int) -> None:
        self.process = process
        self.marker = marker
        self.code: int | None = None
        #: What it has used, once it has ended: seconds, bytes.
        self.cpu_seconds, self.max_memory = 0.0, 0
        self.stopping = self.signalled = False
        #: When SIGKILL is sent, and when output is no longer waited for; None if never.
        self.kill_at: float | None = None
        self.until: float | None = None
        assert process.stdout is not None
        assert process.stderr is not None
        self.pipes: list[IO[bytes]] = [process.stdout, process.stderr]
        #: Descriptors that are readable once the placeholder, and the rank, have ended.
        self.placeholder = placeholder
        self.end = os.pidfd_open(process.pid)

    @property
    def dues(self) -> list[float]:
        """The times at which something is to be done."""
        return [each for each in (self.kill_at, self.until) if each is not None]

    def wait(self) -> None:
        """Take the exit code of the executable, which has ended, and what it has used."""
        _, status, used = os.wait4(self.process.pid, 0)
        self.code = self.process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu_seconds = used.ru_utime + used.ru_stime
        self.max_memory = used.ru_maxrss * 1024  # it runs on Linux only

    def terminate(self) -> None:
        """Send SIGTERM to the executable and to what it has started."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """End the executable and all that it has started."""
        self._signal(signal.SIGKILL)
        sweep_all(rank_supervisor.RANK_MARKER, self.marker)

    def has_left_behind(self) -> bool:
        """Return whether processes of its group still run."""
        try:
            os.killpg(self.process.pid, 0)
        except OSError:
            return False
        return True

    def _signal(self, number: int) -> None:
        # The number of a group stays taken while a process of the group runs, or while the
        # executable has not been waited for.
        if self.code is None or self.has_left_behind():
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, number)

    def close(self) -> None:
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()
        os.close(self.end)
        os.close(self.placeholder)
        if self.code is None:
            # It was killed, and may hang in the kernel.
            self.process.poll()


class LocalRanks:
    """The ranks of a job on this host. The thread that runs the job uses it.

    Parameters
    ----------
    size : int
        The number of ranks.
    marker : str
        The value of `MARKER` in the environment of the launcher.
    start_of : callable
        Returns what a rank runs.
    """

    #: The value of the variable by which a supervisor finds the worker: there is none.
    address = ""

    #: The launcher must pass a port to the ranks.
    needs_port = True

    def __init__(self, size: int, marker: str, start_of: StartOf) -> None:
        self._size = size
        self._marker = marker
        self._start_of = start_of
        self._ranks: dict[int, _LocalRank | None] = {}
        self._events: deque[Event] = deque()
        self._pipes = _Pipes()
        # One descriptor stands for all: it is readable when one of them is.
        self._selector = selectors.EpollSelector()
        self._selector.register(self._pipes.pids, selectors.EVENT_READ, self._on_placeholders)
        #: A descriptor that is readable once the launcher's process that has started the
        #: placeholders has ended; it may do so without ending them.
        self._parent: int | None = None
        #: What the launcher starts in place of each rank.
        self.command = self._pipes.placeholder()

    @property
    def numbers(self) -> Collection[int]:
        """The ranks whose placeholders have started."""
        return self._ranks.keys()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `take` has something to do."""
        return self._selector.fileno()

    def due(self) -> float | None:
        """Return when `take` is to be called even if nothing happens."""
        return min((due for each in self._running() for due in each.dues), default=None)

    def take(self) -> Iterator[Event]:
        """Handle what has happened, and yield what the job must know of it."""
        for key, _ in self._selector.select(0):
            if callable(key.data):
                key.data()
            else:
                handle, *arguments = key.data
                handle(*arguments)
        now = time.monotonic()
        for number, rank in self._ranks.items():
            if rank is not None:
                self._on_time(number, rank, now)
        while self._events:
            yield self._events.popleft()

    def stop(self, rank: int, grace: float) -> None:
        """End a rank: SIGTERM, and SIGKILL after `grace` seconds."""
        local = self._ranks.get(rank)
        if local is None or local.code is not None or local.stopping:
            return
        if not local.signalled and grace > 0:
            local.terminate()
        local.kill_at = time.monotonic() + grace
        local.stopping = True

    def release(self) -> None:
        """Have the placeholders end."""
        self._pipes.release(self._size)

    def close(self) -> None:
        """Close all files. No placeholder runs any longer: it would open other files."""
        for rank in self._running():
            rank.close()
        if self._parent is not None:
            os.close(self._parent)
        self._selector.close()
        self._pipes.__exit__()

    def _running(self) -> list[_LocalRank]:
        return [each for each in self._ranks.values() if each is not None]

    # -- the start ------------------------------------------------------------------------

    def _on_placeholders(self) -> None:
        for pid in self._pipes.read_pids():
            try:
                placeholder = os.pidfd_open(pid)
            except ProcessLookupError:
                continue  # it has ended: the launcher says why
            try:
                self._on_placeholder(pid, placeholder)
            except BaseException:
                os.close(placeholder)
                raise

    def _on_placeholder(self, pid: int, placeholder: int) -> None:
        try:
            with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
                entries = file.readall().split(b"\0")
            parent = int(_stat(pid)[_PARENT_POSITION])
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            entries, parent = [], 0  # it has ended
        environ = dict(each.split(b"=", 1) for each in entries if b"=" in each)
        number = environ.get(_RANK, b"")
        is_ours = environ.get(MARKER.encode()) == self._marker.encode()
        if not is_ours or not number.isdigit() or int(number) in self._ranks:
            os.close(placeholder)
            return
        rank = int(number)
        if self._parent is None:
            with contextlib.suppress(ProcessLookupError):
                self._parent = os.pidfd_open(parent)
                self._selector.register(self._parent, selectors.EVENT_READ, self._on_parent_end)
        self._ranks[rank] = None
        start = self._start_of(rank)
        local = None if start is None else self._start(rank, start, environ, placeholder)
        if local is None:
            os.close(placeholder)
            return
        for pipe, is_error in zip(local.pipes, (False, True), strict=True):
            data = (self._on_output, rank, local, pipe, is_error)
            self._selector.register(pipe, selectors.EVENT_READ, data)
        self._selector.register(local.end, selectors.EVENT_READ, (self._on_end, local))
        self._selector.register(placeholder, selectors.EVENT_READ, (self._on_killed, local))
        self._ranks[rank] = local

    def _start(
        self, rank: int, start: RankStart, environ: dict[bytes, bytes], placeholder: int
    ) -> _LocalRank | None:
        """Start the executable of a rank; if this fails, report it."""
        marker = f"{self._marker}-{rank}"
        environ.pop(_CONTROL, None)
        environ |= {_RANK_ALIAS: b"%d" % rank, _SIZE_ALIAS: b"%d" % self._size}
        environ[_PORT] = _HOST + b":" + environ.get(_PORT, b"").rpartition(b":")[2]
        environ |= {os.fsencode(name): os.fsencode(text) for name, text in start.env.items()}
        environ |= {b"DASKBATCH_RANK": b"%d" % rank, b"DASKBATCH_SIZE": b"%d" % self._size}
        environ[rank_supervisor.RANK_MARKER.encode()] = marker.encode()
        try:
            source = subprocess.DEVNULL if start.stdin is None else start.stdin
            process = start_captured(start.command, start.cwd, environ, source)
        except OSError as error:
            is_directory = error.filename == start.cwd and start.cwd != start.command[0]
            self._events.append(NotStarted(rank, error.errno or 0, is_directory))
            return None
        return _LocalRank(process, marker, placeholder)

    # -- what happens ---------------------------------------------------------------------

    def _on_output(self, rank: int, local: _LocalRank, pipe: IO[bytes], is_error: bool) -> None:
        if data := os.read(pipe.fileno(), _READ_BYTES):
            self._events.append(Output(rank, is_error, data))
        else:
            self._forget(local, pipe)

    def _forget(self, local: _LocalRank, pipe: IO[bytes]) -> None:
        self._selector.unregister(pipe)
        local.pipes.remove(pipe)
        pipe.close()

    def _on_end(self, local: _LocalRank) -> None:
        self._selector.unregister(local.end)
        local.wait()
        local.kill_at = None
        local.until = time.monotonic() + _FINAL_OUTPUT_SECONDS

    def _on_parent_end(self) -> None:
        """End all ranks: the launcher has lost its process on this host."""
        assert self._parent is not None
        self._selector.unregister(self._parent)
        for rank in self._running():
            self._end_with_launcher(rank)

    def _on_killed(self, local: _LocalRank) -> None:
        """End a rank whose placeholder has been killed."""
        self._selector.unregister(local.placeholder)
        self._end_with_launcher(local)

    def _end_with_launcher(self, local: _LocalRank) -> None:
        """End a rank, unless it has ended by itself.

        MPICH kills all placeholders as soon as one rank has closed its connection, which it does
        when it dies. So the end of that rank itself may not be known yet.
        """
        is_wanted = local.code is None and not local.stopping and not local.signalled
        if is_wanted and not _is_exiting(local.process.pid):
            local.signalled = True
            local.terminate()
            local.kill_at = time.monotonic() + _GRACE_SECONDS

    def _on_time(self, rank: int, local: _LocalRank, now: float) -> None:
        if local.kill_at is not None and now >= local.kill_at:
            local.kill_at = None
            local.kill()
        if local.until is not None and (not local.pipes or now >= local.until):
            local.until = None
            for pipe in list(local.pipes):
                self._forget(local, pipe)
            assert local.code is not None
            if local.stopping or local.signalled or local.has_left_behind():
                # What the executable has started, and what has not ended after SIGTERM.
                local.kill()
            was_signalled = local.signalled and not local.stopping
            self._events.append(
                Ended(rank, local.code, was_signalled, local.cpu_seconds, local.max_memory)
            )


def _is_exiting(pid: int) -> bool:
    """Return whether a child of this process has ended, or is about to end."""
    try:
        fields = _stat(pid)
    except OSError:
        return True
    ended = fields[_STATE_POSITION] in (b"Z", b"X")
    return ended or bool(int(fields[_FLAGS_POSITION]) & _EXITING_FLAG)


def _stat(pid: int) -> list[bytes]:
    """Return what stands behind the name of a process in /proc."""
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        return file.readall().rpartition(b")")[2].split()
