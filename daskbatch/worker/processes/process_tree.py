"""Ends processes with all that they have started, also what has left their tree.

Does not know tasks: a tree is named by a process and by a value that it carries in its
environment. Only what cleans its environment and leaves the tree too is not found.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable, Iterator

import psutil

from daskbatch.worker.processes.reaper import HAS_PROC, MARKER, OWNER, carriers, kill_carriers

__all__ = ["MARKER", "OWNER", "end_of", "kill_tree", "sweep", "sweep_all"]

#: How long is waited for what was sent SIGKILL, and how long sweeps go on. Seconds.
_PATIENCE = 2.0

#: A process within an exec shows no environment for a moment: so many sweeps in a row must
#: find nothing, with a pause between. Seconds.
_MISSES, _PAUSE = 3, 0.01

#: How often is looked whether processes have ended: soon at first, then less often. Seconds.
_FIRST_POLL, _LAST_POLL = 0.001, 0.02


def sweep(name: str, value: str) -> list[int]:
    """Send SIGKILL to every process whose environment holds `name=value`, but to this one.

    Parameters
    ----------
    name, value : str
        The environment variable.

    Returns
    -------
    list of int
        The processes that it was sent to.
    """
    return kill_carriers(name, value, _find(name, value))


def sweep_all(name: str, value: str) -> list[int]:
    """Sweep until there is nothing left to find; gives up on what cannot be ended.

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
    deadline = time.monotonic() + _PATIENCE
    misses = 0
    while misses < _MISSES and time.monotonic() < deadline:
        found = sweep(name, value)
        killed.update(found)
        misses = 0 if found else misses + 1
        if 0 < misses < _MISSES:
            time.sleep(_PAUSE)
    return sorted(killed)


def _find(name: str, value: str) -> Iterator[int]:
    return carriers(name, value) if HAS_PROC else _find_by_psutil(name, value)


def _find_by_psutil(name: str, value: str) -> Iterator[int]:
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if each.pid != os.getpid() and each.environ().get(name) == value:
                yield each.pid


def kill_tree(pid: int, marker: str, grace: float) -> None:
    """End a process and all its descendants, and wait until they have ended.

    The process should not have been waited for yet, so that its number still means it. If
    it is neither a child of this process nor carries the marker, it is taken for another
    one that has got the number since, and is left alone.

    Parameters
    ----------
    pid : int
        The process. If it leads a process group, its whole group is meant.
    marker : str
        What `MARKER` says in its environment: everything else that carries it is meant too.
    grace : float
        How many seconds are left to them after SIGTERM; with 0 there is but SIGKILL.
    """
    root = _ours(pid, marker)
    leads = root is not None and _leads_group(pid)
    tree: list[psutil.Process] = []
    if grace > 0:
        tree = _members(root, marker)
        _signal(tree, signal.SIGTERM)
        _wait(tree, grace)
    # Again: what they have started since, and what had no parent in the tree before.
    tree += _members(root, marker)
    tree += [found for each in set(tree) for found in _descendants(each)]
    _signal(tree, signal.SIGKILL)
    if leads and _ours(pid, marker) == root:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
    tree += _processes(sweep_all(MARKER, marker))
    _wait(tree, _PATIENCE)


def _ours(pid: int, marker: str) -> psutil.Process | None:
    """Give a process, unless its number has come to mean another one."""
    if pid <= 1 or pid == os.getpid():
        raise ValueError(f"process {pid} is not one to end")
    with contextlib.suppress(psutil.Error, OSError):
        process = psutil.Process(pid)
        if process.ppid() == os.getpid() or process.environ().get(MARKER) == marker:
            return process
    return None


def _leads_group(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return os.getpgid(pid) == pid
    return False


def _members(root: psutil.Process | None, marker: str) -> list[psutil.Process]:
    """Find a process, what descends from it, and what carries its marker.

    Parents come before their children: a shell that is told after its child that it is to
    end would first go on with the next command.
    """
    members = [] if root is None else [root, *_descendants(root)]
    return members + [each for each in _processes(_find(MARKER, marker)) if each not in members]


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
        # It looks itself whether the number still means the same process.
        with contextlib.suppress(psutil.Error, OSError):
            each.send_signal(number)


def _wait(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Wait until processes have ended; that somebody has waited for them is not needed."""
    # Not by `psutil.wait_procs`: it takes the exit codes away from whoever has started them.
    deadline = time.monotonic() + seconds
    pause = _FIRST_POLL
    left = [each for each in processes if not _has_ended(each)]
    while left and time.monotonic() < deadline:
        time.sleep(pause)
        pause = min(2 * pause, _LAST_POLL)
        left = [each for each in left if not _has_ended(each)]


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.Error:
        return True


@contextlib.contextmanager
def end_of(pid: int) -> Iterator[int | None]:
    """Give a file descriptor that is readable once a process has ended, where there are such."""
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
