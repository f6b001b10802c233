"""Groups the tasks of one name in a picture, so that large graphs stay legible.

Barriers are left out: their edges go on to the groups behind them. Groups may wait for each other
in a circle, as in ``step[0]``, ``check[0]``, ``step[1]``.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from daskbatch.records.run_record import RunRecord, TaskEntry
from daskbatch.report.analysis.groups import count_states
from daskbatch.report.analysis.run_graph import RunGraph, group_name
from daskbatch.report.graphs.picture import (
    Picture,
    PictureEdge,
    PictureNode,
    is_large,
    make_picture,
)

#: With more groups than this, names that differ in their digits alone are one group; and if that
#: is not enough, all names but the most frequent ones are one group.
_MAX_GROUPS = 60

_OTHER_NAMES = "other names"


def choose_picture(run: RunRecord, collapsed: bool | None, files: bool = False) -> Picture:
    """Return the picture of a run with a node for each task, or for the tasks of each name.

    Parameters
    ----------
    run : RunRecord
        The run.
    collapsed : bool, optional
        Whether tasks of one name are one node; None for `is_large`.
    files : bool
        Whether the edges between single tasks are labelled with files.
    """
    if is_large(run) if collapsed is None else collapsed:
        return collapse(run)
    return make_picture(run, files)


def collapse(run: RunRecord) -> Picture:
    """Return the picture of a run with a node for the tasks of each name.

    Parameters
    ----------
    run : RunRecord
        The run.
    """
    graph = RunGraph(run)
    name_of = _naming(run)
    members: dict[str, list[TaskEntry]] = {}
    for uid in graph.order:
        node = graph.nodes[uid]
        if isinstance(node, TaskEntry):
            members.setdefault(name_of(node), []).append(node)
    position = {name: index for index, name in enumerate(members)}
    nodes = [_group_node(name, tasks) for name, tasks in members.items()]

    #: For each barrier: the groups behind it, with the reasons.
    behind: dict[str, dict[str, dict[str, None]]] = {}
    reasons: dict[tuple[int, int], dict[str, None]] = {}
    counts: dict[tuple[int, int], int] = {}
    for uid in graph.order:
        node = graph.nodes[uid]
        groups: dict[str, dict[str, None]] = {}
        for edge in graph.edges(node):
            before = graph.nodes[edge.uid]
            if isinstance(before, TaskEntry):
                groups.setdefault(name_of(before), {})[str(edge.hazard)] = None
            else:
                for name, why in behind.get(edge.uid, {}).items():
                    groups.setdefault(name, {}).update(why)
        if not isinstance(node, TaskEntry):
            behind[uid] = groups
            continue
        after = position[name_of(node)]
        for name, why in groups.items():
            pair = position[name], after
            reasons.setdefault(pair, {}).update(why)
            counts[pair] = counts.get(pair, 0) + 1
    edges = [
        PictureEdge(
            *pair, tuple(why), title=f"{' '.join(why)}, {counts[pair]} tasks", count=counts[pair]
        )
        for pair, why in reasons.items()
    ]
    return Picture(nodes, edges, range(len(nodes)))


def _naming(run: RunRecord) -> Callable[[TaskEntry], str]:
    """Return the function that names the group of a task."""
    counts: dict[str, int] = {}
    for task in run.tasks:
        name = group_name(task.name)
        counts[name] = counts.get(name, 0) + 1
    if len(counts) <= _MAX_GROUPS:
        return lambda task: group_name(task.name)
    shorter: dict[str, int] = {}
    for name, count in counts.items():
        shorter[_without_digits(name)] = shorter.get(_without_digits(name), 0) + count
    kept = {*sorted(shorter, key=lambda name: -shorter[name])[: _MAX_GROUPS - 1]}

    def name_of(task: TaskEntry) -> str:
        name = _without_digits(group_name(task.name))
        return name if name in kept or len(shorter) <= _MAX_GROUPS else _OTHER_NAMES

    return name_of


def _without_digits(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _group_node(name: str, tasks: list[TaskEntry]) -> PictureNode:
    states = count_states(tasks)
    said = ", ".join(f"{number} {state}" for state, number in states)
    shown = () if all(state == "created" for state, _ in states) else states
    title = f"{name}: {len(tasks)} task{'s' * (len(tasks) != 1)} ({said})"
    return PictureNode(name, title, shown, len(tasks), is_group=True)
