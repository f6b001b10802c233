"""Ends processes with all that they have started, even what has left their process tree.

A tree is identified by a process, and by a value in the environment of the process, which its
descendants inherit. Only a process that has left the tree and has also cleaned its environment
is not found. Any number of threads may use it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator

import psutil

from daskbatch.worker.processes.reaper import (
    HAS_PROC,
    MARKER,
    OWNER,
    carriers,
    kill_carriers,
    running_processes,
)

__all__ = ["MARKER", "OWNER", "end_of", "kill_tree", "processes_before", "sweep", "sweep_all"]

#: How long to wait for the end of processes after SIGKILL, and how long to sweep.
_KILL_TIMEOUT_SECONDS = 2.0

#: In the middle of an exec, the environment of a process cannot be seen. So this many sweeps in a
#: row must find nothing, with this pause between them.
_REQUIRED_MISSES, _SWEEP_INTERVAL_SECONDS = 3, 0.01

#: The first and the longest pause between two looks at whether processes have ended.
_MIN_POLL_SECONDS, _MAX_POLL_SECONDS = 0.001, 0.02


#: Processes, as `processes_before` returns them.
Processes = frozenset[tuple[int, int]]


def processes_before() -> Processes:
    """Return the processes that run now, which later searches need not look at."""
    return running_processes() if HAS_PROC else frozenset()


def sweep(name: str, value: str, earlier: Processes = frozenset()) -> list[int]:
    """Send SIGKILL to all processes whose environment has `name=value`, but not to this one.

    Parameters
    ----------
    name, value : str
        The environment variable.
    earlier : frozenset
        What `processes_before` returned before the value was used first.

    Returns
    -------
    list of int
        The processes that were sent SIGKILL.
    """
    return kill_carriers(name, value, _find_carriers(name, value, earlier))


def sweep_all(name: str, value: str) -> list[int]:
    """Sweep until no process is found; give up on processes that cannot be ended.

    Parameters
    ----------
    name, value : str
        The environment variable.

    Returns
    -------
    list of int
        The processes that were sent SIGKILL.
    """
    killed: set[int] = set()
    deadline = time.monotonic() + _KILL_TIMEOUT_SECONDS
    misses = 0
    while misses < _REQUIRED_MISSES and time.monotonic() < deadline:
        found = sweep(name, value)
        killed.update(found)
        misses = 0 if found else misses + 1
        if 0 < misses < _REQUIRED_MISSES:
            time.sleep(_SWEEP_INTERVAL_SECONDS)
    return sorted(killed)


def _find_carriers(name: str, value: str, earlier: Processes = frozenset()) -> Iterator[int]:
    return carriers(name, value, earlier) if HAS_PROC else _find_by_psutil(name, value)


def _find_by_psutil(name: str, value: str) -> Iterator[int]:
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if each.pid != os.getpid() and each.environ().get(name) == value:
                yield each.pid


def kill_tree(pid: int, marker: str, grace: float) -> None:
    """End a process and all its descendants, and wait until they have ended.

    The caller should not have waited for the process yet: as long as it is a zombie, no other
    process can get its number. If the process with this number is not a child of this one, and
    does not have the marker, then another process has got the number. It is left alone.

    Parameters
    ----------
    pid : int
        The process. If it leads a process group, the whole group is ended.
    marker : str
        The value of `MARKER` in its environment. All other processes that have this value are
        ended, too.
    grace : float
        How long they may take to end after SIGTERM; with 0 they receive only SIGKILL. Seconds.
    """
    root = _find_process(pid, marker)
    leads = root is not None and _leads_group(pid)
    tree: list[psutil.Process] = []
    if grace > 0:
        tree = _tree_processes(root, marker)
        _signal(tree, signal.SIGTERM)
        _wait(tree, grace)
    # Search again, for processes that were started since, or that had no parent in the tree.
    tree += _tree_processes(root, marker)
    tree += [found for each in set(tree) for found in _descendants(each)]
    _signal(tree, signal.SIGKILL)
    if leads and _find_process(pid, marker) == root:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    tree += _processes(sweep_all(MARKER, marker))
    _wait(tree, _KILL_TIMEOUT_SECONDS)


def _find_process(pid: int, marker: str) -> psutil.Process | None:
    """Return a process; None if another one has got its number since."""
    if pid <= 1 or pid == os.getpid():
        raise ValueError(f"{pid} is not a process that may be ended")
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        if process.ppid() == os.getpid() or process.environ().get(MARKER) == marker:
            return process
    return None


def _leads_group(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return os.getpgid(pid) == pid
    return False


def _tree_processes(root: psutil.Process | None, marker: str) -> list[psutil.Process]:
    """Return a process, its descendants, and all processes that have its marker.

    Parents come before their children: a shell that is sent SIGTERM after its child would
    first continue with its next command.
    """
    found = [] if root is None else [root, *_descendants(root)]
    marked = _processes(_find_carriers(MARKER, marker))
    return found + [each for each in marked if each not in found]


def _processes(pids: Iterable[int]) -> list[psutil.Process]:
    found = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(pid))
    return found


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    with contextlib.suppress(psutil.Error, OSError):
        return process.children(recursive=True)
    return []


def _signal(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    for each in processes:
        # psutil checks whether the number still belongs to the same process.
        with contextlib.suppress(psutil.Error, OSError):
            each.send_signal(number)


def _wait(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Wait until processes have ended; zombies have."""
    # Not by `psutil.wait_procs`: it reaps children, and other threads need their exit codes.
    deadline = time.monotonic() + seconds
    pause = _MIN_POLL_SECONDS
    running = [each for each in processes if not _has_ended(each)]
    while running and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, _MAX_POLL_SECONDS)
        running = [each for each in running if not _has_ended(each)]


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


@contextlib.contextmanager
def end_of(pid: int) -> Iterator[int | None]:
    """Yield a file descriptor that is readable once a process has ended.

    None where the system has no pidfd, or the process does not exist.
    """
    if not hasattr(os, "pidfd_open"):
        yield None
        return
    try:
        end = os.pidfd_open(pid)
    except OSError:
        yield None
        return
    try:
        yield end
    finally:
        os.close(end)
