"""Decides whether a graph of tasks is run in blocks that are planned ahead, or task by task.

Blocks are cheap for each task, but from one to the next it takes some milliseconds. Open blocks
take each task as soon as it is ready, which costs the client some time for each task. The expected
makespans of both are compared. Does not know tasks beyond what its parameters say.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence

from daskbatch.plan.blocks import ASSUMED_TASK_SECONDS

#: What a task in an open block costs the client, its slot, and its slot if a child process runs it.
_CLIENT_SECONDS = 0.00015
_SLOT_SECONDS = 0.0001
_ISOLATED_SLOT_SECONDS = 0.0007

#: The time until the first open block has opened.
_OPEN_SECONDS = 0.012

#: The time from the end of a planned block to the start of one that waits for it.
_HOP_SECONDS = 0.008

#: Longer tasks gain nothing.
MAX_TASK_SECONDS = 0.15

#: Independent tasks of this duration and more are sent one by one, if that takes the client at most
#: this share of its time: shorter ones share Dask keys.
MIN_INDEPENDENT_SECONDS = 0.01
_MAX_CLIENT_SHARE = 0.25

#: What is assumed of tasks of unknown duration in a small graph; in a large one it is what the
#: packing assumes.
UNKNOWN_SECONDS = 0.002
_FEW_TASKS = 400


def suits_open_blocks(
    seconds: Sequence[float | None],
    waits: Sequence[Sequence[int]],
    kinds: Sequence[Hashable],
    slots: int,
    isolated: int = 0,
) -> bool:
    """Return whether tasks are better sent one by one.

    Parameters
    ----------
    seconds : sequence of float or None
        The expected duration of each task; None if similar tasks have not run.
    waits : sequence of sequence of int
        For each task the positions of those that it waits for, which come before it.
    kinds : sequence of hashable
        For each task what tasks of one block have in common.
    slots : int
        The number of tasks that run at once.
    isolated : int
        How many of the tasks run in child processes.
    """
    count = len(waits)
    levels, strands = _count_levels(waits, kinds)
    if strands <= 1:
        return False  # one task after another: one block
    known = [each for each in seconds if each is not None]
    if known:
        average = sum(known) / len(known)
    else:
        average = UNKNOWN_SECONDS if count <= _FEW_TASKS else ASSUMED_TASK_SECONDS
    if average > MAX_TASK_SECONDS:
        return False
    work = count * average / slots
    # At the end of each level, slots wait for the last of its tasks.
    planned = work + levels * (_HOP_SECONDS + average)
    passing = (count - isolated) * _SLOT_SECONDS + isolated * _ISOLATED_SLOT_SECONDS
    fed = max(work + passing / slots, count * _CLIENT_SECONDS) + _OPEN_SECONDS
    return fed < planned


def independent_suit(seconds: Iterable[float | None], slots: int, count: int) -> bool:
    """Return whether independent tasks are better sent one by one.

    Each goes to the slot that is free first, which waits for some tenths of a millisecond. From one
    Dask key to the next it waits for some milliseconds.

    Parameters
    ----------
    seconds : iterable of float or None
        The expected duration of each task; None if similar tasks have not run.
    slots : int
        The number of tasks that run at once.
    count : int
        The number of these tasks, and of unfinished ones that are sent one by one.
    """
    if count <= slots:
        return False
    least = max(MIN_INDEPENDENT_SECONDS, slots * _CLIENT_SECONDS / _MAX_CLIENT_SHARE)
    return all(each is not None and least <= each <= MAX_TASK_SECONDS for each in seconds)


def _count_levels(waits: Sequence[Sequence[int]], kinds: Sequence[Hashable]) -> tuple[int, int]:
    """Return how many strands must follow one another, and how many strands there are.

    A strand is a chain of tasks of one kind, of which each is the only one that waits for the one
    before.
    """
    successors = [0] * len(waits)
    for each in waits:
        for before in each:
            successors[before] += 1
    levels: list[int] = []
    strands = 0
    for position, each in enumerate(waits):
        if len(each) == 1 and successors[each[0]] == 1 and kinds[each[0]] == kinds[position]:
            levels.append(levels[each[0]])
            continue
        strands += 1
        levels.append(1 + max((levels[before] for before in each), default=0))
    return max(levels, default=0), strands
