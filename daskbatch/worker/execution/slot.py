"""A slot of a worker: a place among the threads of its pool, to be left and taken again.

Does not know tasks. It does to Dask's pool what Dask's `secede` and `rejoin` do, but from any
thread, and without being held up: whoever waits for a slot must be able to be stopped.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class PoolSlot:
    """The place that the thread which makes this has in its pool.

    Parameters
    ----------
    pool : distributed.threadpoolexecutor.ThreadPoolExecutor
        The pool.
    lock : threading.Lock
        Held while the set of its threads is changed.
    given : callable
        Called whenever the slot has been given back.
    do : callable
        Does something in a thread that is not stopped: the task is, at any moment, and its pool
        would count a thread that never came, say.
    """

    def __init__(
        self,
        pool: Any,
        lock: threading.Lock,
        given: Callable[[], None],
        do: Callable[[Callable[[], None]], None],
    ) -> None:
        self._pool = pool
        self._threads_lock = lock
        self._given = given
        self._do = do
        self._thread = threading.current_thread()
        self._guard = threading.Lock()
        self._asked: threading.Event | None = None
        self._over = False

    def give(self) -> None:
        """Leave the pool, which may start another thread."""
        self._do(self._give)

    def _give(self) -> None:
        with self._guard:
            if self._over:
                return
            self._withdraw()
            with self._threads_lock:
                if self._thread not in self._pool._threads:
                    return
                self._pool._threads.remove(self._thread)
                self._pool._adjust_thread_count()
        self._given()

    def ask(self) -> None:
        """Get in line: the next thread of the pool that has nothing to do makes way."""
        self._do(self._ask)

    def _ask(self) -> None:
        with self._guard:
            if self._over or self._asked is not None or self._is_in():
                return
            self._asked = threading.Event()
            with self._pool._rejoin_lock:
                self._pool._rejoin_list.append((self._thread, self._asked))
            try:
                self._pool.submit(_nothing)
            except RuntimeError:
                # The worker closes: there is nothing to wait for.
                self._over = True

    def has(self) -> bool:
        """Say whether it is in the pool; or will never be again."""
        return self._over or (self._asked.is_set() if self._asked is not None else self._is_in())

    def finish(self) -> bool:
        """Say, at the end, whether the thread is one of the pool; it asks no more."""
        with self._guard:
            self._withdraw()
            self._over = True
            return self._is_in()

    def _is_in(self) -> bool:
        return self._thread in self._pool._threads

    def _withdraw(self) -> None:
        if self._asked is not None:
            asked, self._asked = self._asked, None
            with self._pool._rejoin_lock:
                if not asked.is_set():
                    self._pool._rejoin_list.remove((self._thread, asked))


class NoSlot:
    """Where threads cannot be exchanged: who waits keeps the thread."""

    def give(self) -> None:
        pass

    def ask(self) -> None:
        pass

    def has(self) -> bool:
        return True


def _nothing() -> None:
    pass
