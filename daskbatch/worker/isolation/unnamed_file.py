"""Makes files without a name, in memory where possible; processes share them by descriptor.

Safe for any number of threads. The caller closes the descriptors.
"""

from __future__ import annotations

import os

#: The most that is written with one system call.
_WRITE_BYTES = 1 << 30


def new_file() -> int:
    """Return the descriptor of a new file that has no name."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("daskbatch")
    import tempfile  # not at the top: a child starts faster without it

    file, path = tempfile.mkstemp(prefix="daskbatch-")
    os.unlink(path)
    return file


def write_file(file: int, data: bytes | memoryview) -> None:
    """Write all of the data to a file, however many system calls that takes."""
    with memoryview(data) as view:
        done = 0
        while done < len(view):
            done += os.write(file, view[done : done + _WRITE_BYTES])
