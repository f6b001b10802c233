"""Records the failures and the warnings of tasks that the program has not looked at.

The `TaskTable` adds to it with its lock held. Any thread may note that the program has looked at
a failure, or take what is to be told.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import NamedTuple

from daskbatch.dispatch.task_record import Phase, TaskRecord

#: Of this many failures the records are kept until they are told; of further ones as long as the
#: program keeps the task.
_MAX_KEPT_RECORDS = 1000


class TaskWarning(NamedTuple):
    """What a worker has noticed about a task's declared files.

    Parameters
    ----------
    kind : str
        ``"input"`` or ``"output"``: what was missing.
    paths : sequence of str
        The paths that were not there.
    """

    kind: str
    paths: Sequence[str]


class UntoldFailures(NamedTuple):
    """The failures that the program has not looked at.

    Parameters
    ----------
    records : sequence of TaskRecord
        The first of the tasks that failed, in the order in which the program made them.
    failed : int
        The number of tasks that failed.
    skipped : int
        The number of tasks that did not run because of them.
    """

    records: Sequence[TaskRecord]
    failed: int
    skipped: int


class FailureLog:
    """The failures and warnings of one client's tasks that the program has not looked at.

    Any thread may use it.
    """

    def __init__(self) -> None:
        #: By failed task, the number of tasks that were skipped because of it.
        self._failed: dict[TaskRecord, int] = {}
        #: The same for failures beyond `_MAX_KEPT_RECORDS`, by the id of the record: without the
        #: record, so that a program that ignores failures does not need more and more memory.
        self._more: dict[int, tuple[weakref.ref[TaskRecord], int]] = {}
        #: The warnings of each task; those in `_untold` are still to be told.
        self._warnings: weakref.WeakKeyDictionary[TaskRecord, tuple[TaskWarning, ...]] = (
            weakref.WeakKeyDictionary()
        )
        self._untold: list[tuple[TaskRecord, TaskWarning]] = []

    def add(self, record: TaskRecord) -> None:
        """Record that a task is over without success, if the program must look at that."""
        if record.phase == Phase.FAILED:
            if _is_delivered(record) or record.call is None:
                return
            if len(self._failed) < _MAX_KEPT_RECORDS:
                self._failed[record] = 0
            else:
                self._more[id(record)] = weakref.ref(record), 0
        elif record.phase == Phase.SKIPPED and record.call is not None:
            root = record.root_failure
            if root in self._failed:
                self._failed[root] += 1
            elif root is not None and self._more.get(id(root), (_gone,))[0]() is root:
                self._more[id(root)] = weakref.ref(root), self._more[id(root)][1] + 1

    def look_at(self, record: TaskRecord) -> None:
        """Record that the program has looked at how a task has ended."""
        root = record if record.root_failure is None else record.root_failure
        self._failed.pop(root, None)
        if self._more and self._more.get(id(root), (_gone,))[0]() is root:
            del self._more[id(root)]

    def take_failures(self) -> UntoldFailures | None:
        """Return the failures that are to be told, and forget them; None if there are none."""
        if not self._failed and not self._more:
            return None
        failed, self._failed = self._failed, {}
        more, self._more = self._more, {}
        # A task whose number the system has used again was dropped without a look.
        return UntoldFailures(
            sorted(failed, key=lambda record: record.number),
            len(failed) + len(more),
            sum(failed.values()) + sum(skipped for _, skipped in more.values()),
        )

    # -- warnings -------------------------------------------------------------------------

    def warn(self, record: TaskRecord, warning: TaskWarning) -> None:
        """Add a warning about a task; it is told once."""
        before = self._warnings.get(record, ())
        if warning not in before:
            self._warnings[record] = (*before, warning)
            self._untold.append((record, warning))

    @property
    def has_warnings(self) -> bool:
        """Whether there is a warning about any task."""
        return bool(self._warnings)

    def warnings_of(self, record: TaskRecord) -> tuple[TaskWarning, ...]:
        """Return the warnings about a task so far, told or not."""
        return self._warnings.get(record, ())

    def take_warnings(self) -> list[tuple[TaskRecord, TaskWarning]]:
        """Return the warnings that are to be told, and forget them."""
        if not self._untold:
            return []
        untold, self._untold = self._untold, []
        return untold


def _gone() -> None:
    """Stand for a reference to a record that does not exist."""


def _is_delivered(record: TaskRecord) -> bool:
    """Return whether another object receives the failures of a task.

    An executor sets it in a future, and a job of `daskbatch.execute` decides what follows.
    """
    if record.group is not None:
        return not record.group.is_program
    return record.options.apart is not None
