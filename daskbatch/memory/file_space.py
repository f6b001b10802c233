"""Allocates the space of a file before the file is mapped.

A file that was only made longer has no space on disk. A process that writes to such a part through
a mapping is killed (SIGBUS) if the disk, or the user's quota, is full by then. Not every file
system keeps what was allocated: `file_systems.py` tells which do. Any thread may call.
"""

from __future__ import annotations

import errno
import os

#: How much is written with one system call.
_WRITE_BYTES = 1 << 20

#: What `posix_fallocate` reports where the file system cannot allocate.
_UNSUPPORTED = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def allocate(file: int, begin: int, end: int) -> None:
    """Allocate the space of a part of a file, which is longer afterwards if it ends in it.

    Parameters
    ----------
    file : int
        The descriptor.
    begin, end : int
        The part. Nothing was written to it before: it is full of zeros afterwards.

    Raises
    ------
    OSError
        There is no space. The file may be longer than before.
    """
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
