"""Identifies the host of this process, for processes that want to share memory with it.

Any number of threads may call it; it raises nothing.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from daskbatch.memory import range_locks


@lru_cache(maxsize=1)
def host_id() -> str:
    """Return a text that is equal in two processes if each can open the other's memory files.

    They run under one kernel, see each other in ``/proc``, and belong to one user. The text is
    empty where memory cannot be shared in this way: then values travel as bytes.
    """
    try:
        if not _can_share():
            return ""
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except (OSError, AttributeError):
        return ""
    return f"{boot}/{namespace}/{os.geteuid()}"


def _can_share() -> bool:
    """Return whether the system has memory files, opens them again, and locks ranges of them."""
    file = os.memfd_create("daskbatch-probe", os.MFD_CLOEXEC)
    try:
        again = os.open(f"/proc/self/fd/{file}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            range_locks.lock_shared(again, 0, 1)
            return not range_locks.try_lock(file, 0, 1)
        finally:
            os.close(again)
    finally:
        os.close(file)
