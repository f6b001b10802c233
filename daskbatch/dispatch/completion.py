"""Waits for tasks, and calls back when they are over.

The `Condition` that protects all records of a client is here. Any thread may use it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.errors import LifecycleError
from daskbatch.threads import Condition
from daskbatch.worker.execution.task_context import (
    TaskContext,
    current_context,
    wait_releasing_slot,
)

_Result = TypeVar("_Result")


class _Changed(Condition):
    """A condition that wakes only threads that have something to do.

    It calls a function before that. A thread in `wait_for` wakes when its predicate has become
    true: the thread that notifies calls the predicates of all waiting threads, which must not
    block. A wake-up takes as long as a short task, and keeps the interpreter from other threads.

    Parameters
    ----------
    lock : RLock
        Its lock.
    before_wake : callable
        Called with the lock held.
    """

    def __init__(self, lock: threading.RLock, before_wake: Callable[[], None]) -> None:
        super().__init__(lock)
        self._rlock = lock
        self._before_wake = before_wake
        #: The predicates of the threads that are in `wait_for`, each with its condition.
        self._awaited: list[tuple[Callable[[], Any], threading.Condition]] = []

    def wait_for(self, predicate: Callable[[], _Result], timeout: float | None = None) -> _Result:
        found = predicate()
        if found:
            return found
        condition = Condition(self._rlock)
        entry = predicate, condition
        self._awaited.append(entry)
        try:
            return condition.wait_for(predicate, timeout)
        finally:
            self._awaited.remove(entry)

    def notify_all(self) -> None:
        self._before_wake()
        super().notify_all()
        for predicate, condition in self._awaited:
            if _is_true(predicate):
                condition.notify()


def _is_true(predicate: Callable[[], Any]) -> bool:
    try:
        return bool(predicate())
    except Exception:
        return True  # the waiting thread calls it again, and raises that


class CompletionTracker:
    """The number of a client's unfinished tasks, and the callbacks that wait for them.

    Any thread may use it. `changed` is held for every change of a started task. It is
    notified when tasks are over: once for many, because every waiting thread then checks its
    condition.

    Parameters
    ----------
    before_wake : callable
        Called with the lock held, before threads that wait for tasks wake up.
    """

    def __init__(self, before_wake: Callable[[], None] = lambda: None) -> None:
        self._lock = threading.RLock()
        self.changed: threading.Condition = _Changed(self._lock, before_wake)
        #: The number of started tasks that are not over; see `TaskTable.set_phase`.
        self.unfinished = 0
        #: Whether any function may have to be called when a task is over.
        self.has_callbacks = False
        self._callbacks: dict[TaskRecord, list[Callable[[], None]]] = {}
        self._idle_callbacks: list[Callable[[], None]] = []
        self._process = os.getpid()
        #: If a task is the client: that task's context. Then any thread may wait for it.
        self.context: TaskContext | None = None

    def make_condition(self) -> threading.Condition:
        """Return a condition with the lock of `changed`, for threads that need not wake for it.

        The thread that changes what they wait for holds the lock, and notifies them.
        """
        return Condition(self._lock)

    def call_back(self, record: TaskRecord) -> None:
        """Call the functions that wait for a task, which is over; the caller holds the lock."""
        for callback in self._callbacks.pop(record, ()):
            callback()
        if self._idle_callbacks and not self.unfinished:
            callbacks, self._idle_callbacks = self._idle_callbacks, []
            for callback in callbacks:
                callback()
        self.has_callbacks = bool(self._callbacks or self._idle_callbacks)

    def require_own_process(self) -> None:
        """Check that this process receives the reports of these tasks.

        Raises
        ------
        LifecycleError
            This process was forked from the one that receives them.
        """
        if os.getpid() != self._process:
            raise LifecycleError(
                "these tasks belong to the process that this one was forked from, and only that "
                "process learns of their outcomes: get their results there, or make other tasks "
                "here"
            )

    def wait(self, over: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until `over` returns True; returns False if the timeout is up first.

        In a task, the worker slot is released while this waits.

        Raises
        ------
        LifecycleError
            This process was forked from the one that receives the reports.
        """
        if over():
            return True

        def wait(seconds: float | None) -> bool:
            with self.changed:
                return self.changed.wait_for(over, seconds)

        return wait_releasing_slot(self.current_context(), wait, timeout)

    def current_context(self) -> TaskContext | None:
        """Return the context of the task that is about to wait, or None outside of tasks.

        Raises
        ------
        LifecycleError
            This process was forked, and would wait for ever.
        """
        self.require_own_process()
        return current_context() or self.context

    def when_over(self, record: TaskRecord, callback: Callable[[], None]) -> None:
        """Call a function, in any thread, once a task is over. It must not raise."""
        self.require_own_process()
        with self.changed:
            if not record.over:
                self._callbacks.setdefault(record, []).append(callback)
                self.has_callbacks = True
                return
        callback()

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Call a function, in any thread, once no task is unfinished. It must not raise."""
        with self.changed:
            if self.unfinished:
                self._idle_callbacks.append(callback)
                self.has_callbacks = True
                return
        callback()
