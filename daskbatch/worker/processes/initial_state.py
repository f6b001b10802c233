"""Keeps settings of a worker's process as they were before any task could change them.

Tasks in threads share the working directory, the file mode creation mask (umask) and the standard
descriptors of the worker's process. What the worker starts for other tasks must not depend on what
a task has left there. Any thread may call any function; `record` is called once, at the start.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
from pathlib import Path

#: The mask and the directory; None until they are recorded.
_umask: int | None = None
_directory: str | None = None
#: The signals that are blocked in threads that have not run a task.
_signal_mask: set[signal.Signals] = set()
#: Duplicates of the standard descriptors.
_standard: dict[int, int] = {}


def record() -> None:
    """Record the settings of this process; called before it runs any task."""
    global _umask, _directory, _signal_mask
    _signal_mask = signal_mask()
    _umask = read_umask()
    with contextlib.suppress(OSError):
        _directory = os.getcwd()
    for number in range(3):
        if number not in _standard:
            with contextlib.suppress(OSError):
                _standard[number] = fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, 3)


def read_umask() -> int:
    """Return the mask of this process, without a moment at which it is another one."""
    with contextlib.suppress(OSError, IndexError, ValueError):
        status = Path("/proc/self/status").read_text()
        return int(status.partition("Umask:")[2].split(maxsplit=1)[0], 8)
    mask = os.umask(0o077)  # elsewhere it can be read only by setting it
    os.umask(mask)
    return mask


def umask() -> int:
    """Return the mask for a process that is started; -1, as `subprocess` has it, if unknown."""
    return -1 if _umask is None else _umask


def directory() -> str | None:
    """Return the directory for a process that is started; None for the one of this process."""
    return _directory if _directory is not None and os.path.isdir(_directory) else None


def open_standard_descriptors() -> None:
    """Open the descriptors 0, 1 and 2 again where a task has closed them.

    Otherwise the next file or socket would get one of these numbers, and what any code prints
    would be written there.
    """
    for number in range(3):
        try:
            os.get_inheritable(number)  # the quickest way to ask for an open descriptor
        except OSError:
            if number in _standard:
                os.dup2(_standard[number], number)
                continue
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)


def restore_signal_mask() -> None:
    """Block no other signals in this thread than before it ran tasks."""
    if signal.pthread_sigmask(signal.SIG_BLOCK, ()) != _signal_mask:
        signal.pthread_sigmask(signal.SIG_SETMASK, _signal_mask)


def signal_mask() -> set[signal.Signals]:
    """Return which signals are blocked in this thread."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())  # type: ignore[return-value]


def set_signal_mask(mask: set[signal.Signals]) -> None:
    """Block exactly these signals in this thread."""
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
