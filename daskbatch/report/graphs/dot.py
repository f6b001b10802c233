"""Writes a picture of a graph in the DOT language of Graphviz.

Pure; any thread may call it. Names are quoted, whatever they are.
"""

from __future__ import annotations

from daskbatch.report.graphs.picture import Picture, PictureEdge, PictureNode
from daskbatch.report.graphs.style import STATE_COLOURS, edge_style


def to_dot(picture: Picture) -> str:
    """Return a picture in the DOT language; nodes are numbered as in the picture.

    Parameters
    ----------
    picture : Picture
        What is drawn. The colours of states and edges are added where a task has been started.
    """
    coloured = any(node.states for node in picture.nodes)
    lines = ["digraph {"]
    if coloured:
        lines.append("  rankdir=LR;")
    lines += [f"  {index} [{_node(node)}];" for index, node in enumerate(picture.nodes)]
    lines += [
        f"  {edge.before} -> {edge.after} [{_edge(edge, coloured)}];" for edge in picture.edges
    ]
    return "\n".join([*lines, "}"])


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _node(node: PictureNode) -> str:
    if node.is_barrier:
        return "shape=point"
    label = f"{node.label} ({node.count})" if node.is_group else node.label
    text = f"label={_quoted(label)}"
    if node.states:
        state = (
            "failed" if "failed" in dict(node.states) else max(node.states, key=lambda s: s[1])[0]
        )
        fill, border = STATE_COLOURS.get(state, STATE_COLOURS["created"])
        text += f', shape=box, style="rounded,filled", fillcolor="{fill}", color="{border}"'
        text += f", tooltip={_quoted(node.title)}"
    return text


def _edge(edge: PictureEdge, coloured: bool) -> str:
    label = " ".join(filter(None, [*edge.reasons, edge.label]))
    colour = f', color="{edge_style(edge.reasons)[0]}"' if coloured else ""
    return f"label={_quoted(label)}{colour}"
