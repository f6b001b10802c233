"""The graph of a program: who waits for whom, and why.

Does not know tasks, channels or Dask: nodes are numbers in program order, edges carry
reasons. It is a record with views; whoever needs some of the edges names the view, and so
says why it wants them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from daskbatch.plan.hazards import ARG, NEEDS, RAR, RAW, WAR, WAW

_NAMES = {ARG: "argument", RAW: "RAW", WAR: "WAR", WAW: "WAW", RAR: "RAR"}


def reason_names(reasons: int) -> tuple[str, ...]:
    """Spell out the reasons of an edge.

    Examples
    --------
    >>> reason_names(RAW | WAW)
    ('RAW', 'WAW')
    """
    return tuple(name for bit, name in _NAMES.items() if reasons & bit)


@dataclass(frozen=True, slots=True)
class Edge:
    """One task waits for another.

    Parameters
    ----------
    before, after : int
        Positions in the list of tasks, or beyond its end for a barrier.
    reasons : tuple of str
        Of ``argument``, ``RAW``, ``WAR``, ``WAW`` and ``RAR``.
    """

    before: int
    after: int
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Graph:
    """The tasks of a program by position, and what each waits for.

    Parameters
    ----------
    names : sequence of str
        The tasks' names, in program order.
    waits : mapping
        For each node that waits for anything: those nodes, with the reasons as bits.
        Nodes from ``len(names)`` on are barriers, which stand between many and many.
    order : sequence of int
        All nodes so that each comes after those that it waits for; tasks in program order.
    overwrites : mapping
        For each node whose writes change what others before it have read: those of them
        that could have been run a second time until then.

    Examples
    --------
    >>> graph = Graph(("load", "clean"), {1: {0: RAW}}, (0, 1))
    >>> list(graph.edges())
    [Edge(before=0, after=1, reasons=('RAW',))]
    >>> graph.name(1), list(graph.needs(1)), graph.path(0, 1)
    ('clean', [0], [0, 1])
    """

    names: Sequence[str]
    waits: Mapping[int, Mapping[int, int]]
    order: Sequence[int]
    overwrites: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def __len__(self) -> int:
        """Say how many tasks there are; barriers do not count."""
        return len(self.names)

    def needs(self, node: int) -> Iterator[int]:
        """Give the nodes that must succeed, or this one cannot run.

        Parameters
        ----------
        node : int
            Which.
        """
        return (before for before, why in self.waits.get(node, {}).items() if why & NEEDS)

    def edges(self) -> Iterator[Edge]:
        """Give all edges, in program order of the second node."""
        for after in self.order:
            for before, reasons in sorted(self.waits.get(after, {}).items()):
                yield Edge(before, after, reason_names(reasons))

    def counts(self) -> dict[str, int]:
        """Say how many edges there are for each reason; one edge may have several.

        Examples
        --------
        >>> Graph(("a", "b"), {1: {0: RAW | WAW}}, (0, 1)).counts()
        {'argument': 0, 'RAW': 1, 'WAR': 0, 'WAW': 1, 'RAR': 0}
        """
        found = dict.fromkeys(_NAMES.values(), 0)
        for waits in self.waits.values():
            for reasons in waits.values():
                for name in reason_names(reasons):
                    found[name] += 1
        return found

    def name(self, node: int) -> str:
        """Give the name of a task, or say that it is a barrier.

        Parameters
        ----------
        node : int
            Which.
        """
        return self.names[node] if node < len(self.names) else "barrier"

    def path(self, start: int, end: int) -> list[int]:
        """Give the nodes over which one waits for another; empty if it does not.

        Parameters
        ----------
        start, end : int
            The first of them, and the one that waits.
        """
        via: dict[int, int] = {}
        stack = [end]
        while stack:
            node = stack.pop()
            for before in self.waits.get(node, {}):
                if before not in via:
                    via[before] = node
                    if before == start:
                        path = [start]
                        while path[-1] != end:
                            path.append(via[path[-1]])
                        return path
                    stack.append(before)
        return []

    def to_dot(self) -> str:
        """Write the graph in the DOT language of Graphviz.

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
