"""Indexes the tasks and edges of a run, and puts them into an order.

A log may be incomplete: edges to nodes that are not there, and circles, are left out.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Sequence
from functools import cached_property

from daskbatch.records.run_record import BarrierEntry, EdgeEntry, Hazard, RunRecord, TaskEntry

#: The position at the end of a task's name.
_POSITION = re.compile(r"\[\d+\]$")

#: At most this many paths are named as the reason of an edge.
_MAX_NAMED_PATHS = 2

#: How the accesses of two tasks make an edge: those of the later task, those of the earlier one.
_ACCESSES = {
    Hazard.RAW: ("reads", "writes"),
    Hazard.WAR: ("writes", "reads"),
    Hazard.WAW: ("writes", "writes"),
    Hazard.RAR: ("reads", "reads"),
}


def group_name(name: str) -> str:
    """Return a task's name without its position: tasks of one kind have the same.

    Examples
    --------
    >>> group_name("clean[3]"), group_name("clean")
    ('clean', 'clean')
    """
    return _POSITION.sub("", name)


def has_run(node: TaskEntry | BarrierEntry) -> bool:
    """Return whether it is known when a task began and ended."""
    return isinstance(node, TaskEntry) and node.started is not None and node.ended is not None


def duration(task: TaskEntry) -> float:
    """Return how long a task that is over took on its slot, in seconds; 0 if it did not run."""
    if task.started is not None and task.ended is not None:
        return max(0.0, task.ended - task.started)
    return task.seconds or 0.0


class RunGraph:
    """The nodes of a run by uid, and what they wait for. Any number of threads may read it.

    Parameters
    ----------
    run : RunRecord
        The run.
    """

    def __init__(self, run: RunRecord) -> None:
        self.run = run
        self.nodes: dict[str, TaskEntry | BarrierEntry] = {node.uid: node for node in run.nodes()}

    def edges(self, node: TaskEntry | BarrierEntry) -> Iterator[EdgeEntry]:
        """Return the edges of a node to nodes of this run."""
        return (edge for edge in node.waits_for if edge.uid in self.nodes)

    def edges_by_node(self, node: TaskEntry | BarrierEntry) -> dict[str, tuple[EdgeEntry, ...]]:
        """Return the edges of a node to nodes of this run, by the uids of these."""
        found: dict[str, tuple[EdgeEntry, ...]] = {}
        for edge in self.edges(node):
            found[edge.uid] = (*found.get(edge.uid, ()), edge)
        return found

    @cached_property
    def order(self) -> Sequence[str]:
        """The uids of all nodes, each after those that it waits for; nodes in circles are last."""
        waits = {uid: {e.uid for e in self.edges(node)} for uid, node in self.nodes.items()}
        followers: dict[str, list[str]] = {}
        for uid, before in waits.items():
            for each in before:
                followers.setdefault(each, []).append(uid)
        counts = {uid: len(before) for uid, before in waits.items()}
        ready = deque(uid for uid, count in counts.items() if not count)
        order: list[str] = []
        while ready:
            uid = ready.popleft()
            order.append(uid)
            for follower in followers.get(uid, ()):
                counts[follower] -= 1
                if not counts[follower]:
                    ready.append(follower)
        seen = set(order)
        return [*order, *(uid for uid in self.nodes if uid not in seen)]

    def predecessors(self, task: TaskEntry) -> Iterator[tuple[TaskEntry, tuple[EdgeEntry, ...]]]:
        """Yield the tasks that have run and that a task waited for, each with the reasons.

        Barriers, and tasks that did not run, are replaced by what they wait for themselves; the
        reasons are then those of the edge into the first of them.

        Parameters
        ----------
        task : TaskEntry
            The task that waited.
        """
        seen = {task.uid}
        pending = deque(self.edges_by_node(task).items())
        while pending:
            uid, edges = pending.popleft()
            if uid in seen:
                continue
            seen.add(uid)
            node = self.nodes[uid]
            if isinstance(node, TaskEntry) and has_run(node):
                yield node, edges
                continue
            for before, own in self.edges_by_node(node).items():
                pending.append((before, own if isinstance(node, BarrierEntry) else edges))

    @cached_property
    def ready_times(self) -> dict[str, float]:
        """When the last of the tasks that a task waited for was over, by uid."""
        available: dict[str, float] = {}
        ready: dict[str, float] = {}
        for uid in self.order:
            node = self.nodes[uid]
            before = max((available.get(e.uid, 0.0) for e in self.edges(node)), default=0.0)
            if isinstance(node, TaskEntry):
                ready[uid] = max(before, node.submitted or node.created or 0.0)
                if node.ended is not None and has_run(node):
                    before = node.ended
            available[uid] = before
        return ready


def reason(before: TaskEntry, after: TaskEntry, edges: Sequence[EdgeEntry]) -> str:
    """Return in words why a task waited for another one, such as ``RAW out.txt``.

    Parameters
    ----------
    before, after : TaskEntry
        The two tasks.
    edges : sequence of EdgeEntry
        The edges between them.
    """
    return "; ".join(dict.fromkeys(edge_reason(before, after, edge) for edge in edges))


def edge_reason(before: TaskEntry, after: TaskEntry, edge: EdgeEntry) -> str:
    """Return the hazard of an edge, and the path that both tasks access."""
    path = edge.path or shared_paths(before, after, edge.hazard)
    return f"{edge.hazard} {path}" if path else str(edge.hazard)


def shared_paths(before: TaskEntry, after: TaskEntry, hazard: Hazard) -> str:
    """Return the paths by which one task must come after another; empty if there is none.

    Parameters
    ----------
    before, after : TaskEntry
        The two tasks.
    hazard : Hazard
        Why they keep their order.
    """
    if hazard not in _ACCESSES:
        return ""
    of_after, of_before = _ACCESSES[hazard]
    later: tuple[str, ...] = getattr(after, of_after)
    earlier: tuple[str, ...] = getattr(before, of_before)
    same = set(earlier)
    found = [path for path in later if path in same]
    if not found:
        found = [path for path in later if any(_covers(one, path) for one in earlier)]
    if not found:
        return ""
    more = f" and {len(found) - _MAX_NAMED_PATHS} more" if len(found) > _MAX_NAMED_PATHS else ""
    return ", ".join(found[:_MAX_NAMED_PATHS]) + more


def _covers(one: str, other: str) -> bool:
    """Return whether one path or object contains the other one."""
    short, long = sorted((one, other), key=len)
    return long.startswith(short) and (short.endswith("/") or long[len(short)] in "/[")
