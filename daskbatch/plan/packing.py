"""Packs tasks that wait for each other into blocks that do not.

Does not know tasks beyond what a `Candidate` says, nor what a block becomes.

The plan, in the order of the code:

1. Tasks that can only run one after another (each the only successor of the only
   predecessor) form a *strand*; a strand is packed as a whole.
2. Strands go into blocks in program order. A block has a *level*, above those of all blocks
   that it waits for, so that blocks cannot come to wait for each other.
   a. Where the graph is narrow, a hop between keys costs more than running things one
      after another: a strand joins the block of its predecessors.
   b. Else it joins an open block of its own level, with its like, as far as `blocks` lets it.

A block with a long member, or one that waits for something long, is no company for what
does not. The time is linear in tasks and waits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from daskbatch.plan.blocks import (
    MOST_BYTES,
    MOST_SECONDS,
    MOST_TASKS,
    UNKNOWN_PER_SLOT,
    Candidate,
    backlog,
    company,
    pack_loose,
    share_known,
    share_unknown,
)

#: What it takes from the end of one key to the start of the next. Seconds.
_HOP_SECONDS = 0.005

#: A graph that makes no more blocks than this for each slot, if every level is spread over
#: all slots, is worth no thought about hops.
_SHALLOW_PER_SLOT = 16


@dataclass(slots=True, eq=False)
class _Strand:
    seconds: float = 0.0
    tasks: int = 0
    size: int = 0
    overwrites: list[int] = field(default_factory=list)
    block: _Block | None = None


@dataclass(slots=True, eq=False)
class _Block:
    level: int
    kind: Hashable
    long: bool
    room: float
    most: int = MOST_TASKS
    members: list[int] = field(default_factory=list)
    tasks: int = 0
    size: int = 0
    waits: set[_Block] = field(default_factory=set)

    def fits(self, strand: _Strand) -> bool:
        return (
            strand.seconds <= self.room
            and self.tasks + strand.tasks <= self.most
            and self.size + strand.size <= MOST_BYTES
        )

    def take(self, strand: _Strand) -> None:
        strand.block = self
        self.room -= strand.seconds
        self.tasks += strand.tasks
        self.size += strand.size


def pack(
    candidates: Sequence[Candidate], sizes: Sequence[int], slots: int, others: int = 0
) -> list[list[int]]:
    """Pack tasks into blocks.

    Parameters
    ----------
    candidates : sequence of Candidate
        The tasks, each behind those that it waits for.
    sizes : sequence of int
        How many bytes each brings along.
    slots : int
        How many tasks the cluster runs at once.
    others : int
        How many tasks it has to run besides.

    Returns
    -------
    list of list of int
        The members of each block in program order; each block behind those that it
        waits for.

    Examples
    --------
    >>> first, second = Candidate(0.001, "k"), Candidate(0.001, "k", waits=(0,))
    >>> pack([first, second, Candidate(9.0, "k")], [9, 9, 9], 1)
    [[0, 1], [2]]
    """
    if any(candidate.waits for candidate in candidates):
        return _Packing(candidates, sizes, max(1, slots), others).blocks()
    return pack_loose(candidates, sizes, max(1, slots), others)


class _Packing:
    def __init__(
        self, candidates: Sequence[Candidate], sizes: Sequence[int], slots: int, others: int
    ) -> None:
        self._candidates = candidates
        self._sizes = sizes
        self._slots = slots
        self._besides = backlog(candidates, others)
        self._strands: list[_Strand] = []
        self._depths: list[int] = []
        #: By depth and kind: seconds of all tasks, and of those still to be packed; and how
        #: many are long.
        self._total: defaultdict[tuple[int, Hashable], float] = defaultdict(float)
        self._left: dict[tuple[int, Hashable], float] = {}
        self._long: defaultdict[tuple[int, Hashable], int] = defaultdict(int)
        self._width: defaultdict[int, float] = defaultdict(float)
        self._shallow = True
        self._open: dict[Hashable, _Block] = {}
        self._blocks: list[_Block] = []

    def blocks(self) -> list[list[int]]:
        self._find_strands()
        self._left = dict(self._total)
        self._shallow = self._spread() <= _SHALLOW_PER_SLOT * self._slots
        for position, candidate in enumerate(self._candidates):
            strand = self._strands[position]
            block = strand.block
            if block is None:
                block = self._choose_block(position, candidate, strand)
                block.take(strand)
                self._left[self._depths[position], candidate.kind] -= strand.seconds
            block.members.append(position)
        # A block may have come to wait for one that was opened after it, but of a lower level.
        return [block.members for block in sorted(self._blocks, key=lambda block: block.level)]

    # -- 1. -------------------------------------------------------------------------------

    def _find_strands(self) -> None:
        strands, depths = self._strands, self._depths
        successors: dict[int, int] = defaultdict(int)
        for candidate in self._candidates:
            for before in candidate.waits:
                successors[before] += 1
        for position, candidate in enumerate(self._candidates):
            depth = 0
            strand = None
            if candidate.waits:
                depth = 1 + max(depths[before] for before in candidate.waits)
                strand = self._strand_to_extend(position, candidate, successors)
            if strand is None:
                strand = _Strand()
            strands.append(strand)
            depths.append(depth)
            strand.seconds += candidate.weight
            strand.tasks += 1
            strand.size += self._sizes[position]
            strand.overwrites += candidate.overwrites
            self._width[depth] += candidate.weight
            self._total[depth, candidate.kind] += candidate.weight
            if candidate.long:
                self._long[depth, candidate.kind] += 1

    def _strand_to_extend(
        self, position: int, candidate: Candidate, successors: Mapping[int, int]
    ) -> _Strand | None:
        if len(candidate.waits) != 1 or candidate.outside or candidate.long:
            return None
        (before,) = candidate.waits
        previous, strand = self._candidates[before], self._strands[before]
        if (
            successors[before] > 1
            or previous.long
            or previous.kind != candidate.kind
            or strand.seconds + candidate.weight > MOST_SECONDS
            or strand.tasks >= MOST_TASKS
            or strand.size + self._sizes[position] > MOST_BYTES
            or any(self._strands[other] is strand for other in candidate.overwrites)
        ):
            return None
        return strand

    def _spread(self) -> int:
        """Count the blocks that there would be if each level were spread over all slots."""
        heads: defaultdict[int, int] = defaultdict(int)
        seen: set[_Strand] = set()
        for strand, depth in zip(self._strands, self._depths, strict=True):
            if strand not in seen:
                seen.add(strand)
                heads[depth] += 1
        most = UNKNOWN_PER_SLOT * self._slots
        return sum(min(count, most) for count in heads.values())

    # -- 2. -------------------------------------------------------------------------------

    def _choose_block(self, position: int, candidate: Candidate, strand: _Strand) -> _Block:
        before = {self._strands[other].block for other in candidate.waits}
        waits: set[_Block] = {block for block in before if block is not None}
        if self._narrow(position, candidate):
            joined = self._join_predecessors(candidate, strand, waits)
            if joined is not None:
                return joined
        level = 1 + max((block.level for block in waits), default=-1)
        apart = frozenset(id(block) for block in waits if block.long)
        like = level, candidate.kind, apart, candidate.outside, candidate.long
        alone = candidate.solo or candidate.kind is None
        block = self._open.get(like)
        if alone or block is None or not block.fits(strand):
            block = self._new_block(position, candidate, strand, level)
            if not alone:
                self._open[like] = block
        block.waits |= waits
        return block

    def _narrow(self, position: int, candidate: Candidate) -> bool:
        if not candidate.waits or candidate.outside or candidate.long or self._shallow:
            return False
        return self._width[self._depths[position]] <= _HOP_SECONDS

    def _join_predecessors(
        self, candidate: Candidate, strand: _Strand, waits: set[_Block]
    ) -> _Block | None:
        top = max(block.level for block in waits)
        block, *others = (block for block in waits if block.level == top)
        if (
            others
            or block.long
            or not block.fits(strand)
            # A barrier is of any kind, but must not make others wait for more.
            or (candidate.kind is None and len(waits) > 1)
            or (candidate.kind is not None and candidate.kind != block.kind)
            or any(each.long and each is not block and each not in block.waits for each in waits)
            or any(self._strands[other].block is block for other in strand.overwrites)
        ):
            return None
        block.waits |= waits - {block}
        return block

    def _new_block(
        self, position: int, candidate: Candidate, strand: _Strand, level: int
    ) -> _Block:
        key = self._depths[position], candidate.kind
        block = _Block(level, candidate.kind, candidate.long, room=float("inf"))
        if candidate.long:
            block.most = company(self._long[key], self._slots)
        elif candidate.seconds is None and self._shallow:
            block.room = share_unknown(self._total[key], self._slots)
        elif not self._shallow and self._width[key[0]] <= _HOP_SECONDS:
            block.room = MOST_SECONDS
        else:
            block.room = share_known(self._left[key] + self._besides, self._slots)
        block.room = max(block.room, strand.seconds)
        self._blocks.append(block)
        return block
