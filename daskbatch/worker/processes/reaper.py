"""Ends what a worker's tasks have started when the worker dies, in whatever way it dies.

Does not know tasks, nor what it ends: whatever carries the worker's name in its environment.

The warden is a small process beside each worker that starts executables. It holds the read
end of a pipe whose write end only the worker has. When that reads the end of the file, the
worker is no more, though it may have been killed by SIGKILL, and the warden ends all that
names that worker in its environment, then itself. This very file is what it runs, without
the package and its imports, so there is nothing here but the standard library, and of that
no more than it needs.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator

#: The environment variables that every process launched for a task carries. The first has
#: a value of its own for each launch, the second names the worker process.
MARKER = "DASKBATCH_TASK"
OWNER = "DASKBATCH_WORKER"

#: Whether the environments of processes can be read as files.
HAS_PROC = os.path.exists("/proc/self/environ")

_FILE = os.path.abspath(__file__)

#: A process may be just between fork and exec, where it does not carry its name yet: only
#: after so many seconds without a find is the end believed. And what cannot be ended, since
#: it hangs in the kernel, is given up after a while.
_QUIET, _PAUSE, _GIVE_UP = 1.0, 0.1, 60.0

#: How long the start and the end of a warden are waited for. Seconds.
_PATIENCE = 5.0

_DONE = b"."


# -- processes by their environments ------------------------------------------------------


def carriers(name: str, value: str) -> Iterator[int]:
    """Find the processes, but for this one, whose environment holds `name=value`.

    The newest come first: in a chain of processes of which each starts the next and ends,
    the newest must be ended before it has come to that.
    """
    pids = [int(each) for each in os.listdir("/proc") if each.isdecimal()]
    return (each for each in sorted(pids, reverse=True) if _carries(each, name, value))


def _carries(pid: int, name: str, value: str) -> bool:
    if pid == os.getpid():
        return False
    # There is no look at whose process it is: most of other users cannot be read, and one
    # that can, since this is root's, has been started by a task and then become theirs.
    try:
        with open(f"/proc/{pid}/environ", "rb", buffering=0) as file:
            entries = file.readall()
    except OSError:
        return False
    return b"\0" + os.fsencode(f"{name}={value}") + b"\0" in b"\0" + entries + b"\0"


def kill_carriers(name: str, value: str, pids: Iterable[int]) -> list[int]:
    """Send SIGKILL to those of some processes that still carry `name=value`."""
    killed = []
    for pid in pids:
        try:
            _kill(pid, name, value)
        except OSError:
            continue  # it has ended, or is not ours to end
        killed.append(pid)
    return killed


def _kill(pid: int, name: str, value: str) -> None:
    if not (HAS_PROC and hasattr(os, "pidfd_open") and hasattr(signal, "pidfd_send_signal")):
        os.kill(pid, signal.SIGKILL)
        return
    handle = os.pidfd_open(pid)
    try:
        # From here on the number cannot come to mean another process. It may have before.
        if not _carries(pid, name, value):
            raise ProcessLookupError(pid)
        signal.pidfd_send_signal(handle, signal.SIGKILL)
    finally:
        os.close(handle)


# -- on the worker ------------------------------------------------------------------------


class Reaper:
    """The warden of this process; it does not run before it is asked to.

    Attributes
    ----------
    owner : str
        What `OWNER` must say in the environment of a process that shall not outlive this one.
    """

    def __init__(self) -> None:
        self.owner = os.urandom(12).hex()
        self.pid = os.getpid()
        self._pipe: int | None = None

    def ensure(self) -> None:
        """Start it, unless it runs."""
        with _lock:
            if self._pipe is not None:
                if not self._has_gone(0):
                    return
                self._let_go()
            self._start()

    def close(self) -> None:
        """End it, and nothing else: this process ends properly, or starts no more."""
        with _lock:
            if self._pipe is None:
                return
            if not self._has_gone(0):
                os.write(self._pipe, _DONE)
                self._has_gone(_PATIENCE)
            self._let_go()

    def _has_gone(self, seconds: float) -> bool:
        """Say whether nobody is left to read from the pipe."""
        assert self._pipe is not None
        poll = select.poll()
        poll.register(self._pipe, 0)
        return bool(poll.poll(seconds * 1000))

    def _let_go(self) -> None:
        assert self._pipe is not None
        _pipes.discard(self._pipe)
        os.close(self._pipe)
        self._pipe = None

    def _start(self) -> None:
        # Not at the top: the warden itself does without.
        import contextlib
        import subprocess

        read, write = os.pipe()
        environment = dict(os.environ)
        # It would be ended with the task that has started this worker, if one has.
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
            starter.wait(_PATIENCE)  # if it takes longer, it does its work all the same


_lock = threading.RLock()
_pipes: set[int] = set()
_mine: Reaper | None = None


def warden() -> Reaper:
    """Give the warden of this process."""
    global _mine
    found = _mine
    if found is None or found.pid != os.getpid():
        with _lock:
            if _mine is None or _mine.pid != os.getpid():
                _mine = Reaper()
            found = _mine
    return found


def _after_fork_in_child() -> None:
    # A child that outlives the worker must not hold the pipe open, nor end its warden.
    global _mine
    _mine = None
    for each in _pipes:
        os.close(each)
    _pipes.clear()
    _lock.release()


# -- the warden itself --------------------------------------------------------------------


def _listed(name: str, value: str) -> Iterator[int]:
    """List what `carriers` does where there is no /proc: ps tells environments too."""
    import subprocess

    command = ["ps", "-axwwE", "-o", "pid=,command="]
    lines = subprocess.run(command, stdout=subprocess.PIPE, check=False).stdout.splitlines()
    entry = os.fsencode(f"{name}={value}")
    # The warden's own command line names both, but apart from each other.
    return (int(words[0]) for words in map(bytes.split, lines) if entry in words[1:])


def watch(name: str, value: str, pipe: int) -> None:
    """Wait until the other end of a pipe is closed, then end what carries `name=value`."""
    if os.read(pipe, 1) == _DONE:
        return
    find = carriers if HAS_PROC else _listed
    began = last = time.monotonic()
    while time.monotonic() < min(last + _QUIET, began + _GIVE_UP):
        if kill_carriers(name, value, find(name, value)):
            last = time.monotonic()
        else:
            time.sleep(_PAUSE)


def _main(name: str, value: str, pipe: str) -> None:
    # Whoever ends the worker may well send this to all that there is of it.
    for each in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)
    # Nobody's child: it is no part of a tree that somebody ends the worker with, and the
    # worker need not wait for it.
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
