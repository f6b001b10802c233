"""Packs tasks into blocks so that no two blocks wait for each other, whatever the tasks wait for.

Does not know tasks beyond what a `Candidate` says, nor what a block becomes.

Approach, in the order of the code:

1. Tasks that can only run one after another (each is the only successor of its only
   predecessor) form a *chain*. A chain is packed as a whole.
2. Chains go into blocks in program order. Each block has a *level*, above the levels of all
   blocks that it waits for, so that two blocks cannot wait for each other.
   a. Where the graph is narrow, going from one Dask key to the next costs more than running
      the tasks one after another. There a chain joins the block of its predecessors.
   b. Elsewhere a chain joins an open block of its own level that holds similar tasks, within
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

#: A graph whose levels, each spread over all slots, make at most this many blocks for each slot
#: is too shallow for the time from key to key to matter.
_MAX_SHALLOW_BLOCKS_PER_SLOT = 16


@dataclass(slots=True, eq=False)
class _Chain:
    """Tasks that can only run one after another."""

    seconds: float = 0.0
    tasks: int = 0
    size: int = 0
    overwrites: list[int] = field(default_factory=list)
    block: _Block | None = None


@dataclass(slots=True, eq=False)
class _Block:
    """A block that is being filled."""

    level: int
    kind: Hashable
    long: bool
    #: The seconds that may still be added.
    room: float
    max_tasks: int = MAX_BLOCK_TASKS
    members: list[int] = field(default_factory=list)
    tasks: int = 0
    size: int = 0
    waits: set[_Block] = field(default_factory=set)

    def fits(self, chain: _Chain) -> bool:
        return (
            chain.seconds <= self.room
            and self.tasks + chain.tasks <= self.max_tasks
            and self.size + chain.size <= MAX_BLOCK_BYTES
        )

    def add(self, chain: _Chain) -> None:
        chain.block = self
        self.room -= chain.seconds
        self.tasks += chain.tasks
        self.size += chain.size


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
    """One run of the algorithm."""

    def __init__(
        self, candidates: Sequence[Candidate], sizes: Sequence[int], slots: int, other_tasks: int
    ) -> None:
        self._candidates = candidates
        self._sizes = sizes
        self._slots = slots
        self._other_seconds = estimate_seconds(candidates, other_tasks)
        #: For each candidate: its chain, and its depth in the graph.
        self._chains: list[_Chain] = []
        self._depths: list[int] = []
        #: By depth and kind: the seconds of all tasks, and of those that are not packed yet;
        #: and the number of long tasks.
        self._total: defaultdict[tuple[int, Hashable], float] = defaultdict(float)
        self._remaining: dict[tuple[int, Hashable], float] = {}
        self._long: defaultdict[tuple[int, Hashable], int] = defaultdict(int)
        #: By depth: the seconds of all tasks.
        self._width: defaultdict[int, float] = defaultdict(float)
        self._shallow = True
        #: The last block of each sort, which may have room.
        self._open: dict[Hashable, _Block] = {}
        self._blocks: list[_Block] = []

    def blocks(self) -> list[list[int]]:
        self._find_chains()
        self._remaining = dict(self._total)
        self._shallow = self._count_spread_blocks() <= _MAX_SHALLOW_BLOCKS_PER_SLOT * self._slots
        for position, candidate in enumerate(self._candidates):
            chain = self._chains[position]
            block = chain.block
            if block is None:
                block = self._choose_block(position, candidate, chain)
                block.add(chain)
                self._remaining[self._depths[position], candidate.kind] -= chain.seconds
            block.members.append(position)
        # A block may wait for one that was opened after it, but which is of a lower level.
        return [block.members for block in sorted(self._blocks, key=lambda block: block.level)]

    # -- 1. Chains ------------------------------------------------------------------------

    def _find_chains(self) -> None:
        chains, depths = self._chains, self._depths
        successors: dict[int, int] = defaultdict(int)
        for candidate in self._candidates:
            for before in candidate.waits:
                successors[before] += 1
        for position, candidate in enumerate(self._candidates):
            depth = 0
            chain = None
            if candidate.waits:
                depth = 1 + max(depths[before] for before in candidate.waits)
                chain = self._chain_to_extend(position, candidate, successors)
            if chain is None:
                chain = _Chain()
            chains.append(chain)
            depths.append(depth)
            chain.seconds += candidate.expected_seconds
            chain.tasks += 1
            chain.size += self._sizes[position]
            chain.overwrites += candidate.overwrites
            self._width[depth] += candidate.expected_seconds
            self._total[depth, candidate.kind] += candidate.expected_seconds
            if candidate.long:
                self._long[depth, candidate.kind] += 1

    def _chain_to_extend(
        self, position: int, candidate: Candidate, successors: Mapping[int, int]
    ) -> _Chain | None:
        if len(candidate.waits) != 1 or candidate.outside or candidate.long:
            return None
        (before,) = candidate.waits
        previous, chain = self._candidates[before], self._chains[before]
        if (
            successors[before] > 1
            or previous.long
            or previous.kind != candidate.kind
            or chain.seconds + candidate.expected_seconds > MAX_BLOCK_SECONDS
            or chain.tasks >= MAX_BLOCK_TASKS
            or chain.size + self._sizes[position] > MAX_BLOCK_BYTES
            or any(self._chains[other] is chain for other in candidate.overwrites)
        ):
            return None
        return chain

    def _count_spread_blocks(self) -> int:
        """Count the blocks that there would be if each level were spread over all slots."""
        heads: defaultdict[int, int] = defaultdict(int)
        seen: set[_Chain] = set()
        for chain, depth in zip(self._chains, self._depths, strict=True):
            if chain not in seen:
                seen.add(chain)
                heads[depth] += 1
        most = UNKNOWN_BLOCKS_PER_SLOT * self._slots
        return sum(min(count, most) for count in heads.values())

    # -- 2. Blocks ------------------------------------------------------------------------

    def _choose_block(self, position: int, candidate: Candidate, chain: _Chain) -> _Block:
        before = {self._chains[other].block for other in candidate.waits}
        waits: set[_Block] = {block for block in before if block is not None}
        if self._is_narrow(position, candidate):
            joined = self._join_predecessors(candidate, chain, waits)
            if joined is not None:
                return joined
        level = 1 + max((block.level for block in waits), default=-1)
        long_waits = frozenset(id(block) for block in waits if block.long)
        sort = level, candidate.kind, long_waits, candidate.outside, candidate.long
        alone = candidate.solo or candidate.kind is None
        block = self._open.get(sort)
        if alone or block is None or not block.fits(chain):
            block = self._new_block(position, candidate, chain, level)
            if not alone:
                self._open[sort] = block
        block.waits |= waits
        return block

    def _is_narrow(self, position: int, candidate: Candidate) -> bool:
        if not candidate.waits or candidate.outside or candidate.long or self._shallow:
            return False
        return self._width[self._depths[position]] <= _KEY_TO_KEY_SECONDS

    def _join_predecessors(
        self, candidate: Candidate, chain: _Chain, waits: set[_Block]
    ) -> _Block | None:
        top = max(block.level for block in waits)
        block, *others = (block for block in waits if block.level == top)
        if (
            others
            or block.long
            or not block.fits(chain)
            # A barrier may join any kind, but must not make other members wait for more.
            or (candidate.kind is None and len(waits) > 1)
            or (candidate.kind is not None and candidate.kind != block.kind)
            or any(each.long and each is not block and each not in block.waits for each in waits)
            or any(self._chains[other].block is block for other in chain.overwrites)
        ):
            return None
        block.waits |= waits - {block}
        return block

    def _new_block(self, position: int, candidate: Candidate, chain: _Chain, level: int) -> _Block:
        key = self._depths[position], candidate.kind
        block = _Block(level, candidate.kind, candidate.long, room=float("inf"))
        if candidate.long:
            block.max_tasks = long_tasks_per_block(self._long[key], self._slots)
        elif candidate.seconds is None and self._shallow:
            block.room = seconds_of_unknown_block(self._total[key], self._slots)
        elif not self._shallow and self._width[key[0]] <= _KEY_TO_KEY_SECONDS:
            block.room = MAX_BLOCK_SECONDS
        else:
            remaining = self._remaining[key] + self._other_seconds
            block.room = seconds_of_next_block(remaining, self._slots)
        block.room = max(block.room, chain.seconds)
        self._blocks.append(block)
        return block
