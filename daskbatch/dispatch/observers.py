"""Passes changes of tasks on to those that observe them: the event log, and the logging module.

The dispatcher calls it with its lock held. Without observers of tasks, a change costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.worker.execution.block import OutputReport


class Observer(Protocol):
    """Is notified of changes of tasks, with the dispatcher's lock held. It must not raise."""

    def tasks_changed(self, records: Sequence[TaskRecord], phases: Sequence[Phase]) -> None:
        """Receive tasks, in the order of their changes, and the phase that each has entered.

        It is called before threads that wait for the tasks wake up. What the records say is how
        they are after the last of the changes.
        """

    def program_over(self, group: Group) -> None:
        """Receive a compiled task whose members are all over."""

    def output_arrived(self, record: TaskRecord, report: OutputReport) -> None:
        """Receive what a task has written."""


class Observers:
    """The observers of the tasks of one client, and the changes that they have not received.

    All methods are called with the dispatcher's lock held; `changes` may be appended to without
    it, for tasks that no other thread has yet.

    Attributes
    ----------
    changes : list, optional
        The changes since the last call of `flush`: of each the task, and then the phase that it
        has entered. A list of pairs would be ten thousand objects more for Python to search for
        garbage. None if no observer wants the changes.
    """

    def __init__(self) -> None:
        self.changes: list[Any] | None = None
        self._of_tasks: list[Observer] = []
        self._of_programs: list[Observer] = []
        self._over: list[Group] = []

    def add(self, observer: Observer, tasks: bool = True) -> None:
        """Add an observer, of programs and also of tasks; twice has no effect."""
        if tasks and observer not in self._of_tasks:
            self._of_tasks.append(observer)
            if self.changes is None:
                self.changes = []
        if observer not in self._of_programs:
            self._of_programs.append(observer)

    def remove(self, observer: Observer) -> None:
        """Remove an observer; it receives nothing more."""
        for observers in (self._of_tasks, self._of_programs):
            if observer in observers:
                observers.remove(observer)
        if not self._of_tasks:
            self.changes = None

    def program_over(self, group: Group) -> None:
        """Record that all members of a compiled task are over."""
        self._over.append(group)

    def output_arrived(self, record: TaskRecord, report: OutputReport) -> None:
        """Pass on what a task has written."""
        for observer in self._of_tasks:
            observer.output_arrived(record, report)

    def flush(self) -> None:
        """Pass on all changes since the last call."""
        if self.changes:
            taken = self.changes[:]
            del self.changes[: len(taken)]
            records, phases = taken[::2], taken[1::2]
            for observer in list(self._of_tasks):
                observer.tasks_changed(records, phases)
        if self._over:
            over, self._over = self._over, []
            for group in over:
                for observer in list(self._of_programs):
                    observer.program_over(group)
