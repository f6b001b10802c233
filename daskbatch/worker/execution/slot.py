"""Releases and regains a worker's slot: the place of a task's thread in Dask's pool.

This does to Dask's thread pool what Dask's `secede` and `rejoin` do, but for any thread, and
without blocking: it must be possible to stop a task that waits for a slot. Safe for any number of
threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any


class Rejoining:
    """A thread's wait for a place in Dask's thread pool, which it has left before.

    Its constructor does what Dask's `rejoin` does, without waiting. When a thread of the pool has
    nothing to do, the pool takes back the first thread in its list, and the idle thread ends. An
    empty task makes sure that such a moment comes soon. Safe for any number of threads.

    Parameters
    ----------
    pool : distributed.threadpoolexecutor.ThreadPoolExecutor
        The pool.
    thread : threading.Thread
        The thread that wants a place.

    Attributes
    ----------
    pool_runs : bool
        False if the worker closes: then there may never be a place.
    """

    def __init__(self, pool: Any, thread: threading.Thread) -> None:
        self._pool = pool
        self._thread = thread
        self._has_place = threading.Event()
        with pool._rejoin_lock:
            pool._rejoin_list.append((thread, self._has_place))
        try:
            pool.submit(_nothing)
            self.pool_runs = True
        except RuntimeError:
            self.pool_runs = False

    def has_place(self, seconds: float = 0.0) -> bool:
        """Return whether the thread is in the pool again; wait for this at most some seconds."""
        return self._has_place.wait(seconds) if seconds > 0 else self._has_place.is_set()

    def withdraw(self) -> bool:
        """Stop waiting; return whether the thread has got a place meanwhile."""
        with self._pool._rejoin_lock:
            if self._has_place.is_set():
                return True
            self._pool._rejoin_list.remove((self._thread, self._has_place))
            return False


def _nothing() -> None:
    """Do nothing, as the empty task."""


class PoolSlot:
    """The place that the current thread has in its pool; a `WorkerSlot`.

    Safe for any number of threads. The thread of the task may be interrupted at any moment. So
    another thread makes all changes to the pool: otherwise a change could be made by half, and
    the pool would count, for example, a thread that is not in it.

    Parameters
    ----------
    pool : distributed.threadpoolexecutor.ThreadPoolExecutor
        The pool.
    threads_lock : threading.Lock
        Held while the set of its threads is changed.
    on_release : callable
        Called each time the slot has been released.
    run_in_helper : callable
        Calls a function in a thread that is never interrupted, and waits for it.
    """

    def __init__(
        self,
        pool: Any,
        threads_lock: threading.Lock,
        on_release: Callable[[], None],
        run_in_helper: Callable[[Callable[[], None]], None],
    ) -> None:
        self._pool = pool
        self._threads_lock = threads_lock
        self._on_release = on_release
        self._run_in_helper = run_in_helper
        self._thread = threading.current_thread()
        self._lock = threading.Lock()
        self._rejoining: Rejoining | None = None
        self._finished = False

    def release(self) -> None:
        """Leave the pool, which may start another thread."""
        self._run_in_helper(self._release)

    def _release(self) -> None:
        with self._lock:
            if self._finished:
                return
            self._withdraw()
            with self._threads_lock:
                if self._thread not in self._pool._threads:
                    return
                self._pool._threads.remove(self._thread)
                self._pool._adjust_thread_count()
        self._on_release()

    def request(self) -> None:
        """Request a place in the pool: the next idle thread of the pool ends for it."""
        self._run_in_helper(self._request)

    def _request(self) -> None:
        with self._lock:
            if self._finished or self._rejoining is not None or self._is_in_pool():
                return
            self._rejoining = Rejoining(self._pool, self._thread)
            if not self._rejoining.pool_runs:
                self._finished = True

    def is_held(self) -> bool:
        """Return whether the thread is in the pool; also True if it never can be again."""
        if self._finished:
            return True
        rejoining = self._rejoining
        return self._is_in_pool() if rejoining is None else rejoining.has_place()

    def finish(self) -> bool:
        """End the use of the slot; return whether the thread is in the pool."""
        with self._lock:
            self._withdraw()
            self._finished = True
            return self._is_in_pool()

    def _is_in_pool(self) -> bool:
        return self._thread in self._pool._threads

    def _withdraw(self) -> None:
        if self._rejoining is not None:
            rejoining, self._rejoining = self._rejoining, None
            rejoining.withdraw()


class FixedSlot:
    """A `WorkerSlot` where threads cannot be exchanged: a waiting task keeps its thread."""

    def release(self) -> None:
        pass

    def request(self) -> None:
        pass

    def is_held(self) -> bool:
        return True
