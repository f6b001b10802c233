"""Packs tasks into blocks, so that many short tasks share one Dask key and long ones do not.

Does not know tasks beyond what a `Candidate` says, nor what a block becomes.

A task that is known to be long, or to return much, is a block of its own. Others share
blocks with their like, and how much goes into a block shrinks as the tasks are used up
(guided self-scheduling, Polychronopoulos and Kuck, IEEE Trans. Computers C-36(12), 1987),
so that the last blocks are small and all slots end together. Of tasks that nobody has seen
run, each slot gets a few large blocks: what turns out to be too much comes back.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

#: A task that takes longer is a block of its own. Seconds.
SOLO_SECONDS = 0.05

#: What a task is taken for that nobody has seen run yet. Blocks stop when their budget is
#: used up, so to be wrong costs one more round, once.
UNKNOWN_SECONDS = 5e-5

#: The bounds of what goes into a shared block: seconds, tasks, bytes of arguments.
LEAST_SECONDS, MOST_SECONDS = 0.005, 0.1
MOST_TASKS = 4096
MOST_BYTES = 1 << 20

#: Into how many blocks for each slot tasks of unknown duration are divided.
UNKNOWN_PER_SLOT = 4

#: More blocks than this for each slot are not made of tasks that could run at once.
MOST_BLOCKS_PER_SLOT = 256


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
        What else it waits for that may take long: blocks that have been submitted before.
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


def pack_loose(
    candidates: Sequence[Candidate], sizes: Sequence[int], slots: int, others: int = 0
) -> list[list[int]]:
    """Pack tasks none of which waits for another.

    Parameters
    ----------
    candidates : sequence of Candidate
        The tasks.
    sizes : sequence of int
        How many bytes each brings along.
    slots : int
        How many tasks the cluster runs at once.
    others : int
        How many tasks it has to run besides.

    Returns
    -------
    list of list of int
        The members of each block, in program order.
    """
    blocks: list[list[int]] = []
    short: defaultdict[tuple[Hashable, frozenset[int]], list[int]] = defaultdict(list)
    long: defaultdict[tuple[Hashable, frozenset[int]], list[int]] = defaultdict(list)
    for position, candidate in enumerate(candidates):
        if candidate.solo or candidate.kind is None:
            blocks.append([position])
        else:
            alike = long if candidate.long else short
            alike[candidate.kind, candidate.outside].append(position)
    for positions in long.values():
        count = company(len(positions), slots)
        blocks += [positions[start : start + count] for start in range(0, len(positions), count)]
    for positions in short.values():
        some = [candidates[position] for position in positions]
        blocks += _pack_short(some, positions, sizes, slots, backlog(candidates, others))
    return sorted(blocks)


def backlog(candidates: Sequence[Candidate], others: int) -> float:
    """Estimate the seconds of other tasks, by these."""
    return others * sum(candidate.weight for candidate in candidates) / len(candidates)


def _pack_short(
    candidates: Sequence[Candidate],
    positions: Sequence[int],
    sizes: Sequence[int],
    slots: int,
    besides: float,
) -> list[list[int]]:
    blocks: list[list[int]] = []
    unknown = any(candidate.seconds is None for candidate in candidates)
    total = sum(candidate.weight for candidate in candidates)
    left = total + besides
    even = _even_share(left, slots)
    room, size = -1.0, 0
    for candidate, position in zip(candidates, positions, strict=True):
        weight = candidate.weight
        size += sizes[position]
        if room < weight / 2 or size > MOST_BYTES or len(blocks[-1]) == MOST_TASKS:
            room = share_unknown(total, slots) if unknown else even or share_known(left, slots)
            size = sizes[position]
            blocks.append([])
        blocks[-1].append(position)
        room -= weight
        left -= weight
    return blocks


def _even_share(total: float, slots: int) -> float:
    """Divide what is soon done evenly: as many blocks for each slot; 0 if there is more."""
    if total > 4 * slots * LEAST_SECONDS:
        return 0.0
    return total / (slots * max(1, math.ceil(total / LEAST_SECONDS / slots)))


def share_unknown(total: float, slots: int) -> float:
    """Say how many seconds go into a block of tasks that nobody has seen run."""
    return min(total / (UNKNOWN_PER_SLOT * slots), MOST_SECONDS)


def share_known(left: float, slots: int) -> float:
    """Say how many seconds go into the next block, of those that are left."""
    return min(max(left / (2 * slots), LEAST_SECONDS), MOST_SECONDS)


def company(count: int, slots: int) -> int:
    """Say how many of so many long tasks share a block: one, unless Dask would suffer.

    What a block has no time for comes back, and by then it is better known whether it is
    long at all.
    """
    return max(1, -(-count // (MOST_BLOCKS_PER_SLOT * slots)))
