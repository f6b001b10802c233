"""Decides which tasks may be members of open blocks, and how long tasks are expected to run.

The dispatcher's lock is held. Each task that becomes ready is checked, so this must be fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from daskbatch.describe.spec import Options
from daskbatch.dispatch.open_blocks.protocols import OpenSubmitter
from daskbatch.dispatch.task_record import Phase, SubmittedBlock, TaskRecord
from daskbatch.plan.grain import (
    MAX_TASK_SECONDS,
    MIN_INDEPENDENT_SECONDS,
    UNKNOWN_SECONDS,
    independent_suit,
    suits_open_blocks,
)
from daskbatch.serialization import pickling

#: Arguments above this size are not sent on direct connections.
_MAX_DATA_BYTES = 1 << 18

#: At least this share of the tasks of a graph may be members.
_MIN_MEMBER_SHARE = 0.9

# Looking up a member of an enum takes long.
_DONE = Phase.DONE


class Learnt(Protocol):
    """What is learnt of tasks that have run; see `TaskTable`."""

    def expected_seconds(self, record: TaskRecord) -> float | None: ...

    def largest_value(self, record: TaskRecord) -> int: ...


class Eligibility:
    """Which tasks may be members. Not thread-safe.

    Parameters
    ----------
    learnt : Learnt
        What is known of similar tasks.
    submitter : OpenSubmitter
        Says whether all workers can map this process's memory.
    inline_limit : int
        Larger values stay on their worker. Bytes.
    """

    def __init__(self, learnt: Learnt, submitter: OpenSubmitter, inline_limit: int) -> None:
        self._learnt = learnt
        self._submitter = submitter
        self._inline_limit = inline_limit
        #: The last options, which tasks share, and whether tasks with these may be members.
        self._options: Options | None = None
        self._suits = False

    def may_be_member(self, record: TaskRecord) -> bool:
        """Return whether a task may be a member of an open block, as far as it is known now."""
        call, options = record.call, record.options
        if options is not self._options:
            self._options, self._suits = options, _suit_members(options)
        return (
            self._suits
            and call is not None
            and call.failure is None
            and self.can_be_sent(record)
            and len(call.data) <= _MAX_DATA_BYTES
            and isinstance(record.function, bytes)
            and len(record.function) < pickling.MIN_SHARED_BUFFER_BYTES
            and record.strict is None
            and self._learnt.largest_value(record) <= self._inline_limit
        )

    def can_be_sent(self, record: TaskRecord) -> bool:
        """Return whether all workers can map a task's large arguments, if it has any.

        This may change while a task is held: workers of other hosts join.
        """
        buffers = () if record.call is None else record.call.buffers
        return not buffers or (
            self._submitter.shares_memory and all(each.segment is not None for each in buffers)
        )

    def expected_seconds(self, records: Sequence[TaskRecord]) -> list[float]:
        """Return how long tasks are expected to run; if unknown, as long as the others."""
        expected = self._learnt.expected_seconds
        seconds = [0.0 if record.call is None else expected(record) for record in records]
        found = [each for each in seconds if each]
        average = sum(found) / len(found) if found else UNKNOWN_SECONDS
        return [average if each is None else each for each in seconds]

    # -- whole submissions ------------------------------------------------------------------

    def suits_calls(self, records: Sequence[TaskRecord]) -> bool:
        """Return whether a few calls are to be sent to open blocks."""
        expected = self._learnt.expected_seconds
        return all(
            (seconds := expected(record)) is not None
            and seconds <= MAX_TASK_SECONDS
            and self.may_be_member(record)
            for record in records
        )

    def suits_independent(self, records: Sequence[TaskRecord], slots: int, count: int) -> bool:
        """Return whether independent tasks are to be sent one by one; see `independent_suit`."""
        # There may be many, and most end this at the first one.
        seconds = map(self._learnt.expected_seconds, records)
        return independent_suit(seconds, slots, count) and all(map(self.may_be_member, records))

    def suits_graph(self, records: Sequence[TaskRecord], slots: int) -> bool:
        """Return whether the tasks of a graph are to be sent one by one; see `suits_open_blocks`.

        Each task comes after those that it waits for.
        """
        position = {record: number for number, record in enumerate(records)}
        waits = [
            [position[before] for before, _ in record.waits if before in position]
            for record in records
        ]
        calls = [record for record in records if record.call is not None]
        seconds = list(map(self._learnt.expected_seconds, calls))
        kinds = [record.options.placement_key for record in records]
        isolated = sum(record.options.isolated for record in calls)
        if not suits_open_blocks(seconds, waits, kinds, slots, isolated):
            return False
        return sum(map(self.may_be_member, calls)) >= _MIN_MEMBER_SHARE * len(calls)

    def is_not_short(self, record: TaskRecord) -> bool:
        """Return whether independent tasks like this one may be sent one by one."""
        seconds = self._learnt.expected_seconds(record)
        return seconds is not None and seconds >= MIN_INDEPENDENT_SECONDS


def _suit_members(options: Options) -> bool:
    return not (
        options.fresh
        or options.gang
        or options.resources
        or options.prepare
        or options.apart is not None
        or options.walltime is not None
        or options.future is not None
    )


def has_values(
    record: TaskRecord, block: SubmittedBlock | None = None, streamed: bool = False
) -> bool:
    """Return whether the client has all values that a task takes.

    Those of unfinished members of `block` need not be there; if it is `streamed`, none of
    unfinished tasks.
    """
    assert record.call is not None
    for producer, part in record.call.references:
        if producer.phase < _DONE:
            if not streamed and (producer.block is not block or block is None):
                return False
        elif (producer.value if part == "result" else producer.output) is None:
            return False
    return True
