"""Holds weak references to the tasks of one client that may not be over.

Any thread may use an `UnfinishedRecords`.
"""

from __future__ import annotations

import threading
import weakref

from daskbatch.dispatch.task_record import TaskRecord

#: From this many entries on, those of tasks that are over are dropped.
_MIN_ENTRIES_TO_PRUNE = 1000


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
        self._references.append(weakref.ref(record))
        if len(self._references) >= self._prune_at:
            self.records()

    def records(self) -> list[TaskRecord]:
        """Return the tasks that are not over, in the order in which they were added."""
        with self._pruning_lock:
            # Other threads may append to the list meanwhile: only this part is replaced.
            references = list(self._references)
            unfinished = [
                record for each in references if (record := each()) is not None and not record.over
            ]
            self._references[: len(references)] = [weakref.ref(record) for record in unfinished]
            self._prune_at = max(_MIN_ENTRIES_TO_PRUNE, 2 * len(unfinished))
        return unfinished
