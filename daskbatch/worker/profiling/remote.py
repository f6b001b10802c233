"""Starts, reports and stops profilers of a worker and its children, for a driver.

Dask calls the coroutines on the worker's event loop. They do their work in other threads, so
that they do not block the loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import NamedTuple

from daskbatch.worker.profiling import child_profiles, profilers


class ProcessReport(NamedTuple):
    """The profile of one process.

    Parameters
    ----------
    host, pid : str, int
        The name of the machine, and the id of the process.
    data : bytes
        The pickled profile.
    """

    host: str
    pid: int
    data: bytes


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
    """Stop the profilers of an owner in a new thread. If no profiler runs, do nothing."""
    if profilers.active():
        threading.Thread(target=_forget, args=(owner,), name="daskbatch-profile-end").start()


def _report(kind: str) -> list[ProcessReport]:
    host = socket.gethostname()
    found = []
    own = profilers.report(kind)
    if own is not None:
        found.append(ProcessReport(host, os.getpid(), own))
    found += [ProcessReport(host, pid, data) for pid, data in child_profiles.reports(kind)]
    return found


def _forget(owner: str) -> None:
    profilers.forget(owner)
    child_profiles.forget(owner)
