"""Defines what a picture of a graph shows: nodes with names and states, edges with reasons.

Pure; any thread may call all functions.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from daskbatch.records.run_record import BarrierEntry, EdgeEntry, RunRecord, TaskEntry
from daskbatch.report.analysis.run_graph import RunGraph, shared_paths

#: With more tasks than this, the tasks of one name are drawn as one node, unless the user says no.
MAX_SINGLE_TASKS = 200


@dataclass(frozen=True, slots=True)
class PictureNode:
    """A node: a task, the tasks of one name, or a barrier.

    Parameters
    ----------
    label, title : str
        What is written in it; what is shown when the mouse is over it.
    states : tuple of (str, int)
        How many of its tasks are in which state.
    count : int
        The number of its tasks; 0 for a barrier.
    is_group : bool
        Whether it stands for the tasks of one name.
    """

    label: str
    title: str
    states: tuple[tuple[str, int], ...] = ()
    count: int = 1
    is_group: bool = False

    @property
    def is_barrier(self) -> bool:
        """Whether it is a barrier, drawn as a dot."""
        return not self.count


@dataclass(frozen=True, slots=True)
class PictureEdge:
    """An edge between two nodes, which are positions in the list of nodes.

    Parameters
    ----------
    before, after : int
        The nodes.
    reasons : tuple of str
        The hazards.
    label, title : str
        What is written beside it; what is shown when the mouse is over it.
    count : int
        For how many edges of the graph it stands.
    """

    before: int
    after: int
    reasons: tuple[str, ...]
    label: str = ""
    title: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class Picture:
    """What is drawn. It never changes.

    Parameters
    ----------
    nodes : sequence of PictureNode
        The nodes.
    edges : sequence of PictureEdge
        The edges.
    order : sequence of int
        The nodes, each after those that it waits for; in a collapsed graph by their first task.
    """

    nodes: Sequence[PictureNode]
    edges: Sequence[PictureEdge]
    order: Sequence[int]


def make_picture(run: RunRecord, files: bool = False) -> Picture:
    """Return the picture of a run with a node for each task.

    Parameters
    ----------
    run : RunRecord
        The run.
    files : bool
        Whether the edges are labelled with what both tasks access.
    """
    graph = RunGraph(run)
    position = {uid: index for index, uid in enumerate(graph.nodes)}
    nodes = [
        _task_node(node, index) if isinstance(node, TaskEntry) else _barrier_node(index)
        for index, node in enumerate(graph.nodes.values())
    ]
    edges = []
    for uid, node in graph.nodes.items():
        for before, found in graph.edges_by_node(node).items():
            paths = _paths(graph.nodes[before], node, found)
            names = ", ".join(dict.fromkeys(os.path.basename(p) or p for p in paths))
            reasons = tuple(dict.fromkeys(str(edge.hazard) for edge in found))
            title = " ".join([*reasons, *paths]) if files else " ".join(reasons)
            label = names if files else ""
            edges.append(PictureEdge(position[before], position[uid], reasons, label, title))
    return Picture(nodes, edges, [position[uid] for uid in graph.order])


def _task_node(task: TaskEntry, index: int) -> PictureNode:
    states = ((task.state, 1),) if task.state != "created" else ()
    title = f"{task.name} ({index})"
    if states:
        took = f", {task.seconds:.3g} s" if task.seconds is not None else ""
        title = f"{title}: {task.state}{took}"
    return PictureNode(task.name, title, states)


def _barrier_node(index: int) -> PictureNode:
    return PictureNode("barrier", f"barrier ({index})", count=0)


def _paths(
    before: TaskEntry | BarrierEntry, after: TaskEntry | BarrierEntry, edges: Sequence[EdgeEntry]
) -> list[str]:
    both_run = isinstance(before, TaskEntry) and isinstance(after, TaskEntry)
    paths = [
        edge.path or (shared_paths(before, after, edge.hazard) if both_run else "")  # type: ignore[arg-type]
        for edge in edges
    ]
    return [*dict.fromkeys(filter(None, paths))]


def is_large(run: RunRecord) -> bool:
    """Return whether a run has too many tasks for a picture with a node for each."""
    return len(run.tasks) > MAX_SINGLE_TASKS
