"""Calls functions of the C library that Python does not offer.

Any number of threads may call; `call` raises OSError if the function fails.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import Any

#: Without it, a system that counts what processes might use would refuse large mappings.
MAP_NORESERVE = 0x4000

#: Advice for `madvise`: a forked child does not have the pages; map the pages that exist (Linux
#: 5.14).
MADV_DONTFORK, MADV_POPULATE_READ = 10, 22

#: The mapping replaces what is mapped at the given address.
MAP_FIXED = 0x10

#: What `mmap` returns if it fails.
_MAP_FAILED = (1 << 64) - 1


@lru_cache(maxsize=1)
def libc() -> Any:
    """Return the library, with the types of the functions that are used here."""
    import ctypes  # not at the top: a child starts faster without it

    library = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    library.mmap.restype = pointer
    library.mmap.argtypes = (pointer, size, number, number, number, ctypes.c_int64)
    library.munmap.argtypes = (pointer, size)
    library.madvise.argtypes = (pointer, size, number)
    library.memcpy.argtypes = (pointer, pointer, size)
    library.memcmp.argtypes = (pointer, pointer, size)
    library.mprotect.argtypes = (pointer, size, number)
    if hasattr(library, "fallocate"):
        library.fallocate.argtypes = (number, number, ctypes.c_int64, ctypes.c_int64)
    return library


def call(name: str, *args: Any) -> Any:
    """Call a function that returns -1 if it fails.

    Raises
    ------
    OSError
        It has failed.
    """
    import ctypes

    result = getattr(libc(), name)(*args)
    if result == -1 or result is None or result == _MAP_FAILED:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
