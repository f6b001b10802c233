"""Estimates how long a run would have taken under other conditions.

This is list scheduling (Graham, Bounds on multiprocessing timing anomalies, 1969): whenever slots
are free, the first task in program order that is ready and fits begins. The measured durations
are those of the tasks; the cost of scheduling, data transfers and requests of particular workers
are left out. So the estimates are to be compared with the estimate for the run as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from heapq import heappop, heappush

from daskbatch.records.run_record import EdgeEntry, Hazard, TaskEntry
from daskbatch.report.analysis.run_graph import RunGraph, duration, has_run

#: Edges that only keep an order: copies of the data would make them unnecessary.
_ORDER_ONLY = frozenset({Hazard.WAR, Hazard.WAW})


@dataclass(frozen=True, slots=True)
class Estimate:
    """How long a run would have taken under a condition.

    Parameters
    ----------
    condition : str
        The condition, in words.
    seconds : float
        The estimated makespan.
    saved : float
        The part of the estimate for the run as it was that is saved, from 0 to 1; below 0 if it
        would have taken longer, which list scheduling may cause.
    """

    condition: str
    seconds: float
    saved: float = 0.0


def estimate(graph: RunGraph, slots: int) -> tuple[Estimate, ...]:
    """Return the estimates for a run: the first one as it was; empty if no task has run.

    Parameters
    ----------
    graph : RunGraph
        The tasks and edges.
    slots : int
        The number of slots.
    """
    ran = [task for task in graph.run.tasks if has_run(task)]
    if not ran or slots < 1:
        return ()
    durations = {task.uid: duration(task) for task in ran}
    longest = max(ran, key=duration)
    halved = {**durations, longest.uid: durations[longest.uid] / 2}
    base = simulate(graph, durations, slots)

    def compared(condition: str, seconds: float) -> Estimate:
        return Estimate(condition, seconds, (base - seconds) / base if base > 0 else 0.0)

    return (
        compared(f"as it was: {slots} slot{'s' * (slots != 1)}, all edges", base),
        compared(
            "without WAR and WAW edges",
            simulate(graph, durations, slots, lambda edge: edge.hazard not in _ORDER_ONLY),
        ),
        compared(f"with twice the slots ({2 * slots})", simulate(graph, durations, 2 * slots)),
        compared(f"with the longest task ({longest.name}) halved", simulate(graph, halved, slots)),
        compared("with a slot for each task", simulate(graph, durations, None)),
    )


def simulate(
    graph: RunGraph,
    durations: Mapping[str, float],
    slots: int | None,
    keeps: Callable[[EdgeEntry], bool] = lambda edge: True,
) -> float:
    """Return the makespan of list scheduling.

    Parameters
    ----------
    graph : RunGraph
        The tasks and edges.
    durations : mapping
        The seconds of the tasks that have run, by uid. All other nodes take no time and no slot.
    slots : int, optional
        The number of slots; None for no limit.
    keeps : callable
        Whether an edge counts.
    """
    position = {uid: index for index, uid in enumerate(graph.nodes)}
    followers: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for uid, node in graph.nodes.items():
        before = {edge.uid for edge in graph.edges(node) if keeps(edge)}
        counts[uid] = len(before)
        for each in before:
            followers.setdefault(each, []).append(uid)
    needed = {uid: _slots_of(graph, uid, durations, slots) for uid in graph.nodes}
    #: The nodes that can begin, by the number of slots that they need; the first one first.
    ready: dict[int, list[tuple[int, str]]] = {}
    running: list[tuple[float, int, str]] = []
    now, free = 0.0, float("inf") if slots is None else slots

    def make_ready(uid: str) -> None:
        heappush(ready.setdefault(needed[uid], []), (position[uid], uid))

    for uid in graph.order:
        if not counts[uid]:
            make_ready(uid)
    while True:
        while True:
            fitting = [heap[0] for size, heap in ready.items() if heap and size <= free]
            if not fitting:
                break
            index, uid = min(fitting)
            heappop(ready[needed[uid]])
            free -= needed[uid]
            heappush(running, (now + durations.get(uid, 0.0), index, uid))
        if not running:
            return now
        now, _, uid = heappop(running)
        free += needed[uid]
        for follower in followers.get(uid, ()):
            counts[follower] -= 1
            if not counts[follower]:
                make_ready(follower)


def _slots_of(graph: RunGraph, uid: str, durations: Mapping[str, float], slots: int | None) -> int:
    node = graph.nodes[uid]
    if uid not in durations or not isinstance(node, TaskEntry):
        return 0
    return node.slots if slots is None else min(node.slots, slots)
