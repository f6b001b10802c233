"""Places machine code in the memory of this process.

Only Linux with x86-64 and an interpreter with a lock run it: whoever loads code needs another way
for all else. Any thread may call.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys

from daskbatch.memory.libc import call


def load(code: bytes) -> int:
    """Return the address of some code, from which it can be called.

    Parameters
    ----------
    code : bytes
        At most 4096, for x86-64 as Linux calls functions, and independent of where it stands. Its
        memory is never freed.

    Raises
    ------
    OSError
        This machine, system or interpreter does not run it.
    """
    if sys.platform != "linux" or os.uname().machine != "x86_64" or mmap.PAGESIZE != 4096:
        raise OSError("the code is for other machines")
    if sys.maxsize < 1 << 32 or not getattr(sys, "_is_gil_enabled", lambda: True)():
        raise OSError("the code is for other interpreters")
    protection, flags = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address: int = call("mmap", None, mmap.PAGESIZE, protection, flags, -1, 0)
    ctypes.memmove(address, code, len(code))
    call("mprotect", address, mmap.PAGESIZE, mmap.PROT_READ | mmap.PROT_EXEC)
    return address
