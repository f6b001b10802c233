"""Packs independent tasks into blocks: many short tasks share one Dask key, long ones do not.

Does not know tasks beyond what a `Candidate` says, nor what a block becomes.

A task that is known to be long, or to return much, is a block by itself; but a few long ones share
one while many more follow. Other tasks share blocks with similar tasks, and the share of the
remaining work that a block takes shrinks towards the end (guided self-scheduling, Polychronopoulos
and Kuck, IEEE Trans. Computers C-36(12), 1987), so that the last blocks are small and all slots
finish at about the same time.
For tasks of unknown duration, each slot gets a few large blocks: a block that takes too long
returns the members that it has not started.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

#: A task that takes longer than this is a long one.
SOLO_THRESHOLD_SECONDS = 0.05

#: The duration assumed for a task of a family that has never run. A block stops when its time
#: budget is used up, so a wrong assumption costs one more round, once.
ASSUMED_TASK_SECONDS = 5e-5

#: The limits of a shared block: its expected duration, its number of tasks, and the bytes of their
#: arguments.
MIN_BLOCK_SECONDS, MAX_BLOCK_SECONDS = 0.005, 0.1
MAX_BLOCK_TASKS = 4096
MAX_BLOCK_BYTES = 1 << 20

#: Tasks of unknown duration are divided into this many blocks for each slot.
UNKNOWN_BLOCKS_PER_SLOT = 4

#: Long tasks share a block up to this time, while at least so many blocks for each slot follow:
#: from the end of one Dask key to the begin of the next one, a slot waits for some milliseconds.
MAX_LONG_BLOCK_SECONDS = 0.25
LONG_BLOCKS_PER_SLOT = 8

#: Long tasks that could run at once make at most this many blocks for each slot.
MAX_LONG_BLOCKS_PER_SLOT = 256


class _CandidateFields(NamedTuple):
    """The fields of a `Candidate`, in the order of its parameters."""

    seconds: float | None
    kind: Hashable
    solo: bool
    waits: tuple[int, ...]
    outside: frozenset[int]
    overwrites: tuple[int, ...]
    #: The seconds that it is expected to take, known or assumed.
    expected_seconds: float
    #: Whether it should be a block by itself.
    long: bool


class Candidate(_CandidateFields):
    """A task as the packing sees it. A tuple: one is made for each task that waits.

    Parameters
    ----------
    seconds : float or None
        The average duration of similar tasks; None if none of them has run.
    kind : hashable
        Only tasks of equal kinds share a block. None for a barrier.
    solo : bool
        Whether it must not share a block.
    waits : tuple of int
        The candidates that it waits for, by position.
    outside : frozenset
        Blocks that were submitted before, that may take long, and that it waits for.
    overwrites : tuple of int
        The candidates that must not be in one block with it: it overwrites what they read, so
        if the worker died within the block, they could not be run again.
    """

    __slots__ = ()

    def __new__(
        cls,
        seconds: float | None = None,
        kind: Hashable = None,
        solo: bool = False,
        waits: tuple[int, ...] = (),
        outside: frozenset[int] = frozenset(),
        overwrites: tuple[int, ...] = (),
    ) -> Candidate:
        expected = ASSUMED_TASK_SECONDS if seconds is None else seconds
        long = solo or expected > SOLO_THRESHOLD_SECONDS
        fields = seconds, kind, solo, waits, outside, overwrites, expected, long
        return tuple.__new__(cls, fields)


def pack_independent(
    candidates: Sequence[Candidate], sizes: Sequence[int], slots: int, other_tasks: int = 0
) -> list[list[int]]:
    """Pack tasks none of which waits for another.

    Parameters
    ----------
    candidates : sequence of Candidate
        The tasks.
    sizes : sequence of int
        The bytes of each task's arguments.
    slots : int
        The number of tasks that the cluster runs at once.
    other_tasks : int
        The number of other tasks that the cluster has to run.

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
            similar = long if candidate.long else short
            similar[candidate.kind, candidate.outside].append(position)
    for positions in long.values():
        expected = [candidates[position].expected_seconds for position in positions]
        blocks += _pack_long(positions, expected, slots)
    for positions in short.values():
        some = [candidates[position] for position in positions]
        other_seconds = estimate_seconds(candidates, other_tasks)
        blocks += _pack_short(some, positions, sizes, slots, other_seconds)
    return sorted(blocks)


def _pack_long(positions: Sequence[int], expected: Sequence[float], slots: int) -> list[list[int]]:
    """Pack similar long tasks: a few share a block only while many more follow."""
    blocks: list[list[int]] = []
    most = long_tasks_per_block(len(positions), slots)
    remaining, room = sum(expected), 0.0
    for position, seconds in zip(positions, expected, strict=True):
        if blocks and (seconds <= room or len(blocks[-1]) < most):
            blocks[-1].append(position)
        else:
            blocks.append([position])
            room = min(MAX_LONG_BLOCK_SECONDS, remaining / (LONG_BLOCKS_PER_SLOT * slots))
        room -= seconds
        remaining -= seconds
    return blocks


def estimate_seconds(candidates: Sequence[Candidate], other_tasks: int) -> float:
    """Return the expected seconds of other tasks: each as long as the average candidate."""
    total = sum(candidate.expected_seconds for candidate in candidates)
    return other_tasks * total / len(candidates)


def _pack_short(
    candidates: Sequence[Candidate],
    positions: Sequence[int],
    sizes: Sequence[int],
    slots: int,
    other_seconds: float,
) -> list[list[int]]:
    """Pack similar short tasks: fill one block after another, each to its share of the work."""
    blocks: list[list[int]] = []
    unknown = any(candidate.seconds is None for candidate in candidates)
    total = sum(candidate.expected_seconds for candidate in candidates)
    remaining = total + other_seconds
    even = _even_share(remaining, slots)
    room, size = -1.0, 0
    for candidate, position in zip(candidates, positions, strict=True):
        expected = candidate.expected_seconds
        size += sizes[position]
        if room < expected / 2 or size > MAX_BLOCK_BYTES or len(blocks[-1]) == MAX_BLOCK_TASKS:
            if unknown:
                room = seconds_of_unknown_block(total, slots)
            else:
                room = even or seconds_of_next_block(remaining, slots)
            size = sizes[position]
            blocks.append([])
        blocks[-1].append(position)
        room -= expected
        remaining -= expected
    return blocks


def _even_share(total: float, slots: int) -> float:
    """Divide a short total evenly: the same number of blocks for each slot; 0 if it is long."""
    if total > 4 * slots * MIN_BLOCK_SECONDS:
        return 0.0
    return total / (slots * max(1, math.ceil(total / MIN_BLOCK_SECONDS / slots)))


def seconds_of_unknown_block(total: float, slots: int) -> float:
    """Return the expected seconds for one block of tasks of unknown duration."""
    return min(total / (UNKNOWN_BLOCKS_PER_SLOT * slots), MAX_BLOCK_SECONDS)


def seconds_of_next_block(remaining: float, slots: int) -> float:
    """Return the share of the remaining seconds that the next block takes."""
    return min(max(remaining / (2 * slots), MIN_BLOCK_SECONDS), MAX_BLOCK_SECONDS)


def long_tasks_per_block(count: int, slots: int) -> int:
    """Return how many of `count` long tasks share a block: one, unless Dask would have too many.

    A block returns the members that it has no time for. By then more is known about how long
    they take.
    """
    return max(1, -(-count // (MAX_LONG_BLOCKS_PER_SLOT * slots)))
