"""Threads that do what may be held up, so that the thread of a scheduler is not.

Any thread may hand work to them.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

_logger = logging.getLogger("daskbatch")

Work = Callable[[], object]


class HelperThreads:
    """As many threads as there is work at a time; they are kept until `close`.

    Parameters
    ----------
    name : str
        What the threads are called.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        #: How many threads there are, and how much work is waiting or under way.
        self._threads = 0
        self._busy = 0
        self._closed = False

    def do(self, work: Work) -> None:
        """Have something done soon; nothing after `close`."""
        with self._lock:
            if self._closed:
                return
            self._busy += 1
            more = self._busy > self._threads
            self._threads += more
        if more:
            # Daemons: what the user's code waits for must not hold up the interpreter's end.
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        self._work.put(work)

    def close(self) -> None:
        """End the threads once they have done their work, without waiting for that."""
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in range(threads):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                work()
            except BaseException:
                _logger.exception("a helper thread of a job met an error; this is a bug")
            del work
            with self._lock:
                self._busy -= 1
