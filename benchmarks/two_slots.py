"""Computes the shortest possible run of a graph of equal tasks on two slots.

The algorithm of Coffman and Graham (Optimal scheduling for two-processor systems, Acta Informatica
1, 1972), which is exact for two slots and tasks of one duration.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence


def fewest_steps(waits: Sequence[Iterable[int]]) -> int:
    """Return in how many steps two slots can run tasks that take one step each.

    Parameters
    ----------
    waits : sequence of iterable of int
        For each task those that it waits for, which come before it.
    """
    befores = _without_implied([set(some) for some in waits])
    afters: list[list[int]] = [[] for _ in befores]
    for task, some in enumerate(befores):
        for before in some:
            afters[before].append(task)
    labels = _label(befores, afters)
    missing = list(map(len, befores))
    ready = [(-labels[task], task) for task, count in enumerate(missing) if not count]
    heapq.heapify(ready)
    steps = 0
    while ready:
        steps += 1
        for _, task in [heapq.heappop(ready) for _ in range(min(2, len(ready)))]:
            for after in afters[task]:
                missing[after] -= 1
                if not missing[after]:
                    heapq.heappush(ready, (-labels[after], after))
    return steps


def _without_implied(befores: list[set[int]]) -> list[set[int]]:
    """Leave out what follows from other waits."""
    earlier: list[set[int]] = []
    reduced = []
    for some in befores:
        implied = set().union(*(earlier[each] for each in some))
        earlier.append(implied | some)
        reduced.append(some - implied)
    return reduced


def _label(befores: Sequence[Iterable[int]], afters: Sequence[Sequence[int]]) -> list[int]:
    """Number the tasks from the end on: by the labels, in descending order, of those after it."""
    labels = [0] * len(afters)
    unlabelled = [len(some) for some in afters]
    candidates = {task for task, count in enumerate(unlabelled) if not count}
    for label in range(1, len(afters) + 1):
        task = min(
            candidates, key=lambda each: sorted((labels[a] for a in afters[each]), reverse=True)
        )
        candidates.remove(task)
        labels[task] = label
        for before in befores[task]:
            unlabelled[before] -= 1
            if not unlabelled[before]:
                candidates.add(before)
    return labels
