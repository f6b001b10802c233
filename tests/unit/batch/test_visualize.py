"""Pictures of graphs are written as SVG, as DOT, or by Graphviz if it is installed."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from daskbatch.batch.visualize import draw
from daskbatch.errors import SpecError
from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG, RAW, WAW

SVG = "{http://www.w3.org/2000/svg}"

GRAPH = Graph(
    ("load", "clean", "plot"), {1: {0: RAW}, 3: {1: WAW}, 2: {3: WAW, 0: ARG}}, (0, 1, 3, 2)
)


@pytest.mark.parametrize("name", ["graph.svg", "GRAPH.SVG"])
def test_svg_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert draw(GRAPH, path) == path
    assert ET.parse(path).getroot().tag == f"{SVG}svg"


def test_dot_is_written(tmp_path: Path) -> None:
    path = draw(GRAPH, tmp_path / "graph.dot")
    assert path.read_text(encoding="utf-8") == GRAPH.to_dot()


def test_names_are_written_in_utf_8(tmp_path: Path) -> None:
    graph = Graph(("größe",), {}, (0,))
    for suffix in ("dot", "svg"):
        assert "größe" in draw(graph, tmp_path / f"g.{suffix}").read_text(encoding="utf-8")


def test_without_graphviz_it_is_said_what_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SpecError) as caught:
        draw(GRAPH, tmp_path / "graph.png")
    for part in ("graph.png", "Graphviz", "'dot' must be installed", "graph.svg", "graph.dot"):
        assert part in str(caught.value)
    assert not (tmp_path / "graph.png").exists()


def stand_in(directory: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Make an executable called dot, which comes first in the path."""
    dot = directory / "bin" / "dot"
    dot.parent.mkdir()
    dot.write_text(f"#!/bin/sh\n{script}\n")
    dot.chmod(0o755)
    monkeypatch.setenv("PATH", f"{dot.parent}:{os.environ['PATH']}")


def test_graphviz_is_given_the_graph_the_format_and_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, 'echo "$1" > "$3"; cat >> "$3"')
    path = draw(GRAPH, tmp_path / "a picture.PDF")
    assert path.read_text() == f"-Tpdf\n{GRAPH.to_dot()}"


def test_what_graphviz_cannot_do_is_told_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, 'echo "Format: \\"xyz\\" not recognized." >&2; exit 1')
    with pytest.raises(SpecError, match=r'cannot draw graph\.xyz: Format: "xyz" not recognized\.'):
        draw(GRAPH, tmp_path / "graph.xyz")
