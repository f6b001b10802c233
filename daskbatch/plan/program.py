"""Builds the graph of a sequential program, which is a list of tasks.

Does not know what tasks do: only their names, their arguments and their accesses.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, Protocol

from daskbatch.describe.access import FILES, WHOLE, Channel
from daskbatch.errors import GraphError
from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import (
    ARG,
    NEEDS,
    WAR,
    HazardTracker,
    Node,
    Waits,
    parent_channel,
)

#: `without_implied` looks only behind nodes that wait for at most this many nodes: with more it
#: would take quadratic time.
_MAX_IMPLIED_LOOKUP = 8


class PlannedTask(Protocol):
    """The part of a task that a plan is made of."""

    @property
    def number(self) -> int:
        """A number that no other task of the program has."""

    @property
    def name(self) -> str: ...
    @property
    def producers(self) -> Sequence[PlannedTask]:
        """The tasks whose results are arguments of this task."""

    @property
    def reads(self) -> Sequence[Channel]: ...
    @property
    def writes(self) -> Sequence[Channel]: ...


def build_graph(tasks: Sequence[PlannedTask]) -> Graph:
    """Infer which tasks must wait for which.

    Parameters
    ----------
    tasks : sequence of PlannedTask
        The tasks in the order of the sequential program.

    Raises
    ------
    GraphError
        A task is in the list twice, or takes the result of a later one.
    """
    position = _positions(tasks)
    waits: dict[Node, Waits] = {}
    overwrites: dict[Node, list[Node]] = {}
    order: list[Node] = []
    barrier_count = 0

    def new_barrier(before: Waits) -> Node:
        nonlocal barrier_count
        barrier = len(tasks) + barrier_count
        barrier_count += 1
        waits[barrier] = before
        order.append(barrier)
        return barrier

    @cache
    def can_rerun(node: Node) -> bool:
        return getattr(tasks[node], "restartable", False) or may_run_again(tasks[node])

    tracker = HazardTracker(new_barrier)
    for node, task in enumerate(tasks):
        found = tracker.add(node, task.reads, task.writes) if task.reads or task.writes else {}
        if task.writes:
            overwritten = [
                before
                for before, why in found.items()
                if why & WAR and (before >= len(tasks) or can_rerun(before))
            ]
            if overwritten:
                overwrites[node] = overwritten
        for producer in task.producers:
            before = position.get(producer.number)
            if before is None:
                continue  # it belongs to an earlier submission
            if before >= node:
                raise GraphError(_producer_comes_later(tasks, node, before))
            found[before] = found.get(before, 0) | ARG
        order.append(node)
        if found:
            waits[node] = without_implied(found, waits)
    return Graph(_Names(tasks), waits, order, overwrites)


class _Names(Sequence[str]):
    """The names of tasks, which are made when they are needed."""

    def __init__(self, tasks: Sequence[PlannedTask]) -> None:
        self._tasks = tasks

    def __len__(self) -> int:
        return len(self._tasks)

    def __getitem__(self, position: Any) -> Any:
        if isinstance(position, slice):
            return [task.name for task in self._tasks[position]]
        return self._tasks[position].name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr([*self])


def may_run_again(task: PlannedTask) -> bool:
    """Return whether a second run of a task has the same effects as the first one.

    It has if the task writes nothing that it reads, as long as what it reads has not changed.
    """
    if not task.writes or not task.reads:
        return True
    return not any(shared_channels(task.reads, task.writes))


def shared_channels(
    some: Sequence[Channel], others: Sequence[Channel]
) -> Iterator[tuple[Channel, Channel]]:
    """Yield the pairs of channels that are equal, or of which one covers the other."""
    if not some or not others:
        return
    candidates = set(others)
    for channel in some:
        for above in _with_parents(channel):
            if above in candidates:
                yield channel, above
    candidates = set(some)
    for channel in others:
        for above in _with_parents(channel):
            if above in candidates and above != channel:
                yield above, channel


def overlap(some: Iterable[Channel], others: Iterable[Channel]) -> bool:
    """Return whether a channel is equal to one of the others, or one covers the other.

    It compares all pairs and builds no set, which is faster where one small group of channels is
    compared with many others.
    """
    return any(_overlaps(one, other) for one in some for other in others)


def _overlaps(one: Channel, other: Channel) -> bool:
    if one.object.name is FILES.name:
        if other.object.name is not FILES.name:
            return False
        first, second = str(one.key), str(other.key)
        return first == second or _is_below(first, second) or _is_below(second, first)
    if one.object != other.object:
        return False
    return one.key is WHOLE or other.key is WHOLE or one.key == other.key


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(directory if directory.endswith(os.sep) else directory + os.sep)


def _with_parents(channel: Channel | None) -> Iterator[Channel]:
    """Yield a channel and all channels above it."""
    while channel is not None:
        yield channel
        channel = parent_channel(channel)


def _positions(tasks: Sequence[PlannedTask]) -> dict[int, Node]:
    """Return the position of each task by its number; raises if a task is there twice."""
    position = {task.number: node for node, task in enumerate(tasks)}
    if len(position) < len(tasks):
        seen: set[int] = set()
        for node, task in enumerate(tasks):
            if task.number in seen:
                raise GraphError(
                    f"task {task.name!r} is in the list twice, the second time at position {node}; "
                    "make a second task to run it a second time"
                )
            seen.add(task.number)
    return position


def _producer_comes_later(tasks: Sequence[PlannedTask], node: Node, producer: Node) -> str:
    if node == producer:
        return f"task {tasks[node].name!r} takes its own result"
    return (
        f"task {tasks[node].name!r} (position {node}) takes the result of "
        f"{tasks[producer].name!r} (position {producer}), which comes later in the list; "
        f"put {tasks[producer].name!r} first"
    )


def without_implied(found: Waits, waits: dict[Node, Waits]) -> Waits:
    """Leave out waits that only keep an order which another wait implies.

    Parameters
    ----------
    found : dict
        What one node waits for, with the reasons.
    waits : dict
        What the nodes before it wait for.
    """
    if len(found) < 2 or all(why & NEEDS for why in found.values()):
        return found
    implied: set[int] = set()
    for before in found:
        behind = waits.get(before)
        if behind and len(behind) <= _MAX_IMPLIED_LOOKUP:
            implied.update(behind)
    return {before: why for before, why in found.items() if why & NEEDS or before not in implied}
