"""Says in a sentence why one task waits for another.

Does not infer anything: it puts into words what is in the graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from daskbatch.errors import GraphError
from daskbatch.plan.graph import Graph, reason_names
from daskbatch.plan.hazards import ARG, RAR, RAW, WAR, WAW
from daskbatch.plan.program import Step, shared_channels

#: For each reason: what the second task does with a channel, and what the first does.
_VERBS = {
    RAW: ("reads", "writes"),
    WAR: ("writes", "reads"),
    WAW: ("writes", "writes"),
    RAR: ("reads", "reads"),
}

#: More channels than this are counted, not named.
_NAMED = 3


def explain(graph: Graph, steps: Sequence[Step], a: Step, b: Step) -> str:
    """Say why `b` waits for `a`, or that it need not.

    Parameters
    ----------
    graph : Graph
        The program's graph.
    steps : sequence of Step
        Its tasks, by position.
    a, b : Step
        Two of them.

    Raises
    ------
    GraphError
        One of them is not in the program.
    """
    first, second = _position(steps, a), _position(steps, b)
    one, other = _label(steps, first), _label(steps, second)
    if first == second:
        return f"{one} is one and the same task."
    if first in graph.waits.get(second, {}):
        return f"{other} waits for {one}: {_reasons(graph, steps, first, second)}."
    path = graph.path(first, second)
    if path:
        via = [_label(steps, node) for node in path[1:-1] if node < len(steps)]
        if not via:
            return f"{other} waits for {one}: {_conflicts(steps[first], steps[second])}."
        return f"{other} waits for {one} by way of {', '.join(via)}."
    if graph.path(second, first):
        return f"{other} need not wait for {one}: it comes first, and {one} waits for it."
    return (
        f"{other} need not wait for {one}: it takes no result that depends on it, and there is "
        "no channel by which it would have to come after it."
    )


def _position(steps: Sequence[Step], step: Step) -> int:
    for position, each in enumerate(steps):
        if each is step:
            return position
    raise GraphError(f"task {step.name!r} is not a member of this compiled task")


def _label(steps: Sequence[Step], node: int) -> str:
    return f"{steps[node].name!r} ({node})"


def _reasons(graph: Graph, steps: Sequence[Step], first: int, second: int) -> str:
    reasons = graph.waits[second][first]
    parts = ["it takes its result"] if reasons & ARG else []
    parts += _phrases(steps[first], steps[second], reasons)
    return "; ".join(parts)


def _conflicts(first: Step, second: Step) -> str:
    return "; ".join(_phrases(first, second, RAW | WAR | WAW | RAR)) or "through a barrier"


def _phrases(first: Step, second: Step, reasons: int) -> Iterator[str]:
    for reason, (then, before) in _VERBS.items():
        if not reasons & reason:
            continue
        (name,) = reason_names(reason)
        mine = second.reads if then == "reads" else second.writes
        theirs = first.reads if before == "reads" else first.writes
        channels = [
            str(one) if one == other else f"{one} (with {other})"
            for one, other in shared_channels(mine, theirs)
            if getattr(one.object.domain, name.lower())
        ]
        if channels:
            named = ", ".join(channels[:_NAMED])
            more = f" and {len(channels) - _NAMED} more" if len(channels) > _NAMED else ""
            yield f"it {then} {named}{more}, which the other {before} ({name})"
