"""The moves that started tasks make: into a block, out of it, to their end, and back.

Does not know when each is due: that is the dispatcher's to say, which holds the lock.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from daskbatch.dispatch.backend import Backend, Key
from daskbatch.dispatch.completion import CompletionTracker
from daskbatch.dispatch.edges import wait_for_producers
from daskbatch.dispatch.lower import Setting
from daskbatch.dispatch.placer import Placer
from daskbatch.dispatch.recovery import (
    Writers,
    is_gone,
    lost_with_worker,
    rerun_closure,
    rerun_refusal,
)
from daskbatch.dispatch.task_record import SILENT, Phase, SubmittedBlock, TaskRecord, find_blame
from daskbatch.errors import SerializationError
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.block import Report
from daskbatch.worker.execution.outcome import Status

#: By `Status`.
_PHASES = (Phase.DONE, Phase.FAILED, Phase.FAILED, Phase.CANCELLED)


class TaskTable:
    """The started tasks of one client, and where they are.

    Parameters
    ----------
    backend : Backend
        Where blocks run.
    setting : Setting
        What is the same for all blocks.
    """

    def __init__(self, backend: Backend, setting: Setting) -> None:
        self._backend = backend
        self._placer = Placer(backend, setting)
        self._inline_limit = setting.inline_limit
        self.outcomes = CompletionTracker()
        self._changed = self.outcomes.changed
        self._live: dict[int, SubmittedBlock] = {}
        self._ranks = itertools.count()
        self._stuck: set[SubmittedBlock] = set()
        self._revoked: set[int] = set()
        #: Those that run, and are being stopped.
        self._stopping: set[TaskRecord] = set()
        self._writers = Writers()
        #: Under how many workers' deaths a task has run.
        self._deaths: Counter[TaskRecord] = Counter()
        #: The blocks whose results somebody may still want; and whether any was ever lost.
        self._placed: WeakValueDictionary[Key, SubmittedBlock] = WeakValueDictionary()
        self._any_lost = False

    def _place(self, records: Sequence[TaskRecord], name: str, again: bool = True) -> None:
        if self._any_lost:
            records = self._with_revived(records)
        ready = [record for record in records if self._may_run(record)]
        if not ready:
            return
        try:
            others = self.outcomes.left - len(ready)
            blocks = self._placer.place(ready, name, others, again)
        except Exception as error:
            # Somebody waits for these: they must hear of it.
            data = pack_error(error, name)
            for record in ready:
                self.outcomes.settle(record, Phase.FAILED, data)
            return
        for block in blocks:
            self._live[block.number] = block
            self._placed[block.key] = block

    def _with_revived(self, records: Sequence[TaskRecord]) -> Sequence[TaskRecord]:
        """Give tasks together with those whose lost results they take."""
        revived: list[TaskRecord] = []
        for record in records:
            for producer in record.producers:
                if producer.over and not producer.unsuccessful and is_gone(producer):
                    revived += self._revive(producer)
            if revived:
                wait_for_producers([record])
        return sorted([*revived, *records], key=lambda record: record.rank) if revived else records

    def _revive(self, record: TaskRecord) -> list[TaskRecord]:
        """Count a finished task whose value was lost as one that is to run, if it may."""
        records = None if record.unsuccessful else rerun_closure(record, self._writers)
        if records is None:
            record.block = None  # it is over all the same, but there is nothing to be had
            return []
        for each in records:
            each.phase, each.block = Phase.WAITING, None
            self.outcomes.left += 1
            if each.group is not None:
                each.group.left += 1
        wait_for_producers(records)
        return records

    def _may_run(self, record: TaskRecord) -> bool:
        if record.waits:
            record.blame = find_blame(record) or self._find_gone(record)
            if record.blame is not None:
                self.outcomes.settle(record, Phase.FAILED)
                return False
        if record.call is not None:
            failure = record.call.failure or record.function
            if isinstance(failure, SerializationError):
                what = "its arguments" if record.call.failure else "its function"
                error = SerializationError(f"task {record.label}: {what} cannot be sent: {failure}")
                error.__cause__ = failure.__cause__
                self.outcomes.settle(record, Phase.FAILED, pack_error(error, record.label))
                return False
        return True

    def _find_gone(self, record: TaskRecord) -> TaskRecord | None:
        """Find a task whose value another one takes, and which is lost for good."""
        if not self._any_lost:
            return None
        return next((each for each in record.producers if each.over and is_gone(each)), None)

    def _apply_report(
        self, block: SubmittedBlock, report: Report, timed: bool = True
    ) -> list[TaskRecord]:
        """Settle what a report tells of; returns what has to be placed again."""
        deferred = []
        ran: list[TaskRecord] = []
        sizes: list[int] = []
        stop = report.start + len(report.statuses)
        for member, (record, status, value, seconds) in enumerate(
            zip(
                block.records[report.start : stop],
                report.statuses,
                report.values,
                array("f", report.durations),
                strict=True,
            ),
            report.start,
        ):
            if record.block is not block or record.phase >= Phase.DONE:
                continue
            if status == Status.DEFERRED:
                self._give_back(block, record)
                deferred.append(record)
                continue
            output = report.outputs.get(member, SILENT)
            if timed and status <= Status.FAILED:
                ran.append(record)
                if value is None or output is None:
                    sizes.append(-1)
                else:
                    sizes.append(len(value) + len(output[0]) + len(output[1]))
            self._tell(block, record, status, value, output, seconds)
        self._placer.learn(ran, sizes)
        return deferred

    def _tell(
        self,
        block: SubmittedBlock,
        record: TaskRecord,
        status: int,
        value: bytes | None = None,
        output: tuple[str, str] | None = SILENT,
        seconds: float = 0.0,
    ) -> None:
        block.left -= 1
        self._stopping.discard(record)
        if status > Status.FAILED or self._is_here(value, output):
            record.block = None
        if status == Status.SKIPPED:
            record.blame = find_blame(record)
        self.outcomes.settle(record, _PHASES[status], value, output, seconds)

    def _is_here(self, value: bytes | None, output: tuple[str, str] | None) -> bool:
        """Say whether all of an outcome is here, and small enough to be sent from here."""
        if value is None or output is None:
            return False
        return len(value) <= self._inline_limit

    def _drop_if_empty(self, block: SubmittedBlock) -> None:
        """Spare the cluster a block of which nothing is left to run."""
        if not block.left and all(record.block is not block for record in block.records):
            # It runs all the same if others hang on its key: what was revoked stays so.
            self._revoked.discard(block.number)
            self._backend.release(block)

    def _give_back(self, block: SubmittedBlock, record: TaskRecord) -> None:
        block.left -= 1
        record.block = None
        record.phase = Phase.WAITING

    def _recover(
        self, block: SubmittedBlock, running: int | None, why: Mapping[str, Any]
    ) -> list[TaskRecord]:
        """Settle what may not run again; returns what does. `running` is None if unknown."""
        deferred = []
        left = block.members_left()
        for record in left:
            began = running is None or record.member == running
            if record in self._stopping:
                self._tell(block, record, Status.CANCELLED)
                continue
            if began:
                self._deaths[record] += 1
                beside = [each for each in left if each is not record] if running is None else ()
                reason = rerun_refusal(record, self._deaths[record], beside)
                if reason is not None:
                    error = lost_with_worker(record, reason, self._deaths[record], why)
                    self._tell(block, record, Status.FAILED, pack_error(error, record.label))
                    continue
            self._give_back(block, record)
            deferred.append(record)
        return deferred

    def _forget(self, block: SubmittedBlock) -> None:
        """Drop what was needed of a block until it was over."""
        self._live.pop(block.number, None)
        self._stuck.discard(block)
        block.waits = frozenset()
        block.held = ()
        if block.number in self._revoked:
            self._revoked.discard(block.number)
            self._backend.forget([block.number])
