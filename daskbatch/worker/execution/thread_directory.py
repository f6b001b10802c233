"""Gives the thread of a block the working directory of its Batch.

A process has one working directory for all of its threads, but on Linux a thread can leave that
and have one for itself: `unshare(CLONE_FS)` of unshare(2), which needs no privilege. Threads that
it starts from then on share it. Where the system refuses that (macOS, and the seccomp profile of
some containers), the whole process changes its directory while blocks run, and blocks of another
directory fail meanwhile. Each function is to be called by the thread that it is for.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import socket
import threading

from daskbatch.forking import make_lock
from daskbatch.serialization.exceptions import unusable_directory_error

#: `CLONE_FS` of <sched.h>.
_CLONE_FS = 0x200

#: The directory of the main thread, which is that of the threads that have not left it.
_OF_PROCESS = "/proc/self/cwd"

#: Where threads cannot have directories: the one that blocks have set, how many of them run, and
#: the one to which the last of them returns.
_lock = make_lock()
_shared: str | None = None
_users = 0
_before: int | None = None


def enter(directory: str) -> bool:
    """Change the directory of this thread; False if it has it already.

    Parameters
    ----------
    directory : str
        The directory, as `os.getcwd` returns it.

    Raises
    ------
    OSError
        The directory cannot be entered. The message names the host and the directory.
    """
    try:
        if not _threads_have_directories():
            _enter_together(directory)
            return True
        with contextlib.suppress(OSError):  # the present directory may be gone
            if os.getcwd() == directory:
                return False
        _leave_process()
        os.chdir(directory)
    except OSError as error:
        if error.filename is None:
            raise
        raise unusable_directory_error("the Batch's directory", error) from None
    return True


def leave() -> None:
    """Return to the directory of the process, after an `enter` that returned True."""
    if not _threads_have_directories():
        _leave_together()
        return
    # Again: threads that the block has started share the directory of this one, and keep it.
    _leave_process()
    with contextlib.suppress(OSError):  # the directory of the process is gone
        os.chdir(_OF_PROCESS)


def _leave_process() -> bool:
    """Let this thread have a directory for itself; False if the system refuses that."""
    try:
        return os.path.exists(_OF_PROCESS) and ctypes.CDLL(None).unshare(_CLONE_FS) == 0
    except AttributeError:  # not Linux
        return False


@functools.cache
def _threads_have_directories() -> bool:
    """Return whether a thread can have a directory for itself; a thread tries it."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(_leave_process()))
    thread.start()
    thread.join()
    return answers == [True]


def _enter_together(directory: str) -> None:
    """Change the directory of the process."""
    global _shared, _users, _before
    with _lock:
        if _users and _shared != directory:
            raise OSError(
                errno.EBUSY,
                f"on the host {socket.gethostname()} a thread cannot have a directory for "
                f"itself, and tasks run in {_shared!r} now, so this one cannot run in "
                f'{directory!r}: use options(isolation="process"), or start the workers there',
            )
        if not _users:
            with contextlib.suppress(OSError):
                _before = os.open(".", os.O_RDONLY)
            try:
                os.chdir(directory)
            except OSError:
                _close_before()
                raise
        _shared, _users = directory, _users + 1


def _leave_together() -> None:
    global _shared, _users
    with _lock:
        _users -= 1
        if not _users:
            _shared = None
            if _before is not None:
                with contextlib.suppress(OSError):
                    os.fchdir(_before)
            _close_before()


def _close_before() -> None:
    global _before
    if _before is not None:
        os.close(_before)
        _before = None
