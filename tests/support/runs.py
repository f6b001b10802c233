"""Records of runs for tests: from a graph, or run by hand on slots."""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import replace

from daskbatch.plan.graph import Graph, reason_names
from daskbatch.records.run_record import (
    BarrierEntry,
    EdgeEntry,
    Hazard,
    RunRecord,
    SlotEntry,
    TaskEntry,
)
from daskbatch.report.analysis.run_graph import RunGraph


def run_of(graph: Graph) -> RunRecord:
    """Return a graph as the record of a run of which nothing has begun."""
    edges = {
        node: tuple(
            EdgeEntry(str(before), Hazard(name))
            for before, reasons in waits.items()
            for name in reason_names(reasons)
        )
        for node, waits in graph.waits.items()
    }
    return RunRecord(
        "run",
        "graph",
        tasks=tuple(
            TaskEntry(str(node), name, "created", waits_for=edges.get(node, ()))
            for node, name in enumerate(graph.names)
        ),
        barriers=tuple(
            BarrierEntry(str(node), edges.get(node, ()))
            for node in graph.order
            if node >= len(graph)
        ),
    )


def edge(uid: str, hazard: str = "argument", path: str = "") -> EdgeEntry:
    """Return an edge to a task."""
    return EdgeEntry(uid, Hazard(hazard), path)


def task(
    name: str, start: float | None = None, end: float | None = None, *waits: str, **more: object
) -> TaskEntry:
    """Return a task on slot 0 that ran from `start` to `end`, after the tasks of these names."""
    entry = TaskEntry(
        uid=name,
        name=name,
        state="created" if end is None else "done",
        started=start,
        ended=end,
        seconds=None if start is None or end is None else end - start,
        worker=None if start is None else "tcp://10.0.0.1:1",
        waits_for=tuple(map(edge, waits)),
    )
    return replace(entry, **more)  # type: ignore[arg-type]


def slots(count: int) -> tuple[SlotEntry, ...]:
    """Return workers of one slot each."""
    return tuple(SlotEntry(f"tcp://10.0.0.1:{n}", "node1", 1) for n in range(count))


def execute(run: RunRecord, durations: Mapping[str, float], count: int) -> RunRecord:
    """Return a run as a number of slots would have executed it, with no time lost.

    Tasks begin in the order of the graph, each on the first slot that is free.
    """
    graph = RunGraph(run)
    free = [(0.0, number) for number in range(count)]
    heapq.heapify(free)
    over: dict[str, float] = {}
    tasks: dict[str, TaskEntry] = {}
    for uid in graph.order:
        node = graph.nodes[uid]
        ready = max((over[each.uid] for each in graph.edges(node)), default=0.0)
        over[uid] = ready
        if isinstance(node, TaskEntry):
            at, number = heapq.heappop(free)
            start = max(at, ready)
            end = start + durations[uid]
            heapq.heappush(free, (end, number))
            over[uid] = end
            tasks[uid] = replace(
                node,
                state="done",
                started=start,
                ended=end,
                seconds=end - start,
                worker=f"tcp://10.0.0.1:{number}",
                host="node1",
            )
    return replace(run, tasks=_in_order(run.tasks, tasks), slots=slots(count))


def _in_order(
    entries: Sequence[TaskEntry], found: Mapping[str, TaskEntry]
) -> tuple[TaskEntry, ...]:
    return tuple(found[entry.uid] for entry in entries)
