"""Draws a graph: a picture by layers, or whatever Graphviz makes of it.

Does not know tasks; nodes have names, edges have reasons.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from html import escape
from pathlib import Path

from daskbatch.errors import SpecError
from daskbatch.plan.graph import Graph

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 120, 26, 60, 12
_NOT_IN_XML = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\ud800-\\udfff\\ufffe\\uffff]")
_COLOURS = {"argument": "#2b6cb0", "RAW": "#2f855a", "WAR": "#c05621", "WAW": "#9b2c2c"}


def draw(graph: Graph, path: Path) -> Path:
    """Draw a graph into a file, in the format that its name asks for.

    Raises
    ------
    SpecError
        The format is unknown, or needs Graphviz, which is not installed.
    """
    suffix = path.suffix.lower()
    if suffix == ".dot":
        path.write_text(graph.to_dot(), encoding="utf-8")
    elif suffix == ".svg":
        path.write_text(to_svg(graph), encoding="utf-8")
    else:
        _graphviz(graph, path, suffix.removeprefix("."))
    return path


def _graphviz(graph: Graph, path: Path, form: str) -> None:
    dot = shutil.which("dot")
    if dot is None:
        raise SpecError(
            f"to draw {path.name}, Graphviz's 'dot' must be installed; {path.stem}.svg and "
            f"{path.stem}.dot can be made without it"
        )
    done = subprocess.run(
        [dot, f"-T{form}", "-o", path], input=graph.to_dot(), text=True, capture_output=True
    )
    if done.returncode:
        raise SpecError(f"Graphviz cannot draw {path.name}: {done.stderr.strip()}")


def to_svg(graph: Graph) -> str:
    """Draw a graph from left to right: each node one layer behind the last that it waits for.

    Examples
    --------
    >>> to_svg(Graph(("a", "b"), {1: {0: 2}}, (0, 1))).count("<rect")
    2
    """
    layers: dict[int, int] = {}
    rows: defaultdict[int, int] = defaultdict(int)
    places: dict[int, tuple[int, int]] = {}
    for node in graph.order:
        layer = 1 + max((layers[before] for before in graph.waits.get(node, {})), default=-1)
        layers[node] = layer
        places[node] = (layer * (_WIDTH + _GAP_X), rows[layer] * (_HEIGHT + _GAP_Y))
        rows[layer] += 1
    width = len(rows) * (_WIDTH + _GAP_X) + 8
    height = max(rows.values(), default=0) * (_HEIGHT + _GAP_Y) + 8
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -8 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" font-size="11">'
    ]
    for edge in graph.edges():
        (x1, y1), (x2, y2) = places[edge.before], places[edge.after]
        x1, y1, y2 = x1 + _WIDTH, y1 + _HEIGHT // 2, y2 + _HEIGHT // 2
        middle = (x1 + x2) // 2
        colour = next((_COLOURS[name] for name in edge.reasons if name in _COLOURS), "#718096")
        lines.append(
            f'<path d="M{x1} {y1} C{middle} {y1} {middle} {y2} {x2} {y2}" fill="none" '
            f'stroke="{colour}"><title>{" ".join(edge.reasons)}</title></path>'
        )
    for node, (x, y) in places.items():
        name = graph.name(node)
        short = name if len(name) <= 18 else name[:17] + "…"
        lines.append(
            f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="5" fill="#edf2f7" '
            f'stroke="#4a5568"><title>{_text(name)} ({node})</title></rect>'
            f'<text x="{x + _WIDTH // 2}" y="{y + 17}" text-anchor="middle">{_text(short)}</text>'
        )
    return "\n".join([*lines, "</svg>"])


def _text(name: str) -> str:
    """Write a name as XML can hold it."""
    return escape(_NOT_IN_XML.sub("\ufffd", name))
