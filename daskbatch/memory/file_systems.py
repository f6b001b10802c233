"""Tells whether the file system of a directory keeps the space that was allocated for a file.

A process may write through a mapping only to a file that has its space: else it is killed (SIGBUS)
when the disk is full. ext4, xfs and tmpfs keep what was allocated. A file system that copies on
write (btrfs, bcachefs, ZFS, nilfs2) writes each change to new space. A network file system (NFS,
Lustre, GPFS) may find out that there is no space only when it sends what was written. So only file
systems that are known to keep allocated space count; any other one does not. Any thread may call.
"""

from __future__ import annotations

import contextlib
import os
import struct
import sys
import tempfile
from pathlib import Path

from daskbatch.memory.libc import call

#: The file systems that keep what was allocated, by the number that statfs(2) returns for each:
#: ext2 to ext4, xfs, tmpfs, ramfs.
_KEEPING = frozenset({0xEF53, 0x58465342, 0x01021994, 0x858458F6})

#: A file system of containers, whose files are in the file system of another directory.
_OVERLAY = 0x794C7630

#: The size of a buffer that is large enough for the result of statfs(2), and the type of its first
#: field on Linux.
_STATFS_BYTES = 512
_KIND = struct.Struct("=I" if os.uname().machine == "s390x" else "l")

#: The requests of ioctl(2) on Linux that read and write the flags of a file, and the flag that has
#: it changed in place. Only file systems that copy on write accept this flag.
_GET_FLAGS, _SET_FLAGS, _CHANGE_IN_PLACE = 0x80086601, 0x40086602, 0x00800000


def keeps_allocated_space(directory: Path) -> bool:
    """Return whether files in a directory keep the space that was allocated for them.

    On a system other than Linux the answer is always True: nobody can say it there.

    Parameters
    ----------
    directory : Path
        An existing directory. In a container's own file system, a file without a name is made in
        it for a moment.

    Raises
    ------
    OSError
        The directory does not exist, or no file can be made in it.
    """
    if sys.platform != "linux":
        return True
    kind = _kind_of(directory)
    if kind == _OVERLAY:
        with tempfile.TemporaryFile(dir=directory) as file:
            return not _accepts_change_in_place(file.fileno())
    return kind in _KEEPING


def _kind_of(directory: Path) -> int:
    """Return the number by which the system knows the file system of a directory."""
    import ctypes  # not at the top: a child starts faster without it

    found = ctypes.create_string_buffer(_STATFS_BYTES)
    call("statfs", os.fsencode(directory), found)
    kind: int = _KIND.unpack_from(found)[0]
    return kind & 0xFFFFFFFF


def _accepts_change_in_place(file: int) -> bool:
    """Return whether the file system of an empty file copies on write unless a flag forbids it."""
    import fcntl

    with contextlib.suppress(OSError):  # most file systems do not know this flag
        (flags,) = struct.unpack("l", fcntl.ioctl(file, _GET_FLAGS, bytes(8)))
        fcntl.ioctl(file, _SET_FLAGS, struct.pack("l", flags | _CHANGE_IN_PLACE))
        return True
    return False
