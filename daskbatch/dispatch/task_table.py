"""The table of a client's started tasks and its transitions.

A started task is placed in a block, requeued, settled with its outcome, or revived after its
value was lost. Not thread-safe: the dispatcher holds the lock, `CompletionTracker.changed`.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from time import time
from typing import Any, Protocol
from weakref import WeakValueDictionary

from daskbatch.dispatch.completion import CompletionTracker
from daskbatch.dispatch.demand import TaskDemand, measure_demand
from daskbatch.dispatch.edges import wait_for_producers
from daskbatch.dispatch.failure_log import FailureLog
from daskbatch.dispatch.future_sources import FutureSources
from daskbatch.dispatch.lower import Setting
from daskbatch.dispatch.observers import Observers
from daskbatch.dispatch.open_blocks.feeder import OpenBlocks
from daskbatch.dispatch.open_blocks.protocols import LinkMaker, OpenSubmitter
from daskbatch.dispatch.placer import MAX_SMALL_RESULT_BYTES, Placer, Submitter
from daskbatch.dispatch.recovery import (
    LastWriters,
    is_value_lost,
    lost_with_worker,
    rerun_closure,
    rerun_refusal,
)
from daskbatch.dispatch.task_record import (
    SILENT,
    BlockKey,
    Group,
    Phase,
    SubmittedBlock,
    TaskRecord,
    find_root_failure,
)
from daskbatch.dispatch.unsuccessful import UnsuccessfulTasks
from daskbatch.errors import SerializationError
from daskbatch.serialization.exceptions import pack_error
from daskbatch.serialization.stored_value import StoredValue
from daskbatch.worker.execution.block import OutcomeReport
from daskbatch.worker.execution.measures import MemberBegin
from daskbatch.worker.execution.outcome import Status

#: The phase of a task, by the `Status` of its member; a deferred one has none.
_PHASES = (Phase.DONE, Phase.FAILED, Phase.SKIPPED, Phase.CANCELLED)

# Looking up a member of an enum takes a large part of the time of `set_phase`.
_WAITING, _DONE = Phase.WAITING, Phase.DONE
_STATUS_DONE = Status.DONE


class TableBackend(Submitter, OpenSubmitter, Protocol):
    """The part of a backend that the table uses."""


class TaskTable:
    """The started tasks of one client, and the blocks that they are in.

    Not thread-safe: all methods are called with `outcomes.changed` held.

    Parameters
    ----------
    submitter : TableBackend
        Runs the blocks. If it has an attribute `open_links`, tasks may be sent to open blocks.
    setting : Setting
        The settings of all blocks.
    """

    def __init__(self, submitter: TableBackend, setting: Setting) -> None:
        self._placer = Placer(submitter, setting)
        self._submitter = submitter
        self._inline_limit = setting.inline_limit
        self.observers = Observers()
        self.outcomes = CompletionTracker(self.observers.flush)
        #: What went wrong, and the program has not looked at.
        self.failures = FailureLog()
        #: What Dask's dashboard must count in another way than Dask does.
        self.unsuccessful = UnsuccessfulTasks()
        #: The blocks that are not over, by their numbers.
        self.live: dict[int, SubmittedBlock] = {}
        #: The tasks that run and are being stopped.
        self.stopping: set[TaskRecord] = set()
        #: While a report is applied: the tasks that are over, and whose callbacks are to be called.
        self._called_later: list[TaskRecord] | None = None
        self._ranks = itertools.count()
        self._writers = LastWriters()
        #: For each task the number of workers that have died while they ran it.
        self.deaths: Counter[TaskRecord] = Counter()
        #: The blocks whose results may still be needed, by their keys.
        self._blocks: WeakValueDictionary[BlockKey, SubmittedBlock] = WeakValueDictionary()
        #: The tasks that fetch the results of Dask futures; the dispatcher sets how to cancel one.
        self.future_sources = FutureSources()
        #: Whether the result of any block was ever lost.
        self._any_lost = False
        links: LinkMaker | None = getattr(submitter, "open_links", None)
        self.open_blocks = OpenBlocks(self, submitter, setting, links)

    # -- phases ---------------------------------------------------------------------------

    def set_phase(self, record: TaskRecord, phase: Phase) -> None:
        """Set the phase of a task, and count it as unfinished while it is started and not over.

        Every phase after `CREATED` is set here. Only a task that no other thread has yet may
        be set to `QUEUED` without the lock.
        """
        before, record.phase = record.phase, phase
        if self.observers.changes is not None and before != phase:
            self.observers.changes += (record, phase)  # at once, also without the lock
        if phase >= _DONE:
            if before < _DONE:
                if before >= _WAITING:
                    self.outcomes.unfinished -= 1
                group = record.group
                if group is not None:
                    if phase > _DONE:
                        group.unsuccessful[phase] += 1
                    self._leave_group(group, 1)
        elif phase == _WAITING:
            if before < _WAITING:
                self.outcomes.unfinished += 1
            elif before >= _DONE:  # it is revived
                self.outcomes.unfinished += 1
                if record.group is not None:
                    record.group.unfinished += 1

    def _leave_group(self, group: Group, count: int) -> None:
        """Count members of a group as over."""
        group.unfinished -= count
        if not group.unfinished and group.is_program:
            self.observers.program_over(group)

    def start(self, records: Sequence[TaskRecord]) -> None:
        """Add tasks to the table, each after those that it waits for."""
        set_phase = self.set_phase
        for record, rank in zip(records, self._ranks, strict=False):
            set_phase(record, _WAITING)
            record.rank = rank
        self._writers.add(records)

    def settle(
        self,
        record: TaskRecord,
        phase: Phase,
        value: bytes | None = None,
        output: tuple[str, str] | None = SILENT,
        seconds: float = 0.0,
    ) -> None:
        """Record the outcome of a task, and call the functions that wait for it."""
        record.value = value
        record.reference = None
        record.output = output
        record.seconds = seconds
        if record.waits:
            record.waits = tuple(record.unfinished_waits().items())
        record.overwrites = ()
        if record.measured is None:
            record.ended = time()
        self.set_phase(record, phase)
        if self.unsuccessful.holds_any:
            self.unsuccessful.release((record,))
        if phase > _DONE:
            self.failures.add(record)
            if phase == Phase.FAILED:
                self.unsuccessful.fail(record)
        if self.open_blocks.awaits_outcomes:
            self.open_blocks.over(record)
        if self.future_sources.in_use:
            self.future_sources.over(record)
        if self.outcomes.has_callbacks:
            if self._called_later is None:
                # What a callback tells the program must have been recorded.
                self.observers.flush()
                self.outcomes.call_back(record)
            else:
                self._called_later.append(record)

    def settle_member(
        self,
        block: SubmittedBlock,
        record: TaskRecord,
        status: int,
        value: bytes | None = None,
        output: tuple[str, str] | None = SILENT,
        seconds: float = 0.0,
    ) -> None:
        """Record the outcome of a member of a block."""
        block.unfinished -= 1
        self.stopping.discard(record)
        if status != Status.DONE:
            self.unsuccessful.withdraw(block, record)
        if status > Status.FAILED or self._is_inline(value, output):
            record.block = None
        if status == Status.SKIPPED:
            record.root_failure = find_root_failure(record)
        self.settle(record, _PHASES[status], value, output, seconds)

    def _is_inline(self, value: bytes | None, output: tuple[str, str] | None) -> bool:
        """Return whether a whole outcome is here, and small enough to be sent from here."""
        if value is None or output is None or type(value) is StoredValue:
            return False
        return len(value) <= self._inline_limit

    def requeue(self, block: SubmittedBlock, record: TaskRecord) -> None:
        """Take an unfinished member out of its block; the caller places it again."""
        block.unfinished -= 1
        self.unsuccessful.withdraw(block, record)
        record.block = record.begin = None
        if block.open:
            # It may become another member of the same block.
            block.drop_member(record.member)
        self.set_phase(record, Phase.WAITING)

    def begin(self, record: TaskRecord, begin: MemberBegin | None) -> None:
        """Record that a worker has begun a task."""
        record.begin = begin
        self.set_phase(record, Phase.RUNNING)

    def measure_demand(self, records: Iterable[TaskRecord], unknown: float) -> TaskDemand:
        """Return what unfinished tasks could use; see `demand.measure_demand`."""
        unfinished = self.outcomes.unfinished
        return measure_demand(records, unfinished, self.expected_seconds, unknown)

    # -- blocks ---------------------------------------------------------------------------

    def place(self, records: Sequence[TaskRecord], name: str, again: bool = True) -> None:
        """Submit tasks in blocks; settle those that must not run.

        Parameters
        ----------
        records : sequence of TaskRecord
            Waiting tasks in no block, each after those that it waits for.
        name : str
            Their name on Dask's dashboard.
        again : bool
            Whether they have been placed before.
        """
        if self._any_lost:
            records = self._with_revived(records)
        ready: Sequence[TaskRecord] = [record for record in records if self.may_run(record)]
        if ready:
            others = self.outcomes.unfinished - len(ready)
            ready = self.open_blocks.hold(ready, name, others)
        self._place_ready(ready, name, again)

    def place_in_blocks(self, records: Sequence[TaskRecord], name: str) -> None:
        """Submit tasks in ordinary blocks, as `place` does; they were placed before."""
        if self._any_lost:
            records = self._with_revived(records)
        self._place_ready([record for record in records if self.may_run(record)], name, True)

    def _place_ready(self, ready: Sequence[TaskRecord], name: str, again: bool) -> None:
        if not ready:
            return
        try:
            others = self.outcomes.unfinished - len(ready)
            blocks = self._placer.place(ready, others, again)
        except Exception as error:
            # Threads wait for these tasks: each of them must receive the error.
            data = pack_error(error, name)
            for record in ready:
                self.settle(record, Phase.FAILED, data)
            return
        self.unsuccessful.release(ready)
        for block in blocks:
            self.add_block(block)

    def add_block(self, block: SubmittedBlock) -> None:
        """Record that a block was submitted."""
        self.live[block.number] = block
        self._blocks[block.key] = block

    def next_number(self) -> int:
        """Return a number for a block."""
        return self._placer.next_number()

    def largest_value(self, record: TaskRecord) -> int:
        """Return the bytes of the largest value of similar tasks that have run."""
        call = record.call
        return 0 if call is None else self._placer.durations.largest(call.family) or 0

    def flush_later(self) -> None:
        """Have tasks that have become ready sent to open blocks, in another thread."""

        def flush() -> None:
            with self.outcomes.changed:
                self.open_blocks.flush()
                self.outcomes.changed.notify_all()

        self._submitter.call_later(0.0, flush)

    def may_run(self, record: TaskRecord) -> bool:
        """Return whether a task may run; if not, settle it as failed."""
        if record.waits:
            record.root_failure = find_root_failure(record) or self._find_lost_producer(record)
            if record.root_failure is not None:
                self.settle(record, Phase.SKIPPED)
                return False
        if record.call is not None:
            failure = record.call.failure or record.function
            if isinstance(failure, SerializationError):
                part = "its arguments" if record.call.failure else "its function"
                error = SerializationError(f"task {record.label}: {part} cannot be sent: {failure}")
                error.__cause__ = failure.__cause__
                self.settle(record, Phase.FAILED, pack_error(error, record.label))
                return False
        return True

    def _find_lost_producer(self, record: TaskRecord) -> TaskRecord | None:
        """Return a task whose value is an argument of another one, and is lost for good."""
        if not self._any_lost:
            return None
        return next((each for each in record.producers if each.over and is_value_lost(each)), None)

    def forget(self, block: SubmittedBlock) -> None:
        """Drop what was needed of a block until it was over."""
        self.live.pop(block.number, None)
        block.hold_weakly()
        block.waits = frozenset()
        block.buffer_futures = ()

    # -- reports --------------------------------------------------------------------------

    def apply_report(
        self, block: SubmittedBlock, report: OutcomeReport, timed: bool = True
    ) -> list[TaskRecord]:
        """Settle the members that a report covers; returns those to be placed again.

        Parameters
        ----------
        block : SubmittedBlock
            The block.
        report : OutcomeReport
            The outcomes of some of its members.
        timed : bool
            Whether the report says how long the members ran.
        """
        over: list[TaskRecord] = []
        self._called_later = over
        try:
            return self._settle_reported(block, report, timed)
        finally:
            self._called_later = None
            if over:
                self.observers.flush()
                for record in over:
                    self.outcomes.call_back(record)

    def _settle_reported(
        self, block: SubmittedBlock, report: OutcomeReport, timed: bool
    ) -> list[TaskRecord]:
        if timed and self._settle_ordinary(block, report):
            return []
        deferred = []
        ran: list[TaskRecord] = []
        sizes: list[int] = []
        references = report.references
        measures = report.measures
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
                self.requeue(block, record)
                deferred.append(record)
                continue
            output = report.outputs.get(member, SILENT)
            reference = references.get(member) if references else None
            if timed and status <= Status.FAILED:
                ran.append(record)
                if reference is not None and output is not None:
                    # Other tasks may share its block, but its block's result is not small.
                    sizes.append(MAX_SMALL_RESULT_BYTES)
                elif value is None or output is None:
                    sizes.append(-1)
                else:
                    sizes.append(len(value) + len(output[0]) + len(output[1]))
            if measures is not None and (
                status <= Status.FAILED or measures.of(member).ended is not None
            ):
                record.measured = measures
            self.settle_member(block, record, status, value, output, seconds)
            if reference is not None:
                record.reference = reference
        self._placer.learn(ran, sizes)
        return deferred

    def _settle_ordinary(self, block: SubmittedBlock, report: OutcomeReport) -> bool:
        """Settle the members of a report that are done and have small values.

        This is `settle_member` for each of them, without what concerns none of them: of ten
        thousand short tasks, that takes longer than the rest. Returns False, and does nothing, if
        it is not so.
        """
        statuses, values = report.statuses, report.values
        records = block.records[report.start : report.start + len(statuses)]
        measures = report.measures
        if (
            measures is None
            or report.outputs
            or report.references
            or self.stopping
            or self.future_sources.in_use
            or self.outcomes.has_callbacks
            or statuses.count(_STATUS_DONE) != len(statuses)
        ):
            return False
        limit = self._inline_limit
        for record, value in zip(records, values, strict=True):
            if type(value) is not bytes or len(value) > limit:
                return False
            if record.block is not block or record.phase >= _DONE:
                return False
        changes = self.observers.changes
        durations = array("f", report.durations)
        for record, value, seconds in zip(records, values, durations, strict=True):
            record.value = value
            record.reference = None
            record.output = SILENT
            record.seconds = seconds
            record.block = None
            record.measured = measures
            if record.waits:
                record.waits = tuple(record.unfinished_waits().items())
            record.overwrites = ()
            record.phase = _DONE
            if changes is not None:
                changes += (record, _DONE)
        if len(records) == 1:  # of an open block
            groups = {records[0].group: 1}
        else:
            groups = Counter(record.group for record in records)
        for group, count in groups.items():
            if group is not None:
                self._leave_group(group, count)
        block.unfinished -= len(records)
        self.outcomes.unfinished -= len(records)
        self.unsuccessful.release(records)
        if self.open_blocks.awaits_outcomes:
            for record in records:
                self.open_blocks.over(record)
        self._placer.learn(records, list(map(len, values)))  # type: ignore[arg-type]
        return True

    def expected_seconds(self, record: TaskRecord) -> float | None:
        """Return how long a task is expected to run, by what was learnt; any thread may ask."""
        call = record.call
        return None if call is None else self._placer.durations.seconds(call.family)

    # -- lost workers ---------------------------------------------------------------------

    def find_block(self, key: BlockKey) -> SubmittedBlock | None:
        """Return the block of a key, if its result may still be needed."""
        return self._blocks.get(key)

    def mark_lost(self, block: SubmittedBlock) -> None:
        """Record that a block's result was lost with a worker."""
        block.lost = self._any_lost = True

    def recover(
        self,
        block: SubmittedBlock,
        running: int | None,
        details: Mapping[str, Any],
        planned: bool = False,
    ) -> list[TaskRecord]:
        """Settle the members of a lost block that must not run again; returns the others.

        Parameters
        ----------
        block : SubmittedBlock
            The block.
        running : int or None
            The member that was running; -1 if none was, None if that is unknown.
        details : mapping
            What is known of the worker's death; see `lost_with_worker`.
        planned : bool
            Whether the worker has left in good order.
        """
        requeued = []
        unfinished = block.unfinished_members()
        for record in unfinished:
            began = running is None or record.member == running
            if record in self.stopping:
                self.settle_member(block, record, Status.CANCELLED)
                continue
            if began:
                self.deaths[record] += not planned
                beside = [r for r in unfinished if r is not record] if running is None else ()
                reason = rerun_refusal(record, self.deaths[record], beside)
                if reason is not None:
                    attempt = self.deaths[record] + planned
                    error = lost_with_worker(record, reason, attempt, details, planned)
                    failure = pack_error(error, record.label)
                    self.settle_member(block, record, Status.FAILED, failure)
                    continue
            self.requeue(block, record)
            requeued.append(record)
        return requeued

    def revive(self, record: TaskRecord) -> list[TaskRecord]:
        """Make a finished task whose value was lost wait again, with the tasks that it needs.

        Returns the tasks to be placed; none if one of them must not run again. Then the
        record has no block, which means that the value is lost for good.
        """
        records = None if record.unsuccessful else rerun_closure(record, self._writers)
        if records is None:
            record.block = None
            return []
        for each in records:
            if each.block is not None:
                self.unsuccessful.withdraw(each.block, each)
            each.block = each.begin = each.measured = None
            self.set_phase(each, Phase.WAITING)
        wait_for_producers(records)
        return records

    def revive_lost(self, record: TaskRecord) -> list[TaskRecord] | None:
        """Have a held task, whose waits are over, wait again for values that were lost.

        Returns the tasks to be placed before it; None if it need not wait.
        """
        if not self._any_lost or not record.producers:
            return None
        records = self._with_revived([record])
        if all(producer.over for producer in record.producers):
            return None
        # Another task may have had them revived.
        wait_for_producers([record])
        return [each for each in records if each is not record]

    def _with_revived(self, records: Sequence[TaskRecord]) -> Sequence[TaskRecord]:
        """Return tasks together with the tasks whose lost results they take."""
        revived: list[TaskRecord] = []
        for record in records:
            for producer in record.producers:
                if producer.over and not producer.unsuccessful and is_value_lost(producer):
                    revived += self.revive(producer)
            if revived:
                wait_for_producers([record])
        return sorted([*revived, *records], key=lambda record: record.rank) if revived else records
