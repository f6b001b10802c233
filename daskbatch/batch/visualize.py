"""Writes the picture of a graph to a file: as SVG, as DOT, or in a format that Graphviz makes.

Runs Graphviz's ``dot`` in a process, and waits for it.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from daskbatch.errors import SpecError
from daskbatch.plan.graph import Graph
from daskbatch.plan.svg import to_svg


def draw(graph: Graph, path: Path) -> Path:
    """Draw a graph into a file; return the path.

    Parameters
    ----------
    graph : Graph
        The graph.
    path : Path
        The file; its suffix chooses the format.

    Raises
    ------
    SpecError
        The format is unknown, or needs Graphviz, which is not installed.
    OSError
        The file cannot be written.
    """
    suffix = path.suffix.lower()
    if suffix == ".dot":
        path.write_text(graph.to_dot(), encoding="utf-8")
    elif suffix == ".svg":
        path.write_text(to_svg(graph), encoding="utf-8")
    else:
        _draw_by_graphviz(graph, path, suffix.removeprefix("."))
    return path


def _draw_by_graphviz(graph: Graph, path: Path, file_format: str) -> None:
    dot = shutil.which("dot")
    if dot is None:
        raise SpecError(
            f"to draw {path.name}, Graphviz's 'dot' must be installed; {path.stem}.svg and "
            f"{path.stem}.dot can be made without it"
        )
    done = subprocess.run(
        [dot, f"-T{file_format}", "-o", path], input=graph.to_dot(), text=True, capture_output=True
    )
    if done.returncode:
        raise SpecError(f"Graphviz cannot draw {path.name}: {done.stderr.strip()}")
