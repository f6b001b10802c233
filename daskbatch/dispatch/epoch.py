"""Orders a sequential program whose tasks arrive a few at a time.

All tasks between two fences (`Epoch.start_over`) are one program: a later task waits for an
earlier one according to what both read and write. It does so even if the earlier task is over,
because that task may have failed. Not thread-safe: the `Backlog` calls it with its lock held.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from weakref import WeakValueDictionary

from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.plan.hazards import WAR, HazardTracker, Waits
from daskbatch.plan.program import may_run_again, without_implied

#: The first number of tasks at which an epoch drops its references to those that are done.
_MIN_RECORDS_TO_PRUNE = 32


class Epoch:
    """The tasks of one client since the last fence, and their accesses. Not thread-safe."""

    def __init__(self) -> None:
        self._numbers = itertools.count()
        # Barriers have negative numbers: the tracker compares the numbers of tasks.
        self._barrier_numbers = itertools.count(-1, -1)
        #: The list that receives the tasks and barriers of the current call of `add`.
        self._ordered: list[TaskRecord] = []
        #: The client of the tasks that are being added, for the barriers between them.
        self._client_id = ""
        self._begin()

    def _begin(self) -> None:
        self._tracker = HazardTracker(self._new_barrier)
        #: The tasks that accesses may refer to, by their nodes.
        self._records: dict[int, TaskRecord] = {}
        #: The tasks that are done, weakly: later tasks need not wait for them, and the user's
        #: handles keep them. But a task whose result was lost may be running again.
        self._done: WeakValueDictionary[int, TaskRecord] = WeakValueDictionary()
        self._waits: dict[int, Waits] = {}
        self._prune_at = _MIN_RECORDS_TO_PRUNE

    def add(self, records: Iterable[TaskRecord], ordered: list[TaskRecord]) -> None:
        """Make tasks wait for the earlier tasks that they must come after.

        Parameters
        ----------
        records : iterable of TaskRecord
            In program order, after all that were added before.
        ordered : list of TaskRecord
            Receives the tasks, and the barriers between them, each after those that it
            waits for.
        """
        if len(self._records) >= self._prune_at:
            self._prune_done()
        self._ordered = ordered
        for record in records:
            if record.reads or record.writes:
                self._add(record)
            ordered.append(record)

    def start_over(self) -> None:
        """Forget the tasks that are over: later tasks do not depend on how they ended."""
        # Another thread may have started more tasks. And a cancelled task may be over before the
        # tasks that it waits for: later tasks wait for those through the cancelled task only.
        unfinished = {
            node: record for node, record in self._records.items() if not _is_past(record)
        }
        if unfinished:
            self._records = unfinished
            self._waits = {node: self._waits[node] for node in unfinished if node in self._waits}
        else:
            self._begin()

    def _prune_done(self) -> None:
        for node, record in list(self._records.items()):
            if record.phase == Phase.DONE:
                del self._records[node]
                self._waits.pop(node, None)
                self._done[node] = record
        self._prune_at = 2 * len(self._records) + _MIN_RECORDS_TO_PRUNE

    def _add(self, record: TaskRecord) -> None:
        node = next(self._numbers)
        self._records[node] = record
        self._client_id = record.client_id
        found = self._tracker.add(node, record.reads, record.writes)
        record.overwrites = tuple(
            reader
            for before, why in found.items()
            if why & WAR
            and (reader := self._find(before)) is not None
            and (before < 0 or may_run_again(reader))
        )
        if found:
            self._waits[node] = without_implied(found, self._waits)
            record.waits = self._as_records(self._waits[node])

    def _new_barrier(self, before: Waits) -> int:
        node = next(self._barrier_numbers)
        barrier = self._records[node] = TaskRecord(self._client_id, -1, "barrier", None)
        self._waits[node] = before
        barrier.waits = self._as_records(before)
        self._ordered.append(barrier)
        return node

    def _find(self, node: int) -> TaskRecord | None:
        return self._records.get(node) or self._done.get(node)

    def _as_records(self, waits: Waits) -> tuple[tuple[TaskRecord, int], ...]:
        found = ((self._find(before), why) for before, why in waits.items())
        return tuple((record, why) for record, why in found if record is not None)


def _is_past(record: TaskRecord) -> bool:
    """Return whether a task is over, and all that it waited for."""
    return record.over and not record.unfinished_waits()
