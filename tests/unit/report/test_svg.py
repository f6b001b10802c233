"""Graphs are drawn as well-formed SVG, with all nodes, edges, names and reasons."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from support.runs import run_of

from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG, RAW, WAR, WAW
from daskbatch.report.graphs.picture import make_picture
from daskbatch.report.graphs.svg import to_svg

SVG = "{http://www.w3.org/2000/svg}"

GRAPH = Graph(
    ("load", "clean", "plot"), {1: {0: RAW}, 3: {1: WAW}, 2: {3: WAW, 0: ARG}}, (0, 1, 3, 2)
)


def parsed(graph: Graph) -> ET.Element:
    return ET.fromstring(to_svg(make_picture(run_of(graph))))


def titles(graph: Graph, kind: str) -> list[str]:
    return [each.findtext(f"{SVG}title") or "" for each in parsed(graph).iter(f"{SVG}{kind}")]


def test_a_drawing_has_each_node_and_each_edge() -> None:
    assert sorted(titles(GRAPH, "rect")) == ["barrier (3)", "clean (1)", "load (0)", "plot (2)"]
    assert sorted(titles(GRAPH, "path")) == ["RAW", "WAW", "WAW", "argument"]


def test_an_edge_says_all_its_reasons() -> None:
    assert titles(Graph(("a", "b"), {1: {0: RAW | WAR}}, (0, 1)), "path") == ["RAW WAR"]


def test_each_node_is_drawn_right_of_those_that_it_waits_for() -> None:
    x = {
        (rect.findtext(f"{SVG}title") or "").split()[0]: float(rect.get("x", "nan"))
        for rect in parsed(GRAPH).iter(f"{SVG}rect")
    }
    assert x["load"] < x["clean"] < x["barrier"] < x["plot"]


def test_no_two_nodes_are_drawn_in_one_place() -> None:
    graph = Graph(["t"] * 50, {n: {n % 5: RAW} for n in range(5, 50)}, range(50))
    places = [(rect.get("x"), rect.get("y")) for rect in parsed(graph).iter(f"{SVG}rect")]
    assert len(set(places)) == len(places) == 50


@pytest.mark.parametrize("graph", [GRAPH, Graph((), {}, ()), Graph(["t"] * 30, {}, range(30))])
def test_everything_is_within_the_picture(graph: Graph) -> None:
    root = parsed(graph)
    left, top, width, height = map(float, root.get("viewBox", "").split())
    for rect in root.iter(f"{SVG}rect"):
        x, y = float(rect.get("x", "")), float(rect.get("y", ""))
        assert left <= x <= left + width - float(rect.get("width", ""))
        assert top <= y <= top + height - float(rect.get("height", ""))


@pytest.mark.parametrize(
    "name", ["<b>&amp;</b>", "a & b", 'say "hi"', "it's", "]]>", "<!--", "ü → ß", "tab\there"]
)
def test_any_name_is_escaped(name: str) -> None:
    graph = Graph((name,), {}, (0,))
    assert titles(graph, "rect") == [f"{name} (0)"]
    assert [text.text for text in parsed(graph).iter(f"{SVG}text")] == [name]


@pytest.mark.parametrize("name", ["\x1b[1mbold\x1b[0m", "\x00"])
def test_a_name_that_xml_cannot_hold_still_makes_a_well_formed_drawing(name: str) -> None:
    assert len(titles(Graph((name,), {}, (0,)), "rect")) == 1


def test_a_long_name_is_shortened_but_can_be_seen_whole() -> None:
    name = "a_very_long_name_of_a_task_" * 3
    graph = Graph((name,), {}, (0,))
    (text,) = (each.text or "" for each in parsed(graph).iter(f"{SVG}text"))
    assert len(text) < 20
    assert name.startswith(text.rstrip("…"))
    assert titles(graph, "rect") == [f"{name} (0)"]


def test_a_large_graph_can_be_drawn() -> None:
    chain = Graph(["t"] * 5000, {n: {n - 1: RAW} for n in range(1, 5000)}, range(5000))
    assert len(titles(chain, "path")) == 4999
