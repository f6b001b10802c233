"""Draws a graph as SVG: a text; writing it to a file is up to the caller.

Does not know tasks: nodes have names, edges have reasons.
"""

from __future__ import annotations

import re
from collections import defaultdict
from html import escape

from daskbatch.plan.graph import Graph

#: The sizes of the drawing, in pixels.
_NODE_WIDTH, _NODE_HEIGHT, _GAP_X, _GAP_Y, _MARGIN = 120, 26, 60, 12, 8

#: A longer name is cut, and shown as a whole when the mouse is over it.
_MAX_LABEL_LETTERS = 18

#: The characters that XML does not allow.
_NOT_IN_XML = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ud800-\\udfff\\ufffe\\uffff]")
#: The colour of an edge is that of its first reason that is listed here.
_COLOURS = {"argument": "#2b6cb0", "RAW": "#2f855a", "WAR": "#c05621", "WAW": "#9b2c2c"}
_OTHER_COLOUR = "#718096"


def to_svg(graph: Graph) -> str:
    """Draw a graph from left to right, each node one layer after the last that it waits for.

    Examples
    --------
    >>> to_svg(Graph(("a", "b"), {1: {0: 2}}, (0, 1))).count("<rect")
    2
    """
    layers: dict[int, int] = {}
    rows: defaultdict[int, int] = defaultdict(int)
    corners: dict[int, tuple[int, int]] = {}
    for node in graph.order:
        layer = 1 + max((layers[before] for before in graph.waits.get(node, {})), default=-1)
        layers[node] = layer
        x, y = layer * (_NODE_WIDTH + _GAP_X), rows[layer] * (_NODE_HEIGHT + _GAP_Y)
        corners[node] = x, y
        rows[layer] += 1
    width = len(rows) * (_NODE_WIDTH + _GAP_X) + _MARGIN
    height = max(rows.values(), default=0) * (_NODE_HEIGHT + _GAP_Y) + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-{_MARGIN} -{_MARGIN} {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="11">'
    ]
    for edge in graph.edges():
        (x1, y1), (x2, y2) = corners[edge.before], corners[edge.after]
        x1, y1, y2 = x1 + _NODE_WIDTH, y1 + _NODE_HEIGHT // 2, y2 + _NODE_HEIGHT // 2
        middle = (x1 + x2) // 2
        colours = (_COLOURS[name] for name in edge.reasons if name in _COLOURS)
        colour = next(colours, _OTHER_COLOUR)
        lines.append(
            f'<path d="M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}" fill="none" '
            f'stroke="{colour}"><title>{" ".join(edge.reasons)}</title></path>'
        )
    for node, (x, y) in corners.items():
        name = graph.name(node)
        short = name if len(name) <= _MAX_LABEL_LETTERS else name[: _MAX_LABEL_LETTERS - 1] + "…"
        lines.append(
            f'<rect x="{x}" y="{y}" width="{_NODE_WIDTH}" height="{_NODE_HEIGHT}" rx="5" '
            f'fill="#edf2f7" stroke="#4a5568"><title>{_as_xml(name)} ({node})</title></rect>'
            f'<text x="{x + _NODE_WIDTH // 2}" y="{y + 17}" '
            f'text-anchor="middle">{_as_xml(short)}</text>'
        )
    return "\n".join([*lines, "</svg>"])


def _as_xml(name: str) -> str:
    """Escape a name, and replace characters that XML cannot hold."""
    return escape(_NOT_IN_XML.sub("\ufffd", name))
