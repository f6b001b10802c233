"""The graph of a program: which tasks wait for which, and why.

Does not know tasks, channels or Dask: nodes are numbers in program order, edges carry reasons.
`Graph` is a record that never changes, with one named view for each use of its edges.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from daskbatch.plan.hazards import ARG, NEEDS, RAR, RAW, WAR, WAW, Node, Waits

#: The names of the reasons in messages, pictures and `Edge`.
_REASON_NAMES = {ARG: "argument", RAW: "RAW", WAR: "WAR", WAW: "WAW", RAR: "RAR"}


def reason_names(reasons: int) -> tuple[str, ...]:
    """Return the names of an edge's reasons.

    Examples
    --------
    >>> reason_names(RAW | WAW)
    ('RAW', 'WAW')
    """
    return tuple(name for bit, name in _REASON_NAMES.items() if reasons & bit)


@dataclass(frozen=True, slots=True)
class Edge:
    """One task waits for another.

    Parameters
    ----------
    before, after : int
        Positions in the list of tasks, or a number beyond its end for a barrier.
    reasons : tuple of str
        One or more of ``argument``, ``RAW``, ``WAR``, ``WAW`` and ``RAR``.
    """

    before: Node
    after: Node
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """The tasks of a program by position, and what each waits for.

    Any number of threads may read it.

    Parameters
    ----------
    names : sequence of str
        The tasks' names, in program order.
    waits : mapping
        For each node that waits: the nodes that it waits for, each with its reasons as bits
        (see `daskbatch.plan.hazards.Reason`). Nodes from ``len(names)`` on are barriers: they
        call nothing, and replace N times M edges by N plus M.
    order : sequence of int
        All nodes, each after those that it waits for; tasks in program order.
    overwrites : mapping
        For each node that overwrites what earlier nodes have read: those of the earlier nodes
        that can be run a second time only until then.

    Examples
    --------
    >>> graph = Graph(("load", "clean"), {1: {0: RAW}}, (0, 1))
    >>> list(graph.edges())
    [Edge(before=0, after=1, reasons=('RAW',))]
    >>> graph.name(1), list(graph.needs(1)), graph.path(0, 1)
    ('clean', [0], [0, 1])
    """

    names: Sequence[str]
    waits: Mapping[Node, Waits]
    order: Sequence[Node]
    overwrites: Mapping[Node, Sequence[Node]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Return the number of tasks; barriers do not count."""
        return len(self.names)

    def needs(self, node: Node) -> Iterator[Node]:
        """Return the nodes that must succeed, because this one needs what they make.

        Parameters
        ----------
        node : int
            The node that waits.
        """
        return (before for before, why in self.waits.get(node, {}).items() if why & NEEDS)

    def edges(self) -> Iterator[Edge]:
        """Yield all edges, in program order of the second node."""
        for after in self.order:
            for before, reasons in sorted(self.waits.get(after, {}).items()):
                yield Edge(before, after, reason_names(reasons))

    def counts(self) -> dict[str, int]:
        """Return the number of edges for each reason; one edge may have several.

        Examples
        --------
        >>> Graph(("a", "b"), {1: {0: RAW | WAW}}, (0, 1)).counts()
        {'argument': 0, 'RAW': 1, 'WAR': 0, 'WAW': 1, 'RAR': 0}
        """
        counts = dict.fromkeys(_REASON_NAMES.values(), 0)
        for waits in self.waits.values():
            for reasons in waits.values():
                for name in reason_names(reasons):
                    counts[name] += 1
        return counts

    def name(self, node: Node) -> str:
        """Return the name of a task, or ``barrier``.

        Parameters
        ----------
        node : int
            The task's position, or the number of a barrier.
        """
        return self.names[node] if node < len(self.names) else "barrier"

    def path(self, start: Node, end: Node) -> list[Node]:
        """Return the nodes of a path along which `end` waits for `start`; empty if none exists.

        Parameters
        ----------
        start, end : int
            The node that runs first, and the node that waits for it.
        """
        next_on_path: dict[Node, Node] = {}
        stack = [end]
        while stack:
            node = stack.pop()
            for before in self.waits.get(node, {}):
                if before not in next_on_path:
                    next_on_path[before] = node
                    if before == start:
                        path = [start]
                        while path[-1] != end:
                            path.append(next_on_path[path[-1]])
                        return path
                    stack.append(before)
        return []

    def to_dot(self) -> str:
        """Return the graph in the DOT language of Graphviz.

        Examples
        --------
        >>> print(Graph(("a", "b"), {1: {0: RAW}}, (0, 1)).to_dot())
        digraph {
          0 [label="a"];
          1 [label="b"];
          0 -> 1 [label="RAW"];
        }
        """
        lines = ["digraph {"]
        for node in self.order:
            if node < len(self):
                label = self.names[node].replace("\\", "\\\\").replace('"', '\\"')
                lines.append(f'  {node} [label="{label}"];')
            else:
                lines.append(f"  {node} [shape=point];")
        for edge in self.edges():
            lines.append(f'  {edge.before} -> {edge.after} [label="{" ".join(edge.reasons)}"];')
        return "\n".join([*lines, "}"])
