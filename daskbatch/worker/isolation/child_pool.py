"""Keeps the child processes of a worker: started on need, kept warm, ended with it.

Does not know what is run in them.
"""

from __future__ import annotations

import atexit
import os
import queue
import threading
from concurrent.futures import Future

from daskbatch.worker.isolation.child_process import ChildLost, ChildProcess
from daskbatch.worker.processes.reaper import warden


class ChildPool:
    """The children of this process: one for each block that runs in one, and those kept warm."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[ChildProcess] = []
        self._waiting: list[Future[ChildProcess]] = []
        self._starting = 0
        self._orders: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = False

    def take(self) -> ChildProcess:
        """Give a child that waits for orders."""
        while True:
            with self._lock:
                self._closed = False
                child = self._idle.pop() if self._idle else None
                if child is None:
                    future: Future[ChildProcess] = Future()
                    self._waiting.append(future)
                    if self._starting < len(self._waiting):
                        self._start()
            if child is None:
                return future.result()
            if not child.has_ended():
                return child
            child.end()

    def give(self, child: ChildProcess) -> None:
        """Take a child back, which is to be used again."""
        with self._lock:
            if not self._closed:
                self._hand_out(child)
                return
        child.end()

    def replace(self) -> None:
        """Start another child for one that is ended."""
        with self._lock:
            if not (self._closed or self._idle or self._starting):
                self._start()

    def let_go(self, executor: str) -> None:
        """End those, of what is not in use, that keep something of an executor that has ended."""
        with self._lock:
            ending = [child for child in self._idle if executor in child.prepared]
            self._idle = [child for child in self._idle if child not in ending]
        # It takes a moment, and an event loop may call this.
        for child in ending:
            threading.Thread(target=child.end, name="daskbatch-end-child", daemon=True).start()

    def close(self) -> None:
        """End those that are not in use; the others when they are given back."""
        if self.process != os.getpid():
            return
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _hand_out(self, child: ChildProcess) -> None:
        if self._waiting:
            self._waiting.pop(0).set_result(child)
        else:
            self._idle.append(child)

    def _start(self) -> None:
        self._starting += 1
        # One thread starts them all: the system ends them with the thread that has.
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name="daskbatch-children", daemon=True
            )
            self._thread.start()
        self._orders.put(None)

    def _work(self) -> None:
        while True:
            self._orders.get()
            error: BaseException | None = None
            child: ChildProcess | None = None
            try:
                warden().ensure()
                child = ChildProcess()
            except Exception as raised:
                error = ChildLost(f"{type(raised).__name__}: {raised}")
            with self._lock:
                self._starting -= 1
                if child is not None and not (self._closed and not self._waiting):
                    self._hand_out(child)
                    child = None
                elif error is not None and self._waiting:
                    self._waiting.pop(0).set_exception(error)
            if child is not None:
                child.end()
            del child, error


_children: ChildPool | None = None
_making = threading.Lock()


def children() -> ChildPool:
    """Give the children of this process."""
    global _children
    with _making:
        # Those of a process that has forked this one are not this one's.
        if _children is None or _children.process != os.getpid():
            _children = ChildPool()
            atexit.register(_children.close)
        return _children
