"""Has the system end this process when the process that has started it ends.

The main thread of a new process calls it, before it starts other threads.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

#: The option of prctl(2) that has a process killed when its parent's thread ends.
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


def end_with_parent(parent: int) -> None:
    """Have the system kill this process when the thread that has started it ends.

    Parameters
    ----------
    parent : int
        The process of that thread. If it has ended already, this process ends at once.
    """
    with contextlib.suppress(AttributeError, OSError):
        if sys.platform == "linux":
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
