"""Allocates the space of a file before the file is mapped.

A file that was only made longer has no space on disk. A process that writes to such a part through
a mapping is killed (SIGBUS) if the disk, or the user's quota, is full by then. A file system that
copies on write, as btrfs does, writes each change to new space unless a flag of the file forbids
it, and takes this flag only while the file is empty. Any thread may call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
import sys

#: How much is written with one system call.
_WRITE_BYTES = 1 << 20

#: What `posix_fallocate` reports where the file system cannot allocate.
_UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)

#: The requests of ioctl(2) on Linux that read and write the flags of a file, and the flag that has
#: it changed in place.
_GET_FLAGS, _SET_FLAGS, _CHANGE_IN_PLACE = 0x80086601, 0x40086602, 0x00800000


def allocate(file: int, begin: int, end: int) -> None:
    """Allocate the space of a part of a file, which is longer afterwards if it ends in it.

    Parameters
    ----------
    file : int
        The descriptor.
    begin, end : int
        The part. Nothing was written to it before: it is full of zeros afterwards. The first part
        of a file is allocated while the file is empty.

    Raises
    ------
    OSError
        There is no space. The file may be longer than before.
    """
    if not begin:
        _have_changed_in_place(file)
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, begin, end - begin)
            return
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
    zeros = bytes(min(end - begin, _WRITE_BYTES))
    while begin < end:
        begin += os.pwrite(file, zeros[: end - begin], begin)


def _have_changed_in_place(file: int) -> None:
    """Have a file system that copies on write change an empty file in place, if it can."""
    if sys.platform != "linux":
        return
    import fcntl

    with contextlib.suppress(OSError):  # most file systems do not know this flag
        (flags,) = struct.unpack("l", fcntl.ioctl(file, _GET_FLAGS, bytes(8)))
        fcntl.ioctl(file, _SET_FLAGS, struct.pack("l", flags | _CHANGE_IN_PLACE))
