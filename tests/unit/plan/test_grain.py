"""Which graphs are run task by task in open blocks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from daskbatch.plan.grain import independent_suit, suits_open_blocks


def stencil(width: int, steps: int) -> list[list[int]]:
    waits = []
    for step in range(steps):
        for x in range(width):
            before = range(max(0, x - 1), min(width, x + 2)) if step else ()
            waits.append([(step - 1) * width + each for each in before])
    return waits


def decide(seconds: float | None, waits: list[list[int]], slots: int = 2) -> bool:
    return suits_open_blocks([seconds] * len(waits), waits, [None] * len(waits), slots)


def test_children_are_fed_where_keys_cost_more() -> None:
    def isolated(seconds: float, waits: list[list[int]]) -> bool:
        count = len(waits)
        return suits_open_blocks([seconds] * count, waits, [None] * count, 2, isolated=count)

    assert isolated(0.001, stencil(8, 20))
    wide = stencil(100, 5)
    assert decide(0.0002, wide)
    assert not isolated(0.0002, wide)


@pytest.mark.parametrize("seconds", [None, 0.0002, 0.001, 0.02])
def test_a_narrow_stencil_of_short_tasks_suits(seconds: float | None) -> None:
    assert decide(seconds, stencil(8, 20))


def test_a_single_chain_is_one_block() -> None:
    assert not decide(0.001, [[], *([each] for each in range(999))])


def test_chains_side_by_side_are_blocks() -> None:
    assert not decide(0.001, [[each - 10] if each >= 10 else [] for each in range(1_000)])


def test_a_chain_of_tasks_of_different_kinds_is_not() -> None:
    waits = [[], *([each] for each in range(99))]
    assert suits_open_blocks([0.001] * 100, waits, ["one", "other"] * 50, 2)


def test_long_tasks_gain_nothing() -> None:
    assert not decide(1.0, stencil(8, 20))


def test_many_tiny_tasks_side_by_side_are_planned_ahead() -> None:
    flat_and_a_sum = [[] for _ in range(20_000)] + [list(range(20_000))]
    assert not decide(0.00001, flat_and_a_sum)
    assert not decide(0.001, flat_and_a_sum)
    assert not decide(0.00005, stencil(1_000, 20))


def test_one_client_cannot_feed_thousands_of_slots() -> None:
    waits = stencil(20_000, 2)
    assert not decide(0.02, waits, slots=10_000)


def test_unknown_tasks_of_a_small_workflow_suit() -> None:
    fork_and_join = [[], *([0] for _ in range(100)), list(range(1, 101))]
    assert decide(None, fork_and_join)


# -- tasks that wait for nothing ----------------------------------------------------------


def decide_independent(seconds: list[float | None], slots: int = 2) -> bool:
    return independent_suit(seconds, slots, len(seconds))


@pytest.mark.parametrize("seconds", [0.01, 0.05, 0.1])
def test_independent_tasks_that_are_not_short_are_sent_one_by_one(seconds: float) -> None:
    assert decide_independent([seconds] * 100)
    assert decide_independent([0.01, seconds] * 50, slots=16)


@pytest.mark.parametrize("seconds", [None, 0.0001, 0.005, 1.0])
def test_short_and_unknown_and_long_independent_tasks_share_keys_or_have_their_own(
    seconds: float | None,
) -> None:
    assert not decide_independent([seconds] * 100)
    assert not decide_independent([0.05, seconds] * 50)


def test_as_many_independent_tasks_as_slots_have_a_key_each() -> None:
    assert not decide_independent([0.05] * 2)
    assert decide_independent([0.05] * 3)
    assert independent_suit([0.05] * 2, 2, 3)  # another one was sent before


def test_many_independent_tasks_are_looked_at_only_until_one_does_not_suit() -> None:
    def seconds() -> Iterator[float | None]:
        yield 0.05
        yield None
        pytest.fail("a third one was looked at")

    assert not independent_suit(seconds(), 2, 100_000)


@pytest.mark.parametrize(("slots", "suits"), [(100, True), (10_000, False)])
def test_one_client_does_not_feed_thousands_of_slots_with_independent_tasks(
    slots: int, suits: bool
) -> None:
    assert decide_independent([0.1] * 100_000, slots) is suits
