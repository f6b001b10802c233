"""Puts tasks that may run into blocks, and the blocks onto the cluster.

Does not know what becomes of them; it is told how long their like have taken.
"""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from daskbatch.dispatch.lower import Lowered, Setting, buffer_key, lower
from daskbatch.dispatch.placement import SubmittedBlock
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import SerializationError
from daskbatch.plan.blocks import Candidate
from daskbatch.plan.durations import Durations
from daskbatch.plan.packing import pack
from daskbatch.serialization import pickling
from daskbatch.serialization.diagnosis import hint_on_function

#: Results of blocks up to this size may travel along order-only edges. Bytes.
_SMALL = 4096


class Submitter(Protocol):
    """What runs graphs."""

    @property
    def slots(self) -> int:
        """How many tasks run at once."""

    def submit(self, lowered: Lowered, again: bool) -> Mapping[str, Any]:
        """Submit a graph, and give each block its future; returns those of the buffers.

        What is submitted `again` need not queue up behind all that came since.
        """


class Placer:
    """Places tasks, and learns from what they took.

    Parameters
    ----------
    submitter : Submitter
        Where blocks run.
    setting : Setting
        What is the same for all blocks.
    """

    def __init__(self, submitter: Submitter, setting: Setting) -> None:
        self._submitter = submitter
        self._setting = setting
        self._numbers = itertools.count()
        self._known = Durations()
        self._buffers: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

    def place(
        self, records: Sequence[TaskRecord], name: str, others: int = 0, again: bool = False
    ) -> list[SubmittedBlock]:
        """Place tasks; returns the blocks.

        Parameters
        ----------
        records : sequence of TaskRecord
            Each behind those that it waits for. What it waits for is over, or placed
            already, or among them.
        name : str
            What Dask's dashboard is to call them.
        others : int
            How many tasks are placed already, and not over.
        again : bool
            Whether they have been placed before, and have come back.
        """
        for position, record in enumerate(records):
            record.block, record.member = None, position
        sizes = [len(record.call.data) if record.call is not None else 0 for record in records]
        blocks = []
        candidates = self._candidates(records)
        for positions in pack(candidates, sizes, self._submitter.slots, others):
            block = SubmittedBlock(
                next(self._numbers), [records[position] for position in positions]
            )
            block.small = self._is_small(block)
            block.long = any(candidates[position].long for position in positions)
            blocks.append(block)
        known = dict(self._buffers)
        # The dashboard shows a name without what looks like a hexadecimal number behind it. It
        # is long, since Dask takes two equal keys for one, whichever clients they are of.
        lowered = lower(blocks, name, uuid.uuid4().hex[:16], self._setting, known)
        known.update(self._submitter.submit(lowered, again))
        for block in blocks:
            block.held = [known[key] for key in block.buffers]
            prepare = block.records[0].options.prepare
            if prepare is not None and isinstance(setup := prepare.packed(), pickling.Buffer):
                prepare.held = known[buffer_key(setup)]  # for all calls to come
        self._buffers.update(known)
        return blocks

    def learn(self, ran: Sequence[TaskRecord], sizes: Sequence[int]) -> None:
        """Take in how long some tasks ran, and how many bytes each left; -1 is many."""
        much = self._setting.share_limit + 1
        calls: dict[Hashable, int] = {}
        seconds: dict[Hashable, float] = {}
        largest: dict[Hashable, int] = {}
        for record, size in zip(ran, sizes, strict=True):
            if record.call is not None:
                family = record.call.family
                calls[family] = calls.get(family, 0) + 1
                seconds[family] = seconds.get(family, 0.0) + record.seconds
                if size < 0:
                    size = much
                if size > largest.get(family, 0):
                    largest[family] = size
        for family, count in calls.items():
            self._known.add(family, count, seconds[family], largest.get(family, 0))

    def _candidates(self, records: Iterable[TaskRecord]) -> list[Candidate]:
        alike: dict[tuple[Hashable, Hashable], Candidate] = {}
        candidates = []
        for record in records:
            if record.call is None:
                candidate = Candidate(0.0)
            else:
                like = record.call.family, record.options.placement_key
                found = alike.get(like)
                if found is None and record.options.apart is not None:
                    # How many of them go together is decided already.
                    found = alike[like] = Candidate(0.0, kind=("placed", like[1]))
                elif found is None:
                    found = alike[like] = self._candidate(*like)
                candidate = found
            candidates.append(_with_waits(candidate, record) if record.waits else candidate)
        return candidates

    def _candidate(self, family: Hashable, block: Hashable) -> Candidate:
        largest = self._known.largest(family) or 0
        return Candidate(
            seconds=self._known.seconds(family),
            kind=("placed", block),
            solo=largest > self._setting.share_limit,
        )

    def _is_small(self, block: SubmittedBlock) -> bool:
        size = 0
        for record in block.records:
            if record.call is not None:
                largest = self._known.largest(record.call.family)
                size += _SMALL if largest is None else largest
                if size >= _SMALL:
                    return False
        return True


def _with_waits(candidate: Candidate, record: TaskRecord) -> Candidate:
    left = record.waits_left()
    if not left:
        return candidate
    return Candidate(
        candidate.seconds,
        candidate.kind,
        candidate.solo,
        waits=tuple(before.member for before in left if before.block is None),
        outside=frozenset(
            before.block.number for before in left if before.block is not None and before.block.long
        ),
        overwrites=tuple(
            before.member
            for before in record.overwrites
            if not before.over and before.block is None
        ),
    )


def pickle_functions(records: Iterable[TaskRecord]) -> None:
    """Pickle each function once, as it is now, its globals and all.

    Those of tasks that are queued stay as they are, once they have been pickled.
    """
    pickled: dict[int, bytes | SerializationError] = {}
    for record in records:
        if record.call is None or (record.function and record.phase == Phase.QUEUED):
            continue
        function = record.call.function
        found = pickled.get(id(function))
        if found is None:
            try:
                # Those that are started together are of one executor, or of none.
                prepare = record.options.prepare
                found = pickling.dumps(function) if prepare is None else prepare.dumps(function)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # to pickle may run anything, sys.exit() included
                hint = hint_on_function(function, error)
                found = SerializationError(f"{type(error).__name__}: {error}{hint}")
                found.__cause__ = error
            pickled[id(function)] = found
        record.function = found
