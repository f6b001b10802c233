"""Pictures show states, hazards, files and groups, in places that do not cover each other."""

from __future__ import annotations

import random
import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations

import pytest
from support.runs import edge, run_of, task

from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG, RAW, WAR
from daskbatch.records.run_record import BarrierEntry, RunRecord, TaskEntry
from daskbatch.report.graphs.collapse import choose_picture, collapse
from daskbatch.report.graphs.dot import to_dot
from daskbatch.report.graphs.layout import Box, make_layout
from daskbatch.report.graphs.picture import make_picture
from daskbatch.report.graphs.style import HAZARD_STYLES, STATE_COLOURS
from daskbatch.report.graphs.svg import to_svg

SVG = "{http://www.w3.org/2000/svg}"

STATES = ("done", "failed", "skipped", "running", "waiting", "cancelled")


def with_states() -> RunRecord:
    """Return a run with all hazards, all states, files and a barrier."""
    first = replace(task("first", 0.0, 1.0), writes=("/d/a.txt",))
    others = [
        replace(
            task(f"t[{n}]", None, None),
            state=state,
            reads=("/d/a.txt",),
            waits_for=(edge("first", "RAW"),),
        )
        for n, state in enumerate(STATES)
    ]
    barrier = BarrierEntry("b", tuple(edge(each.uid, "WAR") for each in others))
    last = replace(task("last"), waits_for=(edge("b", "WAR"), edge("first", "WAW", "/d/a.txt")))
    taker = task("taker", None, None, "last")
    return RunRecord("r", "r", tasks=(first, *others, last, taker), barriers=(barrier,))


def svg(run: RunRecord, **options: bool) -> ET.Element:
    return ET.fromstring(to_svg(make_picture(run, **options)))


def texts(root: ET.Element) -> list[str]:
    return [each.text or "" for each in root.iter(f"{SVG}text")]


def test_states_have_colours_and_a_legend() -> None:
    root = svg(with_states())
    fills = {
        (each.findtext(f"{SVG}title") or "").split(" ")[0]: each.get("fill")
        for each in root.iter(f"{SVG}rect")
    }
    for number, state in enumerate(STATES):
        assert fills[f"t[{number}]"] == STATE_COLOURS[state][0]
    assert fills["last"] == STATE_COLOURS["created"][0]
    assert {*STATES} <= {*texts(root)}


def test_hazards_have_arrows_dashes_and_a_legend() -> None:
    root = svg(with_states())
    lines = {
        (each.findtext(f"{SVG}title") or ""): (each.get("stroke"), each.get("stroke-dasharray"))
        for each in root.iter(f"{SVG}path")
    }
    for name in ("argument", "RAW", "WAR", "WAW"):
        colour, dashes = HAZARD_STYLES[name]
        assert lines[name] == (colour, dashes or None)
        assert any(text.startswith(f"{name}:") for text in texts(root))
    arrows = [each.get("fill") for each in root.iter(f"{SVG}polygon")]
    assert len(arrows) == len([*root.iter(f"{SVG}path")])


def test_a_barrier_is_a_dot_without_a_text() -> None:
    root = svg(with_states())
    (dot,) = (
        each
        for each in root.iter(f"{SVG}rect")
        if (each.findtext(f"{SVG}title") or "").startswith("barrier")
    )
    assert float(dot.get("width", "")) == 2 * float(dot.get("rx", ""))
    assert "barrier" not in texts(root)


def test_files_are_on_the_edges_on_demand() -> None:
    assert "a.txt" not in texts(svg(with_states()))
    root = svg(with_states(), files=True)
    assert texts(root).count("a.txt") == len(STATES) + 1
    titles = [each.findtext(f"{SVG}title") for each in root.iter(f"{SVG}path")]
    assert titles.count("RAW /d/a.txt") == len(STATES)


def test_a_graph_of_created_tasks_has_no_legend_of_states() -> None:
    root = svg(run_of(Graph(("a", "b"), {1: {0: RAW}}, (0, 1))))
    assert [text for text in texts(root) if text in STATE_COLOURS] == []


# -- groups ----------------------------------------------------------------------------------


