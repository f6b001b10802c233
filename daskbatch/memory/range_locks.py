"""Locks ranges of a file for an *open file description*, and not for a process.

A description exists as long as any descriptor or any mapping that was made from it. So a reader
that locks a range, maps it and closes its descriptor holds the lock exactly as long as the mapping
exists, in whatever process, and the kernel releases the lock if that process is killed. Any number
of threads may call all functions.
"""

from __future__ import annotations

import fcntl
import struct

#: The C type `struct flock` on Linux with 64-bit offsets: type, whence, start, length, pid.
_FLOCK = struct.Struct("hhqqi4x")

# Absent on systems other than Linux, where `host.host_id` is empty, and no range is locked.
_TRY = getattr(fcntl, "F_OFD_SETLK", -1)
_WAIT = getattr(fcntl, "F_OFD_SETLKW", -1)


def lock_shared(file: int, start: int, length: int) -> None:
    """Lock a range for reading; waits while another description has it locked for writing."""
    fcntl.fcntl(file, _WAIT, _FLOCK.pack(fcntl.F_RDLCK, 0, start, length, 0))


def lock(file: int, start: int, length: int) -> None:
    """Lock a range for writing; waits while another description has locked a part of it."""
    fcntl.fcntl(file, _WAIT, _FLOCK.pack(fcntl.F_WRLCK, 0, start, length, 0))


def try_lock(file: int, start: int, length: int) -> bool:
    """Lock a range for writing; False if another description has locked a part of it."""
    try:
        fcntl.fcntl(file, _TRY, _FLOCK.pack(fcntl.F_WRLCK, 0, start, length, 0))
    except BlockingIOError:
        return False
    return True


def unlock(file: int, start: int, length: int) -> None:
    """Release what this description has locked of a range."""
    fcntl.fcntl(file, _TRY, _FLOCK.pack(fcntl.F_UNLCK, 0, start, length, 0))
