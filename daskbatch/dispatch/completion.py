"""Writes down what became of tasks, and tells those who wait for it.

Does not know blocks, nor where an outcome comes from.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

from daskbatch.dispatch.task_record import SILENT, Phase, TaskRecord
from daskbatch.errors import LifecycleError
from daskbatch.worker.execution.task_context import TaskContext, current, wait_releasing_slot


class CompletionTracker:
    """The outcomes of one client's tasks.

    `changed` is to be held for every change, and to be notified when tasks are over: once
    for many, since each waiting thread looks again each time.
    """

    def __init__(self) -> None:
        self.changed = threading.Condition()
        #: How many started tasks are not over.
        self.left = 0
        self._callbacks: dict[TaskRecord, list[Callable[[], None]]] = {}
        self._when_idle: list[Callable[[], None]] = []
        self._process = os.getpid()
        #: Of the task that these are the tasks of, if one is: it may wait in any thread.
        self.host: TaskContext | None = None

    def settle(
        self,
        record: TaskRecord,
        phase: Phase,
        value: bytes | None = None,
        output: tuple[str, str] | None = SILENT,
        seconds: float = 0.0,
    ) -> None:
        """Say what became of a task."""
        record.phase = phase
        record.value = value
        record.output = output
        record.seconds = seconds
        if record.waits:
            record.waits = tuple(record.waits_left().items())
        record.overwrites = ()
        self.left -= 1
        if record.group is not None:
            record.group.left -= 1
        if self._callbacks:
            for callback in self._callbacks.pop(record, ()):
                callback()
        if self._when_idle and not self.left:
            callbacks, self._when_idle = self._when_idle, []
            for callback in callbacks:
                callback()

    def require_here(self) -> None:
        """Make sure that this process is the one that hears of these tasks.

        Raises
        ------
        LifecycleError
            It was forked from that one.
        """
        if os.getpid() != self._process:
            raise LifecycleError(
                "these tasks belong to the process that this one was forked from, which alone "
                "hears of them: get their results there, or make tasks of your own here"
            )

    def wait(self, over: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until something is over; False if the time is up first.

        A task of a worker that waits lets others have its slot meanwhile.

        Raises
        ------
        LifecycleError
            This process was forked from the one that would be told.
        """
        if over():
            return True

        def wait(seconds: float | None) -> bool:
            with self.changed:
                return self.changed.wait_for(over, seconds)

        return wait_releasing_slot(self.waiter(), wait, timeout)

    def waiter(self) -> TaskContext | None:
        """Give what the task has around it that waits, if this is in a task.

        Raises
        ------
        LifecycleError
            Who waits is in a process that was forked, and would wait for ever.
        """
        self.require_here()
        return current() or self.host

    def when_over(self, record: TaskRecord, callback: Callable[[], None]) -> None:
        """Have a function called, in any thread, when a task is over. It must not raise."""
        self.require_here()
        with self.changed:
            if not record.over:
                self._callbacks.setdefault(record, []).append(callback)
                return
        callback()

    def when_idle(self, callback: Callable[[], None]) -> None:
        """Have a function called, in any thread, when nothing is left. It must not raise."""
        with self.changed:
            if self.left:
                self._when_idle.append(callback)
                return
        callback()
