"""Starts the child processes of a worker, keeps them for reuse, and ends them with the worker.

Safe for any number of threads. `ChildLost` is raised if a child cannot be started.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
from concurrent.futures import Future

from daskbatch.forking import make_lock
from daskbatch.worker.isolation.child_process import ChildLost, ChildProcess
from daskbatch.worker.processes.reaper import get_reaper


class ChildPool:
    """The children of this process: those that run a block, and idle ones.

    Safe for any number of threads.
    """

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[ChildProcess] = []
        #: The threads that wait in `take`, and whether they want a child that is unused.
        self._waiting: list[tuple[Future[ChildProcess], bool]] = []
        #: The number of children that are being started.
        self._starting = 0
        #: An entry for each child to start.
        self._start_requests: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def take(self) -> ChildProcess:
        """Return a child that is idle, or a new one; waits until there is one.

        Raises
        ------
        ChildLost
            No child could be started.
        """
        return self._take(unused=False)

    def take_unused(self) -> ChildProcess:
        """Return a child that has not been taken before; waits until there is one.

        Raises
        ------
        ChildLost
            No child could be started.
        """
        return self._take(unused=True)

    def _take(self, unused: bool) -> ChildProcess:
        while True:
            with self._lock:
                self._closed = False
                fitting = [each for each in self._idle if not (unused and each.used)]
                child = fitting[-1] if fitting else None
                if child is not None:
                    self._idle.remove(child)
                else:
                    future: Future[ChildProcess] = Future()
                    self._waiting.append((future, unused))
                    if self._starting < len(self._waiting):
                        self._start()
            if child is None:
                child = future.result()
                child.used = True
                return child
            if not child.has_ended():
                child.used = True
                return child
            child.end()

    def give_back(self, child: ChildProcess) -> None:
        """Put a child back that can be used again."""
        with self._lock:
            if not self._closed:
                self._hand_out(child)
                return
        child.end()

    def replace(self) -> None:
        """Start another child in place of one that is about to be ended."""
        with self._lock:
            if not (self._closed or self._idle or self._starting):
                self._start()

    def end_initialized(self, executor: str) -> None:
        """End the idle children that keep the state of an executor that has ended.

        Parameters
        ----------
        executor : str
            The executor whose initializer they have called.
        """
        with self._lock:
            ending = [child for child in self._idle if executor in child.initialized]
            self._idle = [child for child in self._idle if child not in ending]
        # In threads: it takes a moment, and an event loop may call this.
        for child in ending:
            threading.Thread(target=child.end, name="daskbatch-end-child", daemon=True).start()

    def close(self) -> None:
        """End the idle children; those in use end when they are given back."""
        if self.pid != os.getpid():
            return
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _hand_out(self, child: ChildProcess) -> None:
        """Pass a child to the first waiting thread that may take it, or keep it; with the lock."""
        for position, (future, unused) in enumerate(self._waiting):
            if not (unused and child.used):
                del self._waiting[position]
                future.set_result(child)
                return
        self._idle.append(child)

    def _start(self) -> None:
        """Have the thread that starts children start one; with the lock held."""
        self._starting += 1
        # One thread, which does not end, starts all children: the system kills a child when the
        # thread that has started it ends (PR_SET_PDEATHSIG).
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._start_children, name="daskbatch-children", daemon=True
            )
            self._thread.start()
        self._start_requests.put(None)

    def _start_children(self) -> None:
        while True:
            self._start_requests.get()
            error: BaseException | None = None
            child: ChildProcess | None = None
            try:
                get_reaper().ensure()
                child = ChildProcess()
            except Exception as raised:
                error = ChildLost(f"{type(raised).__name__}: {raised}")
            with self._lock:
                self._starting -= 1
                if child is not None and not (self._closed and not self._waiting):
                    self._hand_out(child)
                    child = None
                elif error is not None and self._waiting:
                    self._waiting.pop(0)[0].set_exception(error)
            if child is not None:
                child.end()
            del child, error


#: The pool of this process, once there is one.
_pool: ChildPool | None = None
_pool_lock = make_lock()


def get_child_pool() -> ChildPool:
    """Return the pool of this process."""
    global _pool
    with _pool_lock:
        # In a forked process, the inherited pool has the parent's children.
        if _pool is None or _pool.pid != os.getpid():
            _pool = ChildPool()
            atexit.register(_pool.close)
        return _pool
