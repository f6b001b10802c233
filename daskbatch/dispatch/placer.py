"""Packs tasks that may run into blocks, and submits the blocks to the cluster.

The dispatcher calls it with its lock held, and reports how long tasks of each kind took.
"""

from __future__ import annotations

import itertools
import uuid
import weakref
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, Protocol

from daskbatch.dispatch.lower import Lowered, Setting, buffer_key, lower
from daskbatch.dispatch.task_record import Phase, SubmittedBlock, TaskRecord
from daskbatch.errors import SerializationError
from daskbatch.plan.blocks import Candidate
from daskbatch.plan.durations import Durations
from daskbatch.plan.packing import pack
from daskbatch.serialization import pickling
from daskbatch.serialization.buffers import Buffer
from daskbatch.serialization.diagnosis import hint_on_function
from daskbatch.serialization.safe_text import is_from_outside, summary

#: Results of blocks up to this size may travel along order-only edges.
MAX_SMALL_RESULT_BYTES = 4096


class Submitter(Protocol):
    """The part of a cluster that runs graphs."""

    @property
    def slots(self) -> int:
        """The number of tasks that run at once."""

    @property
    def shares_memory(self) -> bool:
        """Whether all workers can map this process's memory."""

    def submit(self, lowered: Lowered, again: bool) -> Mapping[str, Any]:
        """Submit a graph and set the future of each block.

        Parameters
        ----------
        lowered : Lowered
            The graph.
        again : bool
            Whether its tasks were submitted before: then they need not wait behind what was
            submitted since.

        Returns
        -------
        mapping
            The futures of the graph's buffers, by their keys.
        """


