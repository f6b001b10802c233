"""Decides which tasks may be members of open blocks, and how long tasks are expected to run.

The dispatcher's lock is held. Each task that becomes ready is checked, so this must be fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from daskbatch.describe.spec import Options
from daskbatch.dispatch.task_record import Phase, SubmittedBlock, TaskRecord
from daskbatch.plan.grain import UNKNOWN_SECONDS
from daskbatch.serialization import pickling

#: Arguments above this size are not sent on direct connections.
_MAX_DATA_BYTES = 1 << 18

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
    inline_limit : int
        Larger values stay on their worker. Bytes.
    """

    def __init__(self, learnt: Learnt, inline_limit: int) -> None:
        self._learnt = learnt
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
            and not call.buffers
            and len(call.data) <= _MAX_DATA_BYTES
            and isinstance(record.function, bytes)
            and len(record.function) < pickling.MIN_SHARED_BUFFER_BYTES
            and record.strict is None
            and self._learnt.largest_value(record) <= self._inline_limit
        )

    def expected_seconds(self, records: Sequence[TaskRecord]) -> list[float]:
        """Return how long tasks are expected to run; if unknown, as long as the others."""
        expected = self._learnt.expected_seconds
        seconds = [0.0 if record.call is None else expected(record) for record in records]
        found = [each for each in seconds if each]
        average = sum(found) / len(found) if found else UNKNOWN_SECONDS
        return [average if each is None else each for each in seconds]


def _suit_members(options: Options) -> bool:
    return not (
        options.isolated
        or options.fresh
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
