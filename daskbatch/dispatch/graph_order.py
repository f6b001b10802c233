"""Decides in which order Dask serves the tasks of a graph, where `dask.order` does not.

`dask.order` starts those keys first that its algorithm finds good for memory, and of equal ones the
key whose text sorts last. The keys of a graph with one name count down, so that what comes first in
the program starts first. With several names, the names would decide. Pure functions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from dask.order import order
from dask.task_spec import GraphNode, Task, TaskRef


def graph_order(
    layers: Collection[Mapping[Any, GraphNode]], blocks: Collection[Any]
) -> dict[Any, int] | None:
    """Return the position of each key in the order of the program; None if Dask finds the same.

    Parameters
    ----------
    layers : collection of mapping
        The nodes of the graph.
    blocks : collection
        The keys of the blocks, in the order of the program. Other keys hold data, or are tokens.

    Examples
    --------
    >>> one, other = ("a", 19), ("b", 18)
    >>> nodes = {key: Task(key, print) for key in (other, one)}
    >>> graph_order([nodes], [one, other])
    {('a', 19): 0, ('b', 18): 1}
    """
    if len({key[0] for key in blocks}) < 2:
        return None
    nodes = {key: node for layer in layers for key, node in layer.items()}
    known = set(blocks)
    others = [key for key in nodes if key not in known]
    if not any(nodes[key].dependencies & known for key in nodes):
        return {key: number for number, key in enumerate((*others, *blocks))}
    # The texts of these have one width, and sort last for what comes first.
    last = 10 ** len(str(len(nodes))) * 2 - 1
    names = {key: ("", last - number) for number, key in enumerate((*others, *blocks))}
    renamed = {
        name: Task(name, None, *(TaskRef(names[d]) for d in nodes[key].dependencies if d in names))
        for key, name in names.items()
    }
    found = order(renamed)
    return {key: found[name] for key, name in names.items()}