class Placer:
    """Packs and submits tasks, and learns how long they take. Not thread-safe.

    Parameters
    ----------
    submitter : Submitter
        Where blocks run.
    setting : Setting
        The settings of all blocks.

    Attributes
    ----------
    durations : Durations
        What was learnt of tasks that have run.
    """

    def __init__(self, submitter: Submitter, setting: Setting) -> None:
        self._submitter = submitter
        self._setting = setting
        self._numbers = itertools.count()
        self.durations = Durations()
        #: The futures of buffers that are on the cluster, by their keys.
        self._buffers: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()

    def place(
        self, records: Sequence[TaskRecord], others: int = 0, again: bool = False
    ) -> list[SubmittedBlock]:
        """Pack tasks into blocks, submit them, and return the blocks.

        Parameters
        ----------
        records : sequence of TaskRecord
            Each after those that it waits for. What a task waits for is over, or submitted
            already, or among them.
        others : int
            The number of other tasks that are submitted and not over.
        again : bool
            Whether they have been submitted before, and were deferred or revoked.
        """
        for position, record in enumerate(records):
            record.block, record.member = None, position
        sizes = [len(record.call.data) if record.call is not None else 0 for record in records]
        blocks = []
        candidates = self._candidates(records)
        for positions in pack(candidates, sizes, self._places(records), others):
            block = SubmittedBlock(
                next(self._numbers), [records[position] for position in positions]
            )
            block.small = self._is_small(block)
            block.long = any(candidates[position].long for position in positions)
            block.expected_seconds = self._expected(block)
            blocks.append(block)
        # If somebody has cancelled one, or the scheduler has refused it, it is not there.
        futures = {k: f for k, f in self._buffers.items() if f.status != "cancelled"}
        # The number is long, because Dask takes equal keys for one key, even if they are of
        # different clients.
        lowered = lower(
            *(blocks, uuid.uuid4().hex[:16], self._setting, futures),
            shares_memory=self._submitter.shares_memory,
            again=again,
        )
        futures.update(self._submitter.submit(lowered, again))
        for block in blocks:
            block.buffer_futures = [futures[key] for key in block.buffer_keys]
            prepare = block.records[0].options.prepare
            if prepare is not None and isinstance(setup := prepare.packed(), Buffer):
                prepare.held = futures[buffer_key(setup)]  # for all later calls
        self._buffers.update(futures)
        return blocks

    def next_number(self) -> int:
        """Return a number for a block."""
        return next(self._numbers)

    def _places(self, records: Sequence[TaskRecord]) -> int:
        """Return how many blocks of these tasks can run at a time."""
        slots = self._submitter.slots
        if not records or records[0].options.gang is None:
            return slots
        gangs = {record.options.gang for record in records}
        # A block of gangs needs the slots of a gang. Each further block costs another grant.
        return max(1, slots // min(1 if gang is None else gang.slots for gang in gangs))

    def learn(self, ran: Sequence[TaskRecord], sizes: Sequence[int]) -> None:
        """Record how long tasks ran, and how large their results are.

        Parameters
        ----------
        ran : sequence of TaskRecord
            The tasks.
        sizes : sequence of int
            For each the bytes of its result; -1 for one that is too large to be reported.
        """
        large = self._setting.share_limit + 1
        if len(ran) == 1:  # of an open block
            (record,), (size,) = ran, sizes
            if record.call is not None:
                size = large if size < 0 else size
                self.durations.add(record.call.family, 1, record.seconds, size)
            return
        calls: dict[Hashable, int] = {}
        seconds: dict[Hashable, float] = {}
        largest: dict[Hashable, int] = {}
        for record, size in zip(ran, sizes, strict=True):
            if record.call is not None:
                family = record.call.family
                calls[family] = calls.get(family, 0) + 1
                seconds[family] = seconds.get(family, 0.0) + record.seconds
                if size < 0:
                    size = large
                if size > largest.get(family, 0):
                    largest[family] = size
        for family, count in calls.items():
            self.durations.add(family, count, seconds[family], largest.get(family, 0))

    def _candidates(self, records: Iterable[TaskRecord]) -> list[Candidate]:
        """Return what the packer needs to know of each task."""
        alike: dict[tuple[Hashable, Hashable], Candidate] = {}
        candidates = []
        for record in records:
            if record.call is None:
                candidate = Candidate(0.0)
            else:
                kind = record.call.family, record.options.placement_key
                found = alike.get(kind)
                if found is None and record.options.apart is not None:
                    # The caller has decided already which tasks share a block.
                    found = alike[kind] = Candidate(0.0, kind=("placed", kind[1]))
                elif found is None and record.options.future is not None:
                    # It may wait for long: only the tasks that need it wait with it.
                    found = alike[kind] = Candidate(None, kind=("placed", kind[1]), solo=True)
                elif found is None:
                    found = alike[kind] = self._candidate(*kind)
                candidate = found
            candidates.append(_with_waits(candidate, record) if record.waits else candidate)
        return candidates

    def _candidate(self, family: Hashable, placement: Hashable) -> Candidate:
        largest = self.durations.largest(family) or 0
        return Candidate(
            seconds=self.durations.seconds(family),
            kind=("placed", placement),
            solo=largest > self._setting.share_limit,
        )

    def _expected(self, block: SubmittedBlock) -> float:
        """Return how long a block is expected to run; its budget if a duration is not known."""
        total = 0.0
        for record in block.records:
            if record.call is not None:
                seconds = self.durations.seconds(record.call.family)
                if seconds is None:
                    return self._setting.budget
                total += seconds
        return total

    def _is_small(self, block: SubmittedBlock) -> bool:
        """Return whether the result of a block may travel along order-only edges."""
        size = 0
        for record in block.records:
            if record.call is not None:
                largest = self.durations.largest(record.call.family)
                size += MAX_SMALL_RESULT_BYTES if largest is None else largest
                if size >= MAX_SMALL_RESULT_BYTES:
                    return False
        return True


def _with_waits(candidate: Candidate, record: TaskRecord) -> Candidate:
    """Return a candidate with what its task still waits for."""
    unfinished = record.unfinished_waits()
    if not unfinished:
        return candidate
    waits: list[int] = []
    outside: list[int] = []
    for before in unfinished:
        if before.block is None:
            waits.append(before.member)
        elif before.block.long:
            outside.append(before.block.number)
    return Candidate(
        candidate.seconds,
        candidate.kind,
        candidate.solo,
        tuple(waits),
        frozenset(outside),
        tuple([each.member for each in record.overwrites if not each.over and each.block is None]),
    )


def pickle_functions(records: Iterable[TaskRecord]) -> None:
    """Pickle each function once, with its globals, as they are now.

    A function that was pickled for a queued task is not pickled again for it. A function that
    cannot be pickled makes its tasks fail later; nothing is raised, except by a signal
    handler (Ctrl-C).
    """
    pickled: dict[int, bytes | SerializationError] = {}
    for record in records:
        if record.call is None or (record.function and record.phase == Phase.QUEUED):
            continue
        function = record.call.function
        found = pickled.get(id(function))
        if found is None:
            try:
                # Tasks that are started together belong to one executor, or to none.
                prepare = record.options.prepare
                found = pickling.dumps(function) if prepare is None else prepare.dumps(function)
            except BaseException as error:  # pickling may run any code, even sys.exit()
                if is_from_outside(error):
                    raise
                hint = hint_on_function(function, error)
                found = SerializationError(f"{summary(error)}{hint}")
                found.__cause__ = error
            pickled[id(function)] = found
        record.function = found
