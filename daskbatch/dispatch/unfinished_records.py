"""Holds weak references to the tasks of one client that may not be over.

Any thread may use an `UnfinishedRecords`.
"""

from __future__ import annotations

import threading
import weakref

from daskbatch.dispatch.task_record import TaskRecord

_ref = weakref.ref

#: From this many entries on, those of tasks that are over are dropped.
_MIN_ENTRIES_TO_PRUNE = 4000


class UnfinishedRecords:
    """Weak references to tasks, without those that are over. Any thread may use it.

    They are weak, since a task may refer to its Batch, which the owner must not keep alive. To add
    a task costs a small part of a microsecond.
    """

    def __init__(self) -> None:
        self._references: list[weakref.ref[TaskRecord]] = []
        self._prune_at = _MIN_ENTRIES_TO_PRUNE
        self._pruning_lock = threading.Lock()

    def __bool__(self) -> bool:
        """Return whether there may be a task that is not over."""
        return bool(self._references)

    def add(self, record: TaskRecord) -> None:
        """Add a task. To add one twice lists it twice."""
        references = self._references
        references.append(_ref(record))
        if len(references) >= self._prune_at:
            self._prune()

    def records(self) -> list[TaskRecord]:
        """Return the tasks that are not over, in the order in which they were added."""
        self._prune()
        found = [each() for each in list(self._references)]
        return [record for record in found if record is not None and not record.over]

    def _prune(self) -> None:
        # A finalizer may add a task while this thread prunes: nobody waits for the lock.
        if not self._pruning_lock.acquire(blocking=False):
            return
        try:
            # Other threads may append to the list meanwhile: only this part is replaced.
            references = list(self._references)
            remaining = [
                each for each in references if (record := each()) is not None and not record.over
            ]
            self._references[: len(references)] = remaining
            self._prune_at = max(_MIN_ENTRIES_TO_PRUNE, 4 * len(remaining))
        finally:
            self._pruning_lock.release()
