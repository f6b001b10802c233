"""Lets cells know what they wait for: of their own program, and of earlier ones.

Does not know why they wait, nor when they run.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from daskbatch.dispatch.task_record import Cell, Phase
from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG


def wire(graph: Graph, cells: Sequence[Cell], home: str) -> list[Cell]:
    """Let the cells of a program know of each other.

    Parameters
    ----------
    graph : Graph
        Who waits for whom, by position.
    cells : sequence of Cell
        The tasks, by position.
    home : str
        The Batch that the barriers between them belong to.

    Returns
    -------
    list of Cell
        The tasks and the barriers, each behind those that it waits for.
    """
    nodes = dict(enumerate(cells))
    for node in graph.order:
        if node not in nodes:
            nodes[node] = Cell(home, -1, "barrier", None)
    for node, waits in graph.waits.items():
        nodes[node].waits = tuple((nodes[before], why) for before, why in waits.items())
    for node, overwritten in graph.overwrites.items():
        nodes[node].overwrites = tuple(nodes[before] for before in overwritten)
    return [nodes[node] for node in graph.order]


def wait_for_producers(cells: Iterable[Cell]) -> None:
    """Let cells wait for those started before them whose results they take.

    The order within a program is inferred from its list; what was started apart is ordered
    by results alone, and is in no graph.
    """
    for cell in cells:
        producers = cell.producers
        if not producers:
            continue
        started = [each for each in producers if each.phase >= Phase.WAITING]
        if started:
            known = dict(cell.waits)
            known.update((each, known.get(each, 0) | ARG) for each in started)
            cell.waits = tuple(known.items())
