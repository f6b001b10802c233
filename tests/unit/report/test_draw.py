"""Pictures of graphs are written as SVG, as DOT, or by Graphviz if it is installed."""

from __future__ import annotations

import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from support.runs import run_of

from daskbatch.errors import SpecError
from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG, RAW, WAW
from daskbatch.report.graphs.dot import to_dot
from daskbatch.report.graphs.draw import draw
from daskbatch.report.graphs.picture import make_picture

SVG = "{http://www.w3.org/2000/svg}"

GRAPH = make_picture(
    run_of(
        Graph(
            ("load", "clean", "plot"), {1: {0: RAW}, 3: {1: WAW}, 2: {3: WAW, 0: ARG}}, (0, 1, 3, 2)
        )
    )
)


@pytest.mark.parametrize("name", ["graph.svg", "GRAPH.SVG"])
def test_svg_is_written(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert draw(GRAPH, path) == path
    assert ET.parse(path).getroot().tag == f"{SVG}svg"


def test_dot_is_written(tmp_path: Path) -> None:
    path = draw(GRAPH, tmp_path / "graph.dot")
    assert path.read_text(encoding="utf-8") == to_dot(GRAPH)


def test_names_are_written_in_utf_8(tmp_path: Path) -> None:
    graph = make_picture(run_of(Graph(("größe",), {}, (0,))))
    for suffix in ("dot", "svg"):
        assert "größe" in draw(graph, tmp_path / f"g.{suffix}").read_text(encoding="utf-8")


def test_without_graphviz_it_is_said_what_can_be_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "PIL", None)  # as if Pillow were not installed
    with pytest.raises(SpecError) as caught:
        draw(GRAPH, tmp_path / "graph.png")
    for part in (
        "graph.png",
        "daskbatch[dashboard]",
        "Graphviz",
        "'dot' must be installed",
        "graph.svg",
        "graph.dot",
    ):
        assert part in str(caught.value)
    assert not (tmp_path / "graph.png").exists()
    with pytest.raises(SpecError, match=r"to draw graph\.pdf, Graphviz's 'dot' must be installed"):
        draw(GRAPH, tmp_path / "graph.pdf")


def test_png_is_drawn_by_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image = pytest.importorskip("PIL.Image")
    monkeypatch.setenv("PATH", str(tmp_path))
    states = dict.fromkeys(range(30), RAW)
    graph = Graph([f"größe {n}" for n in range(40)], {39: states, 40: {39: WAW}}, range(41))
    with Image.open(draw(make_picture(run_of(graph)), tmp_path / "graph.png")) as image:
        assert image.format == "PNG"
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(0x2F, 0x85, 0x5A), (0x9B, 0x2C, 0x2C)} <= colours  # edges of RAW and of WAW


def test_a_graph_that_is_too_large_for_png_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("PIL.Image")
    chain = Graph(["t"] * 2000, {n: {n - 1: RAW} for n in range(1, 2000)}, range(2000))
    with pytest.raises(SpecError, match=r"graph\.png: draw it as SVG, or with collapse=True"):
        draw(make_picture(run_of(chain)), tmp_path / "graph.png")


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
    assert path.read_text() == f"-Tpdf\n{to_dot(GRAPH)}"


def test_what_graphviz_cannot_do_is_told_in_its_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(tmp_path, monkeypatch, 'echo "Format: \\"xyz\\" not recognized." >&2; exit 1')
    with pytest.raises(SpecError, match=r'cannot draw graph\.xyz: Format: "xyz" not recognized\.'):
        draw(GRAPH, tmp_path / "graph.xyz")
