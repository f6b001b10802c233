"""Packs tasks into blocks, so that many short tasks share one Dask key and long ones do not.

Does not know tasks beyond what a `Candidate` says, nor what a block becomes.

The plan, in the order of the code:

1. Tasks that can only run one after another (each the only successor of the only
   predecessor) form a *strand*; a strand is packed as a whole.
2. Strands go into blocks in program order. A block has a *level*, above those of all blocks
   that it waits for, so that blocks cannot come to wait for each other.
   a. Where the graph is narrow, a hop between keys costs more than running things one
      after another: a strand joins the block of its predecessors.
   b. Else it joins an open block of its own level, with its like.
3. How much goes into a block at one level shrinks as the level is used up (guided
   self-scheduling, Polychronopoulos and Kuck, IEEE Trans. Computers C-36(12), 1987), so
   that the last blocks are small and all slots end together.

A block with a long member, or one that waits for something long, is no company for what
does not. The time is linear in tasks and waits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

#: A task that takes longer is a block of its own. Seconds.
SOLO_SECONDS = 0.05

#: What a task is taken for that nobody has seen run yet. Blocks stop when their budget is
#: used up, so to be wrong costs one more round, once.
UNKNOWN_SECONDS = 5e-5

#: The bounds of what goes into a shared block: seconds, tasks, bytes of arguments.
_LEAST_SECONDS, _MOST_SECONDS = 0.01, 0.1
_MOST_TASKS = 2048
_MOST_BYTES = 1 << 20

#: What it takes from the end of one key to the start of the next. Seconds.
_HOP_SECONDS = 0.005

#: Into how many blocks for each slot a level of tasks of unknown duration is divided.
_UNKNOWN_PER_SLOT = 4

#: A graph that makes no more blocks than this for each slot, if every level is spread over
#: all slots, is worth no thought about hops.
_SHALLOW_PER_SLOT = 16


@dataclass(frozen=True, slots=True)
class Candidate:
    """What has to be known of a task to pack it.

    Parameters
    ----------
    seconds : float or None
        How long its like have taken; None if nobody knows.
    kind : hashable
        Only tasks of equal kinds share a block. None for a barrier.
    solo : bool
        It must not share a block.
    waits : tuple of int
        The candidates that it waits for, by position.
    outside : frozenset
        What else it waits for: blocks that have been submitted before.
    overwrites : tuple of int
        The candidates that must not be in one block with it, since it overwrites what
        they read: if the worker dies in the block they could not be run again.
    """

    seconds: float | None = None
    kind: Hashable = None
    solo: bool = False
    waits: tuple[int, ...] = ()
    outside: frozenset[int] = frozenset()
    overwrites: tuple[int, ...] = ()
    #: The seconds that it is taken to need, and whether it is to be alone.
    weight: float = field(init=False)
    long: bool = field(init=False)

    def __post_init__(self) -> None:
        weight = UNKNOWN_SECONDS if self.seconds is None else self.seconds
        object.__setattr__(self, "weight", weight)
        object.__setattr__(self, "long", self.solo or weight > SOLO_SECONDS)


@dataclass(slots=True, eq=False)
class _Block:
    level: int
    kind: Hashable
    long: bool
    room: float
    members: list[int] = field(default_factory=list)
    tasks: int = 0
    size: int = 0
    waits: set[_Block] = field(default_factory=set)

    def fits(self, strand: _Strand) -> bool:
        return (
            not self.long
            and strand.seconds <= self.room
            and self.tasks + strand.tasks <= _MOST_TASKS
            and self.size + strand.size <= _MOST_BYTES
        )

    def take(self, strand: _Strand) -> None:
        self.room -= strand.seconds
        self.tasks += strand.tasks
        self.size += strand.size


@dataclass(slots=True, eq=False)
class _Strand:
    seconds: float = 0.0
    tasks: int = 0
    size: int = 0
    block: _Block | None = None


def pack(candidates: Sequence[Candidate], sizes: Sequence[int], slots: int) -> list[list[int]]:
    """Pack tasks into blocks.

    Parameters
    ----------
    candidates : sequence of Candidate
        The tasks, each behind those that it waits for.
    sizes : sequence of int
        How many bytes each brings along.
    slots : int
        How many tasks the cluster runs at once.

    Returns
    -------
    list of list of int
        The members of each block in program order; each block behind those that it
        waits for.
    """
    if any(candidate.waits for candidate in candidates):
        return _Packing(candidates, sizes, slots).blocks()
    return _pack_loose(candidates, sizes, max(1, slots))


def _pack_loose(
    candidates: Sequence[Candidate], sizes: Sequence[int], slots: int
) -> list[list[int]]:
    """Pack tasks none of which waits for another: what is left of the plan is step 3."""
    blocks: list[list[int]] = []
    shared: defaultdict[tuple[Hashable, frozenset[int]], list[int]] = defaultdict(list)
    for position, candidate in enumerate(candidates):
        if candidate.long or candidate.kind is None:
            blocks.append([position])
        else:
            shared[candidate.kind, candidate.outside].append(position)
    for positions in shared.values():
        weights = [candidates[position].weight for position in positions]
        unknown = any(candidates[position].seconds is None for position in positions)
        total = left = sum(weights)
        room, size = 0.0, 0
        block: list[int] = []
        for position, weight in zip(positions, weights, strict=True):
            size += sizes[position]
            if room < weight / 2 or size > _MOST_BYTES or len(block) == _MOST_TASKS:
                room = _share_unknown(total, slots) if unknown else _share_known(left, slots)
                size, block = sizes[position], []
                blocks.append(block)
            block.append(position)
            room -= weight
            left -= weight
    return sorted(blocks)


def _share_unknown(total: float, slots: int) -> float:
    return min(total / (_UNKNOWN_PER_SLOT * slots), _MOST_SECONDS)


def _share_known(left: float, slots: int) -> float:
    return min(max(left / (2 * slots), _LEAST_SECONDS), _MOST_SECONDS)


class _Packing:
    def __init__(self, candidates: Sequence[Candidate], sizes: Sequence[int], slots: int) -> None:
        self._candidates = candidates
        self._sizes = sizes
        self._slots = max(1, slots)
        self._strands: list[_Strand] = []
        self._depths: list[int] = []
        #: Seconds of tasks by depth and kind: all of them, and what is still to be packed.
        self._total: defaultdict[tuple[int, Hashable], float] = defaultdict(float)
        self._left: dict[tuple[int, Hashable], float] = {}
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
            if strand.block is None:
                strand.block = self._choose_block(position, candidate, strand)
                strand.block.take(strand)
                self._left[self._depths[position], candidate.kind] -= strand.seconds
            strand.block.members.append(position)
        # A block may have come to wait for one that was opened after it, but of a lower level.
        return [block.members for block in sorted(self._blocks, key=lambda block: block.level)]

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
            self._width[depth] += candidate.weight
            self._total[depth, candidate.kind] += candidate.weight

    def _spread(self) -> int:
        """Count the blocks that there would be if each level were spread over all slots."""
        heads: defaultdict[int, int] = defaultdict(int)
        seen: set[_Strand] = set()
        for strand, depth in zip(self._strands, self._depths, strict=True):
            if strand not in seen:
                seen.add(strand)
                heads[depth] += 1
        most = _UNKNOWN_PER_SLOT * self._slots
        return sum(min(count, most) for count in heads.values())

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
            or before in candidate.overwrites
            or strand.seconds + candidate.weight > _MOST_SECONDS
            or strand.tasks >= _MOST_TASKS
            or strand.size + self._sizes[position] > _MOST_BYTES
        ):
            return None
        return strand

    def _choose_block(self, position: int, candidate: Candidate, strand: _Strand) -> _Block:
        before = {self._strands[other].block for other in candidate.waits}
        waits: set[_Block] = {block for block in before if block is not None}
        top = max((block.level for block in waits), default=-1)
        # a. Go on where the predecessors are.
        if self._narrow(position, candidate):
            (block, *others) = (block for block in waits if block.level == top)
            if (
                not others
                and (candidate.kind is not None or len(waits) == 1)
                and candidate.kind in (block.kind, None)
                and block.fits(strand)
                and all(each is block or each in block.waits or not each.long for each in waits)
                and not any(self._strands[o].block is block for o in candidate.overwrites)
            ):
                block.waits |= waits - {block}
                return block
        # b. Go with one's like.
        apart = frozenset(id(block) for block in waits if block.long)
        like = top + 1, candidate.kind, apart, candidate.outside
        if not candidate.long and candidate.kind is not None:
            open_block = self._open.get(like)
            if open_block is not None and open_block.fits(strand):
                open_block.waits |= waits
                return open_block
        block = _Block(top + 1, candidate.kind, candidate.long, 0.0, waits=waits)
        self._blocks.append(block)
        if not candidate.long:
            block.room = max(self._share(position, candidate), strand.seconds)
            self._open[like] = block
        return block

    def _narrow(self, position: int, candidate: Candidate) -> bool:
        if not candidate.waits or candidate.outside or candidate.long or self._shallow:
            return False
        return self._width[self._depths[position]] <= _HOP_SECONDS

    def _share(self, position: int, candidate: Candidate) -> float:
        """Say how many seconds a new block gets."""
        depth = self._depths[position]
        if candidate.seconds is None and self._shallow:
            return _share_unknown(self._total[depth, candidate.kind], self._slots)
        if not self._shallow and self._width[depth] <= _HOP_SECONDS:
            return _MOST_SECONDS
        return _share_known(self._left[depth, candidate.kind], self._slots)
