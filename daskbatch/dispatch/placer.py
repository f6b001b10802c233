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
from daskbatch.dispatch.placement import Placement
from daskbatch.dispatch.task_record import Cell, Phase
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
        self, cells: Sequence[Cell], name: str, others: int = 0, again: bool = False
    ) -> list[Placement]:
        """Place tasks; returns the blocks.

        Parameters
        ----------
        cells : sequence of Cell
            Each behind those that it waits for. What it waits for is over, or placed
            already, or among them.
        name : str
            What Dask's dashboard is to call them.
        others : int
            How many tasks are placed already, and not over.
        again : bool
            Whether they have been placed before, and have come back.
        """
        for position, cell in enumerate(cells):
            cell.placement, cell.member = None, position
        sizes = [len(cell.call.data) if cell.call is not None else 0 for cell in cells]
        placements = []
        candidates = self._candidates(cells)
        for block in pack(candidates, sizes, self._submitter.slots, others):
            placement = Placement(next(self._numbers), [cells[position] for position in block])
            placement.small = self._is_small(placement)
            placement.long = any(candidates[position].long for position in block)
            placements.append(placement)
        known = dict(self._buffers)
        # The dashboard shows a name without what looks like a hexadecimal number behind it. It
        # is long, since Dask takes two equal keys for one, whichever clients they are of.
        lowered = lower(placements, name, uuid.uuid4().hex[:16], self._setting, known)
        known.update(self._submitter.submit(lowered, again))
        for placement in placements:
            placement.held = [known[key] for key in placement.buffers]
            prepare = placement.cells[0].options.prepare
            if prepare is not None and isinstance(setup := prepare.packed(), pickling.Buffer):
                prepare.held = known[buffer_key(setup)]  # for all calls to come
        self._buffers.update(known)
        return placements

    def learn(self, ran: Sequence[Cell], sizes: Sequence[int]) -> None:
        """Take in how long some tasks ran, and how many bytes each left; -1 is many."""
        much = self._setting.share_limit + 1
        calls: dict[Hashable, int] = {}
        seconds: dict[Hashable, float] = {}
        largest: dict[Hashable, int] = {}
        for cell, size in zip(ran, sizes, strict=True):
            if cell.call is not None:
                family = cell.call.family
                calls[family] = calls.get(family, 0) + 1
                seconds[family] = seconds.get(family, 0.0) + cell.seconds
                if size < 0:
                    size = much
                if size > largest.get(family, 0):
                    largest[family] = size
        for family, count in calls.items():
            self._known.add(family, count, seconds[family], largest.get(family, 0))

    def _candidates(self, cells: Iterable[Cell]) -> list[Candidate]:
        alike: dict[tuple[Hashable, Hashable], Candidate] = {}
        candidates = []
        for cell in cells:
            if cell.call is None:
                candidate = Candidate(0.0)
            else:
                like = cell.call.family, cell.options.placement
                found = alike.get(like)
                if found is None:
                    found = alike[like] = self._candidate(*like)
                candidate = found
            candidates.append(_with_waits(candidate, cell) if cell.waits else candidate)
        return candidates

    def _candidate(self, family: Hashable, placement: Hashable) -> Candidate:
        largest = self._known.largest(family) or 0
        return Candidate(
            seconds=self._known.seconds(family),
            kind=("placed", placement),
            solo=largest > self._setting.share_limit,
        )

    def _is_small(self, placement: Placement) -> bool:
        size = 0
        for cell in placement.cells:
            if cell.call is not None:
                largest = self._known.largest(cell.call.family)
                size += _SMALL if largest is None else largest
                if size >= _SMALL:
                    return False
        return True


def _with_waits(candidate: Candidate, cell: Cell) -> Candidate:
    left = cell.waits_left()
    if not left:
        return candidate
    return Candidate(
        candidate.seconds,
        candidate.kind,
        candidate.solo,
        waits=tuple(before.member for before in left if before.placement is None),
        outside=frozenset(
            before.placement.number
            for before in left
            if before.placement is not None and before.placement.long
        ),
        overwrites=tuple(
            before.member
            for before in cell.overwrites
            if not before.over and before.placement is None
        ),
    )


def pickle_functions(cells: Iterable[Cell]) -> None:
    """Pickle each function once, as it is now, its globals and all.

    Those of tasks that are queued stay as they are, once they have been pickled.
    """
    pickled: dict[int, bytes | SerializationError] = {}
    for cell in cells:
        if cell.call is None or (cell.function and cell.phase == Phase.QUEUED):
            continue
        function = cell.call.function
        found = pickled.get(id(function))
        if found is None:
            try:
                # Those that are started together are of one executor, or of none.
                prepare = cell.options.prepare
                found = pickling.dumps(function) if prepare is None else prepare.dumps(function)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # to pickle may run anything, sys.exit() included
                hint = hint_on_function(function, error)
                found = SerializationError(f"{type(error).__name__}: {error}{hint}")
                found.__cause__ = error
            pickled[id(function)] = found
        cell.function = found
