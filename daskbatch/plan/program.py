"""Turns a sequential program, a list of tasks, into its graph.

Does not know what tasks do: only their names, their arguments and their accesses.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Protocol

from daskbatch.describe.access import FILES, WHOLE, Channel
from daskbatch.errors import GraphError
from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG, NEEDS, WAR, HazardTracker, Waits, next_above

#: A wait is only looked for behind nodes that themselves wait for no more than this many.
_FEW = 8


class Step(Protocol):
    """What a task must tell about itself."""

    @property
    def number(self) -> int: ...
    @property
    def name(self) -> str: ...
    @property
    def producers(self) -> Sequence[Step]:
        """The tasks whose results are among its arguments."""

    @property
    def reads(self) -> Sequence[Channel]: ...
    @property
    def writes(self) -> Sequence[Channel]: ...


def build_graph(steps: Sequence[Step]) -> Graph:
    """Infer who must wait for whom.

    Parameters
    ----------
    steps : sequence of Step
        The tasks in the order of the sequential program.

    Raises
    ------
    GraphError
        A task is in the list twice, or takes the result of a later one.
    """
    position = _positions(steps)
    waits: dict[int, Waits] = {}
    overwrites: dict[int, list[int]] = {}
    order: list[int] = []
    barriers = 0

    def new_barrier(before: Waits) -> int:
        nonlocal barriers
        barrier = len(steps) + barriers
        barriers += 1
        waits[barrier] = before
        order.append(barrier)
        return barrier

    @cache
    def again(position: int) -> bool:
        return may_run_again(steps[position])

    tracker = HazardTracker(new_barrier)
    for node, step in enumerate(steps):
        found = tracker.add(node, step.reads, step.writes) if step.reads or step.writes else {}
        if step.writes:
            overwritten = [
                before
                for before, why in found.items()
                if why & WAR and (before >= len(steps) or again(before))
            ]
            if overwritten:
                overwrites[node] = overwritten
        for producer in step.producers:
            before = position.get(producer.number)
            if before is None:
                continue  # of an earlier submission
            if before >= node:
                raise GraphError(_backwards(steps, node, before))
            found[before] = found.get(before, 0) | ARG
        order.append(node)
        if found:
            waits[node] = without_implied(found, waits)
    return Graph([step.name for step in steps], waits, order, overwrites)


def may_run_again(step: Step) -> bool:
    """Say whether running a task a second time gives what the first time gave.

    It does if the task writes nothing that it reads, as long as what it reads is the same.
    """
    if not step.writes or not step.reads:
        return True
    return not any(shared_channels(step.reads, step.writes))


def shared_channels(
    some: Sequence[Channel], others: Sequence[Channel]
) -> Iterator[tuple[Channel, Channel]]:
    """Give the pairs of channels that are equal, or of which one covers the other."""
    if not some or not others:
        return
    known = set(others)
    for channel in some:
        for above in _lineage(channel):
            if above in known:
                yield channel, above
    known = set(some)
    for channel in others:
        for above in _lineage(channel):
            if above in known and above != channel:
                yield above, channel


def overlap(some: Iterable[Channel], others: Iterable[Channel]) -> bool:
    """Say whether a channel is equal to one of the others, or one covers the other.

    Without looking anything up: this is for many small sets against one.
    """
    return any(_meet(one, other) for one in some for other in others)


def _meet(one: Channel, other: Channel) -> bool:
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


def _lineage(channel: Channel | None) -> Iterator[Channel]:
    while channel is not None:
        yield channel
        channel = next_above(channel)


def _positions(steps: Sequence[Step]) -> dict[int, int]:
    position = {step.number: node for node, step in enumerate(steps)}
    if len(position) < len(steps):
        seen: set[int] = set()
        for node, step in enumerate(steps):
            if step.number in seen:
                raise GraphError(
                    f"task {step.name!r} is in the list twice, the second time at position {node}; "
                    "make a second task to run it a second time"
                )
            seen.add(step.number)
    return position


def _backwards(steps: Sequence[Step], node: int, producer: int) -> str:
    if node == producer:
        return f"task {steps[node].name!r} takes its own result"
    return (
        f"task {steps[node].name!r} (position {node}) takes the result of "
        f"{steps[producer].name!r} (position {producer}), which comes later in the list; "
        f"put {steps[producer].name!r} first"
    )


def without_implied(found: Waits, waits: dict[int, Waits]) -> Waits:
    """Leave out what only keeps an order that another wait keeps already."""
    if len(found) < 2 or all(why & NEEDS for why in found.values()):
        return found
    implied: set[int] = set()
    for before in found:
        behind = waits.get(before)
        if behind and len(behind) <= _FEW:
            implied.update(behind)
    return {before: why for before, why in found.items() if why & NEEDS or before not in implied}
