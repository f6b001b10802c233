"""Turns a graph of positions into cells that know what they wait for.

Does not know why they wait, nor when they run.
"""

from __future__ import annotations

from collections.abc import Sequence

from daskbatch.dispatch.cell import Cell
from daskbatch.plan.graph import Graph


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