def steps(count: int) -> RunRecord:
    """Return `count` tasks: steps, checks after them, and a barrier between each ten."""
    tasks: list[TaskEntry] = []
    barriers: list[BarrierEntry] = []
    for number in range(count // 2):
        waits = (edge(barriers[-1].uid, "RAW"),) if barriers else ()
        tasks.append(replace(task(f"step[{number}]"), waits_for=waits))
        tasks.append(task(f"check[{number}]", None, None, f"step[{number}]"))
        if number % 10 == 9:
            before = tuple(edge(f"check[{n}]", "WAR") for n in range(number - 9, number + 1))
            barriers.append(BarrierEntry(f"b{number}", before))
    return RunRecord("r", "r", tasks=tuple(tasks), barriers=tuple(barriers))


def test_tasks_of_a_name_are_one_node_in_a_large_graph() -> None:
    picture = choose_picture(steps(2000), None)
    assert [(node.label, node.count) for node in picture.nodes] == [("step", 1000), ("check", 1000)]
    edges = {(each.before, each.after): each.reasons for each in picture.edges}
    # A step comes after checks: the groups wait for each other in a circle.
    assert edges == {(0, 1): ("argument",), (1, 0): ("WAR",)}
    root = ET.fromstring(to_svg(picture))
    assert {"step", "check", "1000 tasks"} <= {*texts(root)}
    assert len(to_svg(picture)) < 10_000


def test_the_user_decides_whether_tasks_are_grouped() -> None:
    assert len(choose_picture(steps(20), None).nodes) == 21
    assert len(choose_picture(steps(20), True).nodes) == 2
    assert len(choose_picture(steps(400), False).nodes) == 400 + 20


def test_a_group_shows_the_states_of_its_tasks() -> None:
    states = ["done"] * 8 + ["failed", "skipped"]
    tasks = tuple(replace(task(f"t[{n}]"), state=state) for n, state in enumerate(states))
    (node,) = collapse(RunRecord("r", "r", tasks=tasks)).nodes
    assert node.states == (("done", 8), ("failed", 1), ("skipped", 1))
    root = ET.fromstring(to_svg(collapse(RunRecord("r", "r", tasks=tasks))))
    bars = [each.findtext(f"{SVG}title") for each in root.iter(f"{SVG}line")]
    assert [each for each in bars if each] == ["8 done", "1 failed", "1 skipped"]


def test_names_that_are_all_different_are_grouped_too() -> None:
    numbered = RunRecord("r", "r", tasks=tuple(task(f"part_{n}_of_9") for n in range(2000)))
    assert [node.label for node in collapse(numbered).nodes] == ["part_#_of_#"]
    letters = "abcdefghijklmnopqrstuvwxyz"
    many = RunRecord("r", "r", tasks=tuple(task(a + b) for a in letters for b in letters))
    nodes = collapse(many).nodes
    assert len(nodes) <= 60
    assert sum(node.count for node in nodes) == len(letters) ** 2


# -- places ----------------------------------------------------------------------------------


def overlap(one: Box, other: Box) -> bool:
    return (
        one.x < other.x + other.width
        and other.x < one.x + one.width
        and one.y < other.y + other.height
        and other.y < one.y + one.height
    )


@pytest.mark.parametrize("seed", range(5))
def test_no_two_nodes_cover_each_other_and_all_is_inside(seed: int) -> None:
    rng = random.Random(seed)
    waits = {
        n: {rng.randrange(n): rng.choice([ARG, RAW, WAR]) for _ in range(2)} for n in range(1, 60)
    }
    graph = Graph([f"task_{'x' * rng.randrange(9)}" for _ in range(60)], waits, range(60))
    picture = make_picture(run_of(graph))
    layout = make_layout(picture)
    assert not any(overlap(one, other) for one, other in combinations(layout.boxes, 2))
    for box in layout.boxes:
        assert box.x >= 0
        assert box.y >= 0
        assert box.x + box.width <= layout.width
        assert box.y + box.height <= layout.height
    for route in layout.routes:
        xs = [x for x, _ in route]
        assert xs == sorted(xs)  # from left to right
        assert all(0 <= y <= layout.height for _, y in route)


def test_a_long_edge_does_not_go_through_nodes_between() -> None:
    chain = {n: {n - 1: RAW} for n in range(1, 6)}
    chain[5] = {4: RAW, 0: WAR}
    picture = make_picture(run_of(Graph(list("abcdef"), chain, range(6))))
    layout = make_layout(picture)
    (route,) = (
        layout.routes[index] for index, each in enumerate(picture.edges) if each.reasons == ("WAR",)
    )
    for x, y in route[1:-1]:
        for box in layout.boxes:
            assert not (box.x < x < box.x + box.width and box.y < y < box.y + box.height)


def test_edges_that_lead_back_are_inside() -> None:
    picture = choose_picture(steps(400), True)
    layout = make_layout(picture)
    assert layout.backward
    for index in layout.backward:
        assert all(
            0 <= x <= layout.width and 0 <= y <= layout.height for x, y in layout.routes[index]
        )


# -- DOT -------------------------------------------------------------------------------------


def test_dot_has_colours_once_tasks_have_been_started() -> None:
    text = to_dot(make_picture(with_states()))
    assert STATE_COLOURS["failed"][0] in text
    assert "rankdir=LR" in text
    plain = to_dot(make_picture(run_of(Graph(("a", "b"), {1: {0: RAW}}, (0, 1)))))
    assert plain == 'digraph {\n  0 [label="a"];\n  1 [label="b"];\n  0 -> 1 [label="RAW"];\n}'


@pytest.mark.parametrize("name", ['say "hi"', "C:\\new\\", "\\", '"', "<b>", "ü → ß", "\\N"])
def test_any_name_is_a_label_in_dot(name: str) -> None:
    text = to_dot(make_picture(run_of(Graph((name,), {}, (0,)))))
    (label,) = re.findall(r'\[label="((?:[^"\\]|\\.)*)"\];', text, re.DOTALL)
    assert re.sub(r"\\(.)", r"\1", label) == name
