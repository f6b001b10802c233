"""Starts, reports and stops profilers of a worker and its children, for a driver.

Dask calls the coroutines on the worker's event loop. They do their work in other threads, so
that they do not block the loop.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import NamedTuple

from daskbatch.forking import after_fork, make_lock
from daskbatch.worker.profiling import child_profiles, profilers


class ProcessReport(NamedTuple):
    """The profile of one process.

    Parameters
    ----------
    process : str
        The name of the process. It is random, so that processes with equal ids on different
        machines, or in different containers, have different names.
    data : bytes or None
        The pickled profile; None if the process has not answered in time.
    """

    process: str
    data: bytes | None


_lock = make_lock()
_process_name = ""
#: How many workers this process has: several, if a cluster runs its workers in threads.
_workers = 0


@after_fork
def _forget_process() -> None:
    global _process_name, _workers
    _process_name, _workers = "", 0


def open_worker(directory: str) -> None:
    """Prepare for the profiling of a worker of this process, which has this local directory."""
    global _workers
    with _lock:
        _workers += 1
    child_profiles.set_parent_directory(directory)


def close_worker() -> None:
    """Stop all profilers if this process has no other worker; its children have ended."""
    global _workers
    with _lock:
        _workers -= 1
        if _workers > 0:
            return
    if profilers.active():
        profilers.stop_all()
    child_profiles.remove_directory()


async def start(kind: str, owner: str) -> None:
    """Start a profiler in this process; a child starts its own with its next task."""
    await asyncio.to_thread(profilers.start, kind, owner)


async def report(kind: str) -> list[ProcessReport]:
    """Return the profiles, measured so far, of this process and of its children."""
    return await asyncio.to_thread(_report, kind)


async def forget(owner: str) -> None:
    """Stop the profilers of an owner."""
    await asyncio.to_thread(_forget, owner)


def forget_later(owner: str) -> None:
    """Stop the profilers of an owner in a new thread, as those of a client that has ended."""
    if profilers.active():
        threading.Thread(target=_forget, args=(owner,), name="daskbatch-profile-end").start()
    else:
        profilers.forget(owner)


def _report(kind: str) -> list[ProcessReport]:
    global _process_name
    with _lock:
        _process_name = _process_name or os.urandom(16).hex()
    found = []
    own = profilers.report(kind)
    if own is not None:
        found.append(ProcessReport(_process_name, own))
    found += [ProcessReport(name, data) for name, data in child_profiles.reports(kind)]
    return found


def _forget(owner: str) -> None:
    profilers.forget(owner)
    child_profiles.forget(owner)
