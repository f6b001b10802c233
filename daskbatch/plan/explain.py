"""Explains in a sentence why one task waits for another.

Does not infer anything: it puts into words what is in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from daskbatch.errors import GraphError
from daskbatch.plan.graph import Graph, reason_names
from daskbatch.plan.hazards import ARG, RAR, RAW, WAR, WAW
from daskbatch.plan.program import PlannedTask, shared_channels

#: For each reason: what the task that waits does with a channel, and what the other task does.
_VERBS = {
    RAW: ("reads", "writes"),
    WAR: ("writes", "reads"),
    WAW: ("writes", "writes"),
    RAR: ("reads", "reads"),
}

#: At most this many channels are named; the others are counted.
_MAX_NAMED_CHANNELS = 3


def explain(graph: Graph, tasks: Sequence[PlannedTask], a: PlannedTask, b: PlannedTask) -> str:
    """Return a sentence that says why `b` waits for `a`, or that it need not.

    Parameters
    ----------
    graph : Graph
        The program's graph.
    tasks : sequence of PlannedTask
        The tasks of the program, by position.
    a, b : PlannedTask
        Two of these tasks.

    Raises
    ------
    GraphError
        One of the two is not in the program.
    """
    first, second = _position(tasks, a), _position(tasks, b)
    one, other = _label(tasks, first), _label(tasks, second)
    if first == second:
        return f"{one} is one and the same task."
    if first in graph.waits.get(second, {}):
        return f"{other} waits for {one}: {_reasons(graph, tasks, first, second)}."
    path = graph.path(first, second)
    if path:
        via = [_label(tasks, node) for node in path[1:-1] if node < len(tasks)]
        if not via:
            return f"{other} waits for {one}: {_conflicts(tasks[first], tasks[second])}."
        return f"{other} waits for {one} by way of {', '.join(via)}."
    if graph.path(second, first):
        return f"{other} need not wait for {one}: it comes first, and {one} waits for it."
    return (
        f"{other} need not wait for {one}: it takes no result that depends on it, and there is "
        "no channel by which it would have to come after it."
    )


def wait_reasons(before: PlannedTask, after: PlannedTask, reasons: int) -> str:
    """Return the reasons for which a task waits for another one, in words.

    Parameters
    ----------
    before, after : PlannedTask
        The two tasks.
    reasons : int
        The reasons as bits; 0 if the later task waits through a barrier.
    """
    if not reasons:
        return _conflicts(before, after)
    parts = ["it takes its result"] if reasons & ARG else []
    parts += _phrases(before, after, reasons)
    return "; ".join(parts) or ", ".join(reason_names(reasons))


def _position(tasks: Sequence[PlannedTask], task: PlannedTask) -> int:
    for position, each in enumerate(tasks):
        if each is task:
            return position
    raise GraphError(f"task {task.name!r} is not a member of this compiled task")


def _label(tasks: Sequence[PlannedTask], node: int) -> str:
    return f"{tasks[node].name!r} ({node})"


def _reasons(graph: Graph, tasks: Sequence[PlannedTask], first: int, second: int) -> str:
    return wait_reasons(tasks[first], tasks[second], graph.waits[second][first])


def _conflicts(first: PlannedTask, second: PlannedTask) -> str:
    return "; ".join(_phrases(first, second, RAW | WAR | WAW | RAR)) or "through a barrier"


def _phrases(first: PlannedTask, second: PlannedTask, reasons: int) -> Iterator[str]:
    for reason, (then, before) in _VERBS.items():
        if not reasons & reason:
            continue
        (name,) = reason_names(reason)
        of_second = second.reads if then == "reads" else second.writes
        of_first = first.reads if before == "reads" else first.writes
        channels = [
            str(one) if one == other else f"{one} (with {other})"
            for one, other in shared_channels(of_second, of_first)
            if getattr(one.object.domain, name.lower())
        ]
        if channels:
            named = ", ".join(channels[:_MAX_NAMED_CHANNELS])
            more = (
                f" and {len(channels) - _MAX_NAMED_CHANNELS} more"
                if len(channels) > _MAX_NAMED_CHANNELS
                else ""
            )
            yield f"it {then} {named}{more}, which the other {before} ({name})"
