"""Records that this process was told to end, by SIGTERM.

A batch system sends the signal to the processes of tasks, too. A task that ends by it has not
failed: its worker leaves. Any thread may use this; the module imports nothing of Dask.
"""

from __future__ import annotations

import signal
import threading

#: How long the signal may take to arrive at this process, after it has ended another one.
_ARRIVAL_SECONDS = 0.5

#: Set once this process has got SIGTERM.
told_to_end = threading.Event()

#: Whether this process notices SIGTERM; if not, nothing waits for it.
_notices = threading.Event()


def notice_sigterm() -> None:
    """Record that this process has a handler of SIGTERM, which sets `told_to_end`."""
    _notices.set()


def ended_with_worker(code: object) -> bool:
    """Return whether a process has ended by the signal that this process got as well.

    Parameters
    ----------
    code : object
        Its exit code; negative for a signal.
    """
    if code != -signal.SIGTERM or not _notices.is_set():
        return False
    return told_to_end.wait(_ARRIVAL_SECONDS)
