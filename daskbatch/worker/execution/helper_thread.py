"""Does what must not be stopped halfway, in a thread that nobody stops.

Does not know what that is. Who waits for it may be stopped by an exception that another thread
throws, at any moment; so there are only locks and queues here that are written in C.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from queue import SimpleQueue

_logger = logging.getLogger(__name__)


class HelperThread:
    """A thread that does one thing after another for others."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], None], threading.Lock]] = SimpleQueue()
        threading.Thread(target=self._work, name="daskbatch-errands", daemon=True).start()

    def do(self, function: Callable[[], None]) -> None:
        """Have something done, and wait for it; it is done though the wait is stopped."""
        over = threading.Lock()
        over.acquire()
        self._queue.put((function, over))
        over.acquire()

    def _work(self) -> None:
        while True:
            function, over = self._queue.get()
            try:
                function()
            except Exception:
                _logger.exception("a slot of this worker could not be given back or asked for")
            over.release()
            del function, over


_errands: HelperThread | None = None
_making = threading.Lock()


def errands() -> HelperThread:
    """Give the one that this process has."""
    global _errands
    with _making:
        if _errands is None:
            _errands = HelperThread()
        return _errands


def _forget() -> None:
    """Have none: its thread is the parent's."""
    global _errands, _making
    _errands, _making = None, threading.Lock()


os.register_at_fork(after_in_child=_forget)
