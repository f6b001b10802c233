"""Threads that run work which may block, so that the thread of a scheduler does not block.

Any thread may submit work to them.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Callable
from typing import Any

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
        """Run a function in a helper thread; after `close`, in a thread that ends with it."""
        with self._lock:
            closed = self._closed
            if not closed:
                self._busy += 1
                more = self._busy > self._threads
                self._threads += more
        if closed:
            with contextlib.suppress(RuntimeError):  # the interpreter ends
                self._start(_run, work)
            return
        if more:
            self._start(self._run_all)
        self._work.put(work)

    def close(self) -> None:
        """Let the threads end after their submitted work; do not wait for that."""
        with self._lock:
            self._closed = True
            threads = self._threads
        for _ in range(threads):
            self._work.put(None)

    def _start(self, target: Callable[..., object], *args: Any) -> None:
        # Daemon threads: user code that blocks must not delay the exit of the interpreter.
        threading.Thread(target=target, args=args, name=self._name, daemon=True).start()

    def _run_all(self) -> None:
        while (work := self._work.get()) is not None:
            _run(work)
            del work
            with self._lock:
                self._busy -= 1


def _run(work: Work) -> None:
    try:
        work()
    except BaseException:
        _logger.exception("a helper thread of a job met an exception; this is a bug in daskbatch")
