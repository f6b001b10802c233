"""A sequential program that goes on: puts tasks in order that come a few at a time.

Does not know when they come, nor what starts them. Between two fences all that comes is one
program: what comes later waits for what came before by what both read and write, also if that
is over, since what it needed may have failed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from weakref import WeakValueDictionary

from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.plan.hazards import WAR, HazardTracker, Waits
from daskbatch.plan.program import may_run_again, without_implied

#: So many tasks are kept, done or not, before it is looked which of them are.
_MANY = 32


class Epoch:
    """The accesses since the last fence.

    Parameters
    ----------
    home : str
        The Batch that the tasks belong to.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._numbers = itertools.count()
        # Barriers are numbered apart: the tracker compares the numbers of tasks.
        self._barriers = itertools.count(-1, -1)
        self._ordered: list[TaskRecord] = []
        self._begin()

    def _begin(self) -> None:
        self._tracker = HazardTracker(self._new_barrier)
        #: Those that accesses may refer to, by their nodes.
        self._records: dict[int, TaskRecord] = {}
        #: Those of them that have been done. There is no more to wait for, and their results are
        #: the user's to keep; but one whose result was lost may be running again.
        self._done: WeakValueDictionary[int, TaskRecord] = WeakValueDictionary()
        self._waits: dict[int, Waits] = {}
        self._look_at = _MANY

    def add(self, records: Iterable[TaskRecord], ordered: list[TaskRecord]) -> None:
        """Let tasks wait for those that they must come after.

        Parameters
        ----------
        records : iterable of TaskRecord
            In program order, behind all that were added before.
        ordered : list of TaskRecord
            The tasks, and the barriers between them, are put here, each behind those that it
            waits for.
        """
        if len(self._records) >= self._look_at:
            self._let_go()
        self._ordered = ordered
        for record in records:
            if record.reads or record.writes:
                self._add(record)
            ordered.append(record)

    def start_over(self) -> None:
        """Forget what is over: what comes now does not depend on how it ended."""
        # Another thread may have started more. And what was cancelled was over before that
        # which it had waited for; others wait for it only by way of the cancelled one.
        left = {node: record for node, record in self._records.items() if not _is_past(record)}
        if left:
            self._records = left
            self._waits = {node: self._waits[node] for node in left if node in self._waits}
        else:
            self._begin()

    def _let_go(self) -> None:
        for node, record in list(self._records.items()):
            if record.phase == Phase.DONE:
                del self._records[node]
                self._waits.pop(node, None)
                self._done[node] = record
        self._look_at = 2 * len(self._records) + _MANY

    def _add(self, record: TaskRecord) -> None:
        node = next(self._numbers)
        self._records[node] = record
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
        node = next(self._barriers)
        barrier = self._records[node] = TaskRecord(self._home, -1, "barrier", None)
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
    return record.over and not record.waits_left()
