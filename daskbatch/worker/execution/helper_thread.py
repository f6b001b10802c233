"""Runs operations that must not be interrupted halfway, in a helper thread.

The calling thread may be interrupted, by an exception that another thread throws, at any bytecode.
So it uses only locks and queues that are implemented in C.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from daskbatch.forking import after_fork, make_lock

_logger = logging.getLogger(__name__)


class HelperThread:
    """A thread that runs functions, one after another. Safe for any number of threads."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Callable[[], None], threading.Lock]] = SimpleQueue()
        threading.Thread(target=self._work, name="daskbatch-helper", daemon=True).start()

    def run(self, function: Callable[[], None]) -> None:
        """Run a function and wait for it; it is run completely even if the wait is interrupted.

        An exception of the function is logged.
        """
        done = threading.Lock()
        done.acquire()
        self._queue.put((function, done))
        done.acquire()

    def _work(self) -> None:
        while True:
            function, done = self._queue.get()
            try:
                function()
            except Exception:
                _logger.exception("a slot of this worker could not be released or requested")
            done.release()
            del function, done


#: The helper thread of this process, once there is one.
_helper: HelperThread | None = None
_helper_lock = make_lock()


def get_helper_thread() -> HelperThread:
    """Return the helper thread of this process."""
    global _helper
    with _helper_lock:
        if _helper is None:
            _helper = HelperThread()
        return _helper


@after_fork
def _forget_helper() -> None:
    """Forget the parent's helper thread, which does not exist in a forked process."""
    global _helper
    _helper = None
