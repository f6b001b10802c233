"""Packs tasks into blocks so that no two blocks wait for each other, whatever the tasks wait for.

Does not know tasks beyond what a `Candidate` says, nor what a block becomes.

Approach, in the order of the code:

1. Tasks that can only run one after another (each is the only successor of its only
   predecessor) form a *strand*. A strand is packed as a whole.
2. Strands go into blocks in program order. Each block has a *level*, above the levels of all
   blocks that it waits for, so that two blocks cannot wait for each other.
   a. Where the graph is narrow, going from one Dask key to the next costs more than running
      the tasks one after another. There a strand joins the block of its predecessors.
   b. Elsewhere a strand joins an open block of its own level that holds similar tasks, within
      the limits of `blocks`.

A block that has a long member, or that waits for something long, takes no other members. The
time is linear in tasks and waits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field

from daskbatch.plan.blocks import (
    MAX_BLOCK_BYTES,
    MAX_BLOCK_SECONDS,
    MAX_BLOCK_TASKS,
    UNKNOWN_BLOCKS_PER_SLOT,
    Candidate,
    estimate_seconds,
    long_tasks_per_block,
    pack_independent,
    seconds_of_next_block,
    seconds_of_unknown_block,
)

#: The time from the end of one Dask key to the start of the next one that waits for it.
_KEY_TO_KEY_SECONDS = 0.005

#: If each depth of a graph is spread over all slots, and that makes at most this many blocks for
#: each slot, the graph is *shallow*: the time from key to key does not matter.
_MAX_SHALLOW_BLOCKS_PER_SLOT = 16


@dataclass(slots=True, eq=False)
class _Strand:
    """Tasks that can only run one after another."""

    #: The expected duration, the number of tasks, and the bytes of their arguments.
    seconds: float = 0.0
    tasks: int = 0
    size: int = 0
    #: The candidates whose inputs its tasks overwrite; see `Candidate`.
    overwrites: list[int] = field(default_factory=list)
    block: _Block | None = None


@dataclass(slots=True, eq=False)
class _Block:
    """A block that is being filled."""

    level: int
    #: The kind of its members; see `Candidate`.
    kind: Hashable
    #: Whether its members are long.
    long: bool
    #: The expected seconds that may still be added.
    room: float
    max_tasks: int = MAX_BLOCK_TASKS
    members: list[int] = field(default_factory=list)
    #: The number of tasks, members of later positions included, and the bytes of their arguments.
    tasks: int = 0
    size: int = 0
    #: The blocks that it waits for.
    waits: set[_Block] = field(default_factory=set)

    def fits(self, strand: _Strand) -> bool:
        return (
            strand.seconds <= self.room
            and self.tasks + strand.tasks <= self.max_tasks
            and self.size + strand.size <= MAX_BLOCK_BYTES
        )

    def add(self, strand: _Strand) -> None:
        strand.block = self
        self.room -= strand.seconds
        self.tasks += strand.tasks
        self.size += strand.size


def pack(
    candidates: Sequence[Candidate], sizes: Sequence[int], slots: int, other_tasks: int = 0
) -> list[list[int]]:
    """Pack tasks into blocks.

    Parameters
    ----------
    candidates : sequence of Candidate
        The tasks, each after those that it waits for.
    sizes : sequence of int
        The bytes of each task's arguments.
    slots : int
        The number of tasks that the cluster runs at once.
    other_tasks : int
        The number of other tasks that the cluster has to run.

    Returns
    -------
    list of list of int
        The members of each block, in program order; each block after those that it waits for.

    Examples
    --------
    >>> first, second = Candidate(0.001, "k"), Candidate(0.001, "k", waits=(0,))
    >>> pack([first, second, Candidate(9.0, "k")], [9, 9, 9], 1)
    [[0, 1], [2]]
    """
    if any(candidate.waits for candidate in candidates):
        return _Packing(candidates, sizes, max(1, slots), other_tasks).blocks()
    return pack_independent(candidates, sizes, max(1, slots), other_tasks)


class _Packing:
    """One call of `pack` for tasks that wait for each other."""

    def __init__(
        self, candidates: Sequence[Candidate], sizes: Sequence[int], slots: int, other_tasks: int
    ) -> None:
        self._candidates = candidates
        self._sizes = sizes
        self._slots = slots
        self._other_seconds = estimate_seconds(candidates, other_tasks)
        #: For each candidate: its strand, and its depth in the graph.
        self._strands: list[_Strand] = []
        self._depths: list[int] = []
        #: By depth and kind: the seconds of all tasks, and of those that are not packed yet;
        #: and the number of long tasks.
        self._total_seconds: defaultdict[tuple[int, Hashable], float] = defaultdict(float)
        self._remaining_seconds: dict[tuple[int, Hashable], float] = {}
        self._long_counts: defaultdict[tuple[int, Hashable], int] = defaultdict(int)
        #: By depth: the seconds of all tasks.
        self._seconds_by_depth: defaultdict[int, float] = defaultdict(float)
        #: Whether the time from one key to the next does not matter.
        self._is_shallow = True
        #: By what members of a block must have in common: the last of these blocks.
        self._open_blocks: dict[Hashable, _Block] = {}
        self._blocks: list[_Block] = []

    def blocks(self) -> list[list[int]]:
        self._find_strands()
        self._remaining_seconds = dict(self._total_seconds)
        self._is_shallow = self._count_spread_blocks() <= _MAX_SHALLOW_BLOCKS_PER_SLOT * self._slots
        for position, candidate in enumerate(self._candidates):
            strand = self._strands[position]
            block = strand.block
            if block is None:
                block = self._choose_block(position, candidate, strand)
                block.add(strand)
                self._remaining_seconds[self._depths[position], candidate.kind] -= strand.seconds
            block.members.append(position)
        # A block may wait for one that was opened after it, but which is of a lower level.
        return [block.members for block in sorted(self._blocks, key=lambda block: block.level)]

    # -- 1. Strands ------------------------------------------------------------------------

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
            strand.seconds += candidate.expected_seconds
            strand.tasks += 1
            strand.size += self._sizes[position]
            strand.overwrites += candidate.overwrites
            self._seconds_by_depth[depth] += candidate.expected_seconds
            self._total_seconds[depth, candidate.kind] += candidate.expected_seconds
            if candidate.long:
                self._long_counts[depth, candidate.kind] += 1

    def _strand_to_extend(
        self, position: int, candidate: Candidate, successors: Mapping[int, int]
    ) -> _Strand | None:
        """Return the strand that a task continues; None if it begins one."""
        if len(candidate.waits) != 1 or candidate.outside or candidate.long:
            return None
        (before,) = candidate.waits
        previous, strand = self._candidates[before], self._strands[before]
        if (
            successors[before] > 1
            or previous.long
            or previous.kind != candidate.kind
            or strand.seconds + candidate.expected_seconds > MAX_BLOCK_SECONDS
            or strand.tasks >= MAX_BLOCK_TASKS
            or strand.size + self._sizes[position] > MAX_BLOCK_BYTES
            or any(self._strands[other] is strand for other in candidate.overwrites)
        ):
            return None
        return strand

    def _count_spread_blocks(self) -> int:
        """Count the blocks that there would be if each depth were spread over all slots."""
        heads: defaultdict[int, int] = defaultdict(int)
        seen: set[_Strand] = set()
        for strand, depth in zip(self._strands, self._depths, strict=True):
            if strand not in seen:
                seen.add(strand)
                heads[depth] += 1
        most = UNKNOWN_BLOCKS_PER_SLOT * self._slots
        return sum(min(count, most) for count in heads.values())

    # -- 2. Blocks ------------------------------------------------------------------------

    def _choose_block(self, position: int, candidate: Candidate, strand: _Strand) -> _Block:
        before = {self._strands[other].block for other in candidate.waits}
        waits: set[_Block] = {block for block in before if block is not None}
        if self._is_narrow(position, candidate):
            joined = self._join_predecessors(candidate, strand, waits)
            if joined is not None:
                return joined
        level = 1 + max((block.level for block in waits), default=-1)
        long_waits = frozenset(id(block) for block in waits if block.long)
        shared_traits = level, candidate.kind, long_waits, candidate.outside, candidate.long
        is_solo = candidate.solo or candidate.kind is None
        block = self._open_blocks.get(shared_traits)
        if is_solo or block is None or not block.fits(strand):
            block = self._new_block(position, candidate, strand, level)
            if not is_solo:
                self._open_blocks[shared_traits] = block
        block.waits |= waits
        return block

    def _is_narrow(self, position: int, candidate: Candidate) -> bool:
        """Return whether all tasks of this depth together take no longer than a change of keys."""
        if not candidate.waits or candidate.outside or candidate.long or self._is_shallow:
            return False
        return self._seconds_by_depth[self._depths[position]] <= _KEY_TO_KEY_SECONDS

    def _join_predecessors(
        self, candidate: Candidate, strand: _Strand, waits: set[_Block]
    ) -> _Block | None:
        """Return the block of the predecessors that a strand may join; None if it may not."""
        top = max(block.level for block in waits)
        block, *others = (block for block in waits if block.level == top)
        if (
            others
            or block.long
            or not block.fits(strand)
            # A barrier may join any kind, but must not make other members wait for more.
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
            block.max_tasks = long_tasks_per_block(self._long_counts[key], self._slots)
        elif candidate.seconds is None and self._is_shallow:
            block.room = seconds_of_unknown_block(self._total_seconds[key], self._slots)
        elif not self._is_shallow and self._seconds_by_depth[key[0]] <= _KEY_TO_KEY_SECONDS:
            block.room = MAX_BLOCK_SECONDS
        else:
            remaining = self._remaining_seconds[key] + self._other_seconds
            block.room = seconds_of_next_block(remaining, self._slots)
        block.room = max(block.room, strand.seconds)
        self._blocks.append(block)
        return block
