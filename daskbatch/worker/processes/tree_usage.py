"""Reads what a process and all that it has started use at the moment.

It reads `/proc`; on a system without it, psutil answers. Any thread may call the functions.
"""

from __future__ import annotations

import contextlib
import os
from typing import NamedTuple

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

#: The fields of `/proc/<pid>/stat` behind the name: the times of the process and of the children
#: that it has waited for, and its resident memory in pages.
_FIRST_TIME, _LAST_TIME, _RESIDENT = 11, 15, 21


class TreeUsage(NamedTuple):
    """What a process and all that it has started use.

    Parameters
    ----------
    cpu_seconds : float
        Their processor time so far, with that of the children that they have waited for.
    memory : int
        The sum of their resident memory. Bytes.
    """

    cpu_seconds: float = 0.0
    memory: int = 0


def read_tree(pid: int) -> TreeUsage:
    """Return what a process and all that it has started use; zeros if it has ended."""
    if not os.path.isdir("/proc/self"):
        return _read_by_psutil(pid)
    cpu, memory = 0.0, 0
    remaining = [pid]
    for each in remaining:
        used = _read_stat(each)
        cpu += used.cpu_seconds
        memory += used.memory
        remaining += _children(each)
    return TreeUsage(cpu, memory)


def peak_memory(pid: int) -> int:
    """Return the peak of a process's own resident memory so far; 0 if it is not known. Bytes."""
    found = _read(pid, "status").partition(b"VmHWM:")[2].split(None, 1)
    return int(found[0]) * 1024 if found else 0


def _read_stat(pid: int) -> TreeUsage:
    # The name, in brackets, may contain anything.
    fields = _read(pid, "stat").rpartition(b")")[2].split()
    if not fields:
        return TreeUsage()
    ticks = sum(map(int, fields[_FIRST_TIME:_LAST_TIME]))
    return TreeUsage(ticks / _TICKS_PER_SECOND, int(fields[_RESIDENT]) * _PAGE_BYTES)


def _read(pid: int, name: str) -> bytes:
    """Return a file of a process in `/proc`; nothing if the process has ended."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/{name}", "rb") as file:
        return file.read()
    return b""


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{thread}/children") as file:
                found += map(int, file.read().split())
    return found


def _read_by_psutil(pid: int) -> TreeUsage:
    import psutil  # not at the top: a child starts faster without it

    cpu, memory = 0.0, 0
    with contextlib.suppress(psutil.Error):
        process = psutil.Process(pid)
        for each in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                times = each.cpu_times()
                cpu += times.user + times.system
                memory += each.memory_info().rss
    return TreeUsage(cpu, memory)
