"""Threads that run work which may block, so that the thread of a scheduler does not block.

Any thread may submit work to them.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

_logger = logging.getLogger("daskbatch")

Work = Callable[[], object]


class HelperThreads:
    """A pool of threads with one thread for each unfinished piece of work.

    Threads are started when they are needed and kept until `close`. Any thread may use the pool.

    Parameters
    ----------
    name : str
        The name of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._work: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        #: The number of threads, and the number of pieces of work that wait or run.
        self._threads = 0
        self._busy = 0
        self._closed = False

    def do(self, work: Work) -> None:
        """Run a function in a helper thread; do nothing after `close`."""
        with self._lock:
            if self._closed:
                return
            self._busy += 1
            more = self._busy > self._threads
            self._threads += more
        if more:
            # Daemon threads: user code that blocks must not delay the exit of the interpreter.
            threading.Thread(target=self._run, name=self._name, daemon=True).start()
        self._work.put(work)

    def close(self) -> None:
        """Let the threads end after their submitted work; do not wait for that."""
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
                _logger.exception(
                    "a helper thread of a job met an exception; this is a bug in daskbatch"
                )
            del work
            with self._lock:
                self._busy -= 1
