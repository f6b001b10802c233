"""Lets records know what they wait for: of their own program, and of earlier ones.

Does not know why they wait, nor when they run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG


def wire(graph: Graph, records: Sequence[TaskRecord], home: str) -> list[TaskRecord]:
    """Let the records of a program know of each other.

    Parameters
    ----------
    graph : Graph
        Who waits for whom, by position.
    records : sequence of TaskRecord
        The tasks, by position.
    home : str
        The Batch that the barriers between them belong to.

    Returns
    -------
    list of TaskRecord
        The tasks and the barriers, each behind those that it waits for.
    """
    nodes = dict(enumerate(records))
    for node in graph.order:
        if node not in nodes:
            nodes[node] = TaskRecord(home, -1, "barrier", None)
    for node, waits in graph.waits.items():
        nodes[node].waits = tuple((nodes[before], why) for before, why in waits.items())
    for node, overwritten in graph.overwrites.items():
        nodes[node].overwrites = tuple(nodes[before] for before in overwritten)
    return [nodes[node] for node in graph.order]


def wait_for_producers(records: Iterable[TaskRecord]) -> None:
    """Let records wait for those started before them whose results they take.

    The order within a program is inferred from its list; what was started apart is ordered
    by results alone, and is in no graph.
    """
    for record in records:
        producers = record.producers
        if not producers:
            continue
        started = [each for each in producers if each.phase >= Phase.WAITING]
        if started:
            known = dict(record.waits)
            known.update((each, known.get(each, 0) | ARG) for each in started)
            record.waits = tuple(known.items())
