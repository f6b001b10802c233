"""Explanations name the tasks, the channels and the reason, and are true."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from daskbatch.describe.access import (
    FILES,
    WHOLE,
    Channel,
    CommunicationDomain,
    CommunicationObject,
)
from daskbatch.errors import GraphError
from daskbatch.plan.explain import explain
from daskbatch.plan.program import build_graph

SOCKET = CommunicationObject(CommunicationDomain(rar=True), "10.0.0.7")


@dataclass(eq=False)
class Step:
    """A task as the planner sees it."""

    number: int
    name: str
    reads: Sequence[Channel] = ()
    writes: Sequence[Channel] = ()
    producers: Sequence[Step] = ()


def files(*paths: str) -> tuple[Channel, ...]:
    return tuple(Channel(FILES, path) for path in paths)


def said(steps: Sequence[Step], a: int, b: int) -> str:
    return explain(build_graph(steps), steps, steps[a], steps[b])


# -- one waits for the other --------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        (
            {"writes": files("/d/f")},
            {"reads": files("/d/f")},
            "it reads /d/f, which the other writes (RAW)",
        ),
        (
            {"reads": files("/d/f")},
            {"writes": files("/d/f")},
            "it writes /d/f, which the other reads (WAR)",
        ),
        (
            {"writes": files("/d/f")},
            {"writes": files("/d/f")},
            "it writes /d/f, which the other writes (WAW)",
        ),
        (
            {"writes": files("/d/f")},
            {"reads": files("/d")},
            "it reads /d (with /d/f), which the other writes (RAW)",
        ),
        (
            {"writes": files("/d")},
            {"reads": files("/d/f")},
            "it reads /d/f (with /d), which the other writes (RAW)",
        ),
        (
            {"reads": (Channel(SOCKET, 80),)},
            {"reads": (Channel(SOCKET, 80),)},
            "it reads 10.0.0.7[80], which the other reads (RAR)",
        ),
        (
            {"writes": (Channel(SOCKET, WHOLE),)},
            {"reads": (Channel(SOCKET, "x"),)},
            "it reads 10.0.0.7['x'] (with 10.0.0.7), which the other writes (RAW)",
        ),
    ],
)
def test_a_direct_wait_is_explained_by_its_channel(
    first: dict[str, Sequence[Channel]], second: dict[str, Sequence[Channel]], reason: str
) -> None:
    steps = [Step(0, "load", **first), Step(1, "use", **second)]
    assert said(steps, 0, 1) == f"'use' (1) waits for 'load' (0): {reason}."


def test_an_argument_is_explained() -> None:
    load = Step(0, "load")
    steps = [load, Step(1, "use", producers=[load])]
    assert said(steps, 0, 1) == "'use' (1) waits for 'load' (0): it takes its result."


def test_several_reasons_are_all_given() -> None:
    first = Step(0, "a", reads=files("/r"), writes=files("/w"))
    second = Step(1, "b", reads=files("/w"), writes=files("/r"), producers=[first])
    assert said([first, second], 0, 1) == (
        "'b' (1) waits for 'a' (0): it takes its result; it reads /w, which the other writes "
        "(RAW); it writes /r, which the other reads (WAR)."
    )


def test_many_channels_are_counted_not_named() -> None:
    paths = files(*(f"/d/{n}" for n in range(10)))
    text = said([Step(0, "a", writes=paths), Step(1, "b", reads=paths)], 0, 1)
    assert text.endswith("it reads /d/0, /d/1, /d/2 and 7 more, which the other writes (RAW).")


def test_a_wait_by_way_of_others_names_them() -> None:
    load = Step(0, "load", writes=files("/f"))
    mid = Step(1, "mid", reads=files("/f"))
    steps = [load, mid, Step(2, "end", producers=[mid])]
    assert said(steps, 0, 2) == "'end' (2) waits for 'load' (0) by way of 'mid' (1)."


def test_tasks_of_one_name_are_told_apart() -> None:
    steps = [Step(n, "step", reads=files("/f"), writes=files("/f")) for n in range(3)]
    text = said(steps, 0, 2)
    assert text.startswith("'step' (2) waits for 'step' (0)")


@pytest.mark.parametrize("crowd", [2, 20])
def test_a_wait_is_explained_whether_or_not_many_wait_at_once(crowd: int) -> None:
    writers = [Step(n, f"w{n}", writes=files(f"/d/{n}")) for n in range(crowd)]
    readers = [Step(crowd + n, f"r{n}", reads=files("/d")) for n in range(crowd)]
    text = said([*writers, *readers], 1, crowd + 1)
    assert text == (
        f"'r1' ({crowd + 1}) waits for 'w1' (1): "
        "it reads /d (with /d/1), which the other writes (RAW)."
    )


@pytest.mark.parametrize("crowd", [2, 20])
def test_no_reason_is_given_that_keeps_no_order(crowd: int) -> None:
    readers = [Step(n, f"r{n}", reads=files("/d")) for n in range(crowd)]
    last = [Step(crowd + n, f"l{n}", reads=files("/d"), writes=files(f"/d/{n}")) for n in range(2)]
    text = said([*readers, *last], 1, crowd)
    assert re.findall(r"\((\w+)\)", text.partition(": ")[2]) == ["WAR"]


# -- one does not wait for the other ------------------------------------------------------


def test_independent_tasks_are_told() -> None:
    steps = [Step(0, "a", writes=files("/f")), Step(1, "b", reads=files("/g"))]
    text = said(steps, 0, 1)
    assert text.startswith("'b' (1) need not wait for 'a' (0)")
    assert "takes no result" in text
    assert "no channel" in text


def test_two_that_only_read_need_not_wait() -> None:
    steps = [Step(n, name, reads=files("/f")) for n, name in enumerate("ab")]
    assert said(steps, 0, 1).startswith("'b' (1) need not wait for 'a' (0)")


def test_the_first_does_not_wait_for_the_second() -> None:
    steps = [Step(0, "a", writes=files("/f")), Step(1, "b", reads=files("/f"))]
    text = said(steps, 1, 0)
    assert text.startswith("'a' (0) need not wait for 'b' (1): it comes first")
    assert text.endswith("'b' (1) waits for it.")


def test_a_task_and_itself_are_one() -> None:
    step = Step(0, "a", reads=files("/f"), writes=files("/f"))
    assert said([step], 0, 0) == "'a' (0) is one and the same task."


def test_a_task_that_is_no_member_is_named() -> None:
    steps = [Step(0, "a"), Step(1, "b")]
    stranger = Step(1, "stranger")
    for a, b in [(steps[0], stranger), (stranger, steps[0])]:
        with pytest.raises(GraphError, match="'stranger' is not a member"):
            explain(build_graph(steps), steps, a, b)
