"""Ends what a worker's tasks have started when the worker dies, for whatever reason.

The reaper is a small process beside each worker that starts executables or children. It has the
read end of a pipe, and only the worker has the write end. When the reaper reads the end of the
file, the worker has died, even if by SIGKILL. Then the reaper ends all processes that have the
worker's name in their environment, and itself.

The reaper process runs this very file by its path, without the package and its imports. So
this module uses the standard library only, and of that no more than it needs.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator

#: The environment variables of each process that is started for a task. The value of the first
#: one is different for each start; the value of the second one names the worker process.
MARKER = "DASKBATCH_TASK"
OWNER = "DASKBATCH_WORKER"

#: Whether the environments of processes can be read as files.
HAS_PROC = os.path.exists("/proc/self/environ")

_FILE = os.path.abspath(__file__)

#: Between fork and exec, a process does not have the worker's name yet. So the reaper ends only
#: when it has found no process for this time.
_QUIET_SECONDS = 1.0

#: The pause between two searches that find nothing.
_POLL_INTERVAL_SECONDS = 0.1

#: After this time the reaper gives up: a process that hangs in the kernel cannot be ended.
_GIVE_UP_SECONDS = 60.0

#: How much of an environment is read at once.
_READ_BYTES = 1 << 17

#: How long to wait for the start and for the end of a reaper.
_PROCESS_TIMEOUT_SECONDS = 5.0

#: The worker writes this if the reaper is to end without ending other processes.
_CLOSE = b"."


# -- processes by their environments ------------------------------------------------------


def running_processes() -> frozenset[tuple[int, int]]:
    """Return the processes that run now: each one's number, and that of its directory in /proc.

    If a process ends and another one gets its number, that one has another directory.
    """
    with os.scandir("/proc") as entries:
        return frozenset(
            (int(each.name), each.inode()) for each in entries if each.name.isdecimal()
        )


def carriers(
    name: str, value: str, earlier: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[int]:
    """Yield the processes, but for this one, whose environment has `name=value`.

    The newest come first: in a chain of processes of which each starts the next one and ends,
    the newest must be ended before it starts another one.

    Parameters
    ----------
    name, value : str
        The environment variable.
    earlier : frozenset
        What `running_processes` returned before the value was used first: these processes are not
        looked at.
    """
    pids = sorted((pid for pid, _ in running_processes() - earlier), reverse=True)
    return (each for each in pids if _carries(each, name, value))


def _carries(pid: int, name: str, value: str) -> bool:
    if pid == os.getpid():
        return False
    # The owner of the process is not checked. Most processes of other users cannot be read.
    # Root can read them; then one that has the value was started by a task, and has changed
    # its user since.
    entries = b""
    try:
        # Not by `open`, which takes as long again; and a search looks at all processes.
        file = os.open(f"/proc/{pid}/environ", os.O_RDONLY | os.O_CLOEXEC)
        try:
            while data := os.read(file, _READ_BYTES):
                entries += data
        finally:
            os.close(file)
    except OSError:
        return False
    return b"\0" + os.fsencode(f"{name}={value}") + b"\0" in b"\0" + entries + b"\0"


def kill_carriers(name: str, value: str, pids: Iterable[int]) -> list[int]:
    """Send SIGKILL to the given processes that still have `name=value`; return those."""
    killed = []
    for pid in pids:
        try:
            _kill(pid, name, value)
        except OSError:
            continue  # it has ended, or this user may not end it
        killed.append(pid)
    return killed


def _kill(pid: int, name: str, value: str) -> None:
    if not (HAS_PROC and hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")):
        os.kill(pid, signal.SIGKILL)
        return
    handle = os.pidfd_open(pid)
    try:
        # From here on no other process can get the number; one may have got it before.
        if not _carries(pid, name, value):
            raise ProcessLookupError(pid)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)


# -- on the worker ------------------------------------------------------------------------


class Reaper:
    """The reaper of this process, seen from this process. Safe for any number of threads.

    Attributes
    ----------
    owner : str
        The value of `OWNER` in the environment of processes that must not outlive this one.
    pid : int
        This process.
    """

    def __init__(self) -> None:
        self.owner = os.urandom(12).hex()
        self.pid = os.getpid()
        self._pipe: int | None = None

    def ensure(self) -> None:
        """Start the reaper process, unless it runs."""
        with _lock:
            if self._pipe is not None:
                if not self._has_gone(0):
                    return
                self._close_pipe()
            self._start()

    def close(self) -> None:
        """End the reaper process, and no other: this process does not need it any longer."""
        with _lock:
            if self._pipe is None:
                return
            if not self._has_gone(0):
                os.write(self._pipe, _CLOSE)
                self._has_gone(_PROCESS_TIMEOUT_SECONDS)
            self._close_pipe()

    def _has_gone(self, seconds: float) -> bool:
        """Return whether no process has the read end of the pipe open; wait at most `seconds`."""
        assert self._pipe is not None
        poll = select.poll()
        poll.register(self._pipe, 0)
        return bool(poll.poll(seconds * 1000))

    def _close_pipe(self) -> None:
        assert self._pipe is not None
        _pipes.discard(self._pipe)
        os.close(self._pipe)
        self._pipe = None

    def _start(self) -> None:
        # Not at the top: the reaper process does not need them.
        import contextlib
        import subprocess

        read, write = os.pipe()
        environment = dict(os.environ)
        # If a task has started this worker, the reaper must not be ended with that task.
        for name in (MARKER, OWNER):
            environment.pop(name, None)
        try:
            starter = subprocess.Popen(
                [sys.executable, "-I", "-S", _FILE, OWNER, self.owner, str(read)],
                pass_fds=[read],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment,
                start_new_session=True,
            )
        except BaseException:
            os.close(write)
            raise
        finally:
            os.close(read)
        self._pipe = write
        _pipes.add(write)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # If its start takes longer, it does its work all the same.
            starter.wait(_PROCESS_TIMEOUT_SECONDS)


_lock = threading.RLock()
#: The write ends of pipes to reapers that are open in this process.
_pipes: set[int] = set()
_reaper: Reaper | None = None


def get_reaper() -> Reaper:
    """Return the reaper of this process; its process is started by `ensure` only."""
    global _reaper
    reaper = _reaper
    if reaper is None or reaper.pid != os.getpid():
        with _lock:
            if _reaper is None or _reaper.pid != os.getpid():
                _reaper = Reaper()
            reaper = _reaper
    return reaper


def _after_fork_in_child() -> None:
    # A forked process that outlives the worker must not keep the pipe open; and it must not end
    # the worker's reaper.
    global _reaper
    _reaper = None
    for each in _pipes:
        os.close(each)
    _pipes.clear()
    _lock.release()


# -- the reaper process -------------------------------------------------------------------


def _listed(name: str, value: str) -> Iterator[int]:
    """Do what `carriers` does where there is no /proc: ps prints environments, too."""
    import subprocess

    command = ["ps", "-axwwE", "-o", "pid=,command="]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout.splitlines()
    entry = os.fsencode(f"{name}={value}")
    # The reaper's own command line has the name and the value as separate words.
    return (int(words[0]) for words in map(bytes.split, lines) if entry in words[1:])


def watch(name: str, value: str, pipe: int) -> None:
    """Wait until the other end of a pipe is closed, then end all that has `name=value`."""
    started = time.time()
    if os.read(pipe, 1) == _CLOSE:
        return
    find = carriers if HAS_PROC else _listed
    began = last = time.monotonic()
    while time.monotonic() < min(last + _QUIET_SECONDS, began + _GIVE_UP_SECONDS):
        if kill_carriers(name, value, find(name, value)):
            last = time.monotonic()
        else:
            time.sleep(_POLL_INTERVAL_SECONDS)
    _remove_shared_memory(started)


def _remove_shared_memory(since: float) -> None:
    """Remove shared memory that the ranks of jobs have left behind."""
    # Only now: the reaper of a worker that closes in good order does not need it.
    sys.path.append(os.path.abspath(_FILE + "/../../../.."))
    from daskbatch.worker.mpi.shared_memory import remove_unused

    remove_unused(since)


def _main(name: str, value: str, pipe: str) -> None:
    # A signal that ends the worker may be sent to its whole process group.
    for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    # Fork again: then the reaper is not a child of the worker. It does not belong to the tree
    # that is ended with the worker, and the worker need not wait for it.
    if os.fork() == 0:
        watch(name, value, int(pipe))


if __name__ == "__main__":
    _main(*sys.argv[1:])
else:
    os.register_at_fork(
        before=_lock.acquire,
        after_in_parent=_lock.release,
        after_in_child=_after_fork_in_child,
    )
