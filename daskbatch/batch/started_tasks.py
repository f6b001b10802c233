"""Remembers the tasks that a client has started, as long as the program holds them.

Any thread may call all functions.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterable
from typing import Generic, Protocol, TypeVar

from daskbatch.cluster.session import Session
from daskbatch.dispatch.task_record import Phase, TaskRecord


class HeldTask(Protocol):
    """The part of a task that is needed here."""

    _record: TaskRecord


_T = TypeVar("_T", bound=HeldTask)


class StartedTasks(Generic[_T]):
    """Weak references to tasks, in the order in which they were added. Any thread may use it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._references: list[weakref.ref[_T]] = []
        #: From this number on, references to tasks that are gone are dropped.
        self._most = 1000

    def add(self, tasks: Iterable[_T]) -> None:
        """Add tasks."""
        with self._lock:
            self._references += map(weakref.ref, tasks)
            if len(self._references) > self._most:
                self._references = [each for each in self._references if each() is not None]
                self._most = max(1000, 2 * len(self._references))

    def held(self) -> tuple[_T, ...]:
        """Return the tasks that have been started, and that the program still holds."""
        with self._lock:
            found = [each() for each in self._references]
        return tuple(
            task for task in found if task is not None and task._record.phase >= Phase.WAITING
        )


_by_session: weakref.WeakKeyDictionary[Session, StartedTasks[HeldTask]] = (
    weakref.WeakKeyDictionary()
)


def remember(session: Session, tasks: Iterable[HeldTask]) -> None:
    """Record that a client has started tasks, or has queued them in the background."""
    started = _by_session.get(session)
    if started is None:
        started = _by_session.setdefault(session, StartedTasks())
    started.add(tasks)


def started_tasks(session: Session) -> tuple[HeldTask, ...]:
    """Return the tasks that a client has started, as long as the program holds them."""
    started = _by_session.get(session)
    return () if started is None else started.held()
