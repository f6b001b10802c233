"""What a worker does for a driver that profiles: start, report and stop, with its children.

Dask calls these on the worker's event loop, which they do not hold up.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from typing import NamedTuple

from daskbatch.worker.profiling import child_profiles, profilers


class ProcessReport(NamedTuple):
    """What a profiler has found in a process.

    Parameters
    ----------
    host, pid : str, int
        The process.
    data : bytes
        What it has found, pickled.
    """

    host: str
    pid: int
    data: bytes


async def start(kind: str, owner: str) -> None:
    """Start a profiler in this process, and in its children as they get tasks."""
    await asyncio.to_thread(profilers.start, kind, owner)


async def report(kind: str) -> list[ProcessReport]:
    """Return what the profilers of this process and of its children have found so far."""
    return await asyncio.to_thread(_report, kind)


async def forget(owner: str) -> None:
    """Stop what belongs to an owner."""
    await asyncio.to_thread(_forget, owner)


def forget_later(owner: str) -> None:
    """Stop what belongs to owners, without waiting for that; nothing if there is nothing."""
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
