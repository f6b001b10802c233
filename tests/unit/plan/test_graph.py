"""A graph says which tasks wait for which, and why, and is written in the language of Graphviz."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from daskbatch.plan.graph import Edge, Graph, reason_names
from daskbatch.plan.hazards import ARG, RAR, RAW, WAR, WAW


def diamond() -> Graph:
    """One task before two tasks before one; a barrier (4) is before the last task."""
    waits = {1: {0: RAW}, 2: {0: ARG | WAR}, 4: {1: RAW, 2: WAW}, 3: {4: RAW | WAR, 0: WAW}}
    return Graph(("load", "left", "right", "join"), waits, (0, 1, 2, 4, 3))


@pytest.mark.parametrize(
    ("reasons", "names"),
    [
        (0, ()),
        (ARG, ("argument",)),
        (RAW, ("RAW",)),
        (WAR | RAR, ("WAR", "RAR")),
        (WAW | WAR | RAW | ARG, ("argument", "RAW", "WAR", "WAW")),
    ],
)
def test_reasons_are_spelled_out_in_one_order(reasons: int, names: tuple[str, ...]) -> None:
    assert reason_names(reasons) == names


def test_edges_come_in_program_order_of_the_second_node() -> None:
    assert list(diamond().edges()) == [
        Edge(0, 1, ("RAW",)),
        Edge(0, 2, ("argument", "WAR")),
        Edge(1, 4, ("RAW",)),
        Edge(2, 4, ("WAW",)),
        Edge(0, 3, ("WAW",)),
        Edge(4, 3, ("RAW", "WAR")),
    ]


def test_arguments_and_what_was_written_are_needed_and_no_more() -> None:
    graph = diamond()
    assert [list(graph.needs(node)) for node in range(5)] == [[], [0], [0], [4], [1]]


def test_a_read_after_a_read_needs_nothing() -> None:
    assert list(Graph(("a", "b"), {1: {0: RAR}}, (0, 1)).needs(1)) == []


def test_counts_tell_how_many_edges_there_are_for_each_reason() -> None:
    assert diamond().counts() == {"argument": 1, "RAW": 3, "WAR": 2, "WAW": 2, "RAR": 0}
    assert sum(Graph((), {}, ()).counts().values()) == 0


def test_the_length_is_that_of_the_program_without_barriers() -> None:
    assert len(diamond()) == 4
    assert len(Graph((), {}, ())) == 0


def test_barriers_have_a_name_too() -> None:
    assert [diamond().name(node) for node in (0, 3, 4)] == ["load", "join", "barrier"]


def test_a_path_leads_over_edges_from_the_one_to_the_other() -> None:
    graph = diamond()
    for start, end in [(0, 1), (0, 3), (1, 3), (2, 3), (0, 4)]:
        path = graph.path(start, end)
        assert (path[0], path[-1]) == (start, end)
        for before, after in pairwise(path):
            assert before in graph.waits[after]


@pytest.mark.parametrize(("start", "end"), [(1, 2), (2, 1), (1, 0), (3, 0)])
def test_where_nobody_waits_there_is_no_path(start: int, end: int) -> None:
    assert diamond().path(start, end) == []


def test_a_path_is_found_in_a_long_chain_and_among_many_ways() -> None:
    long = Graph(["t"] * 20_000, {n: {n - 1: RAW} for n in range(1, 20_000)}, range(20_000))
    assert long.path(0, 19_999) == list(range(20_000))
    # Two ways at each of 200 steps: a search that tries all of them never ends.
    waits = {n: {before: RAW for before in (n - 1, n - 2) if before >= 0} for n in range(1, 400)}
    ladder = Graph(["t"] * 401, {**waits, 400: {399: RAW}}, range(401))
    assert ladder.path(0, 400)[-1] == 400
    assert ladder.path(400, 399) == []


# -- DOT ----------------------------------------------------------------------------------


def test_dot_has_each_node_and_each_edge_with_its_reasons() -> None:
    lines = [line.strip() for line in diamond().to_dot().splitlines()]
    assert lines[0] == "digraph {"
    assert lines[-1] == "}"
    assert set(lines[1:-1]) == {
        '0 [label="load"];',
        '1 [label="left"];',
        '2 [label="right"];',
        '3 [label="join"];',
        "4 [shape=point];",
        '0 -> 1 [label="RAW"];',
        '0 -> 2 [label="argument WAR"];',
        '1 -> 4 [label="RAW"];',
        '2 -> 4 [label="WAW"];',
        '0 -> 3 [label="WAW"];',
        '4 -> 3 [label="RAW WAR"];',
    }


@pytest.mark.parametrize(
    "name", ['say "hi"', "C:\\new\\", "a\nb", "\\", '"', "<b>", "ü → ß", "\\N"]
)
def test_any_name_is_a_label_in_dot(name: str) -> None:
    text = Graph((name,), {}, (0,)).to_dot()
    # A quoted text of DOT: each quote in it is escaped.
    (label,) = re.findall(r'\[label="((?:[^"\\]|\\.)*)"\];', text, re.DOTALL)
    assert re.sub(r"\\(.)", r"\1", label) == name


def test_an_empty_graph_is_valid_dot() -> None:
    assert Graph((), {}, ()).to_dot().split() == ["digraph", "{", "}"]
