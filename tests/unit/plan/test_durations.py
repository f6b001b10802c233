"""The average duration of calls, by family, follows a change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskbatch.plan.durations import Durations


def test_nothing_is_known_of_a_new_family() -> None:
    durations = Durations()
    durations.add("other", 1, 1.0, 10)
    assert durations.seconds("new") is None
    assert durations.largest("new") is None


def test_the_average_is_per_call() -> None:
    durations = Durations()
    durations.add("f", calls=4, seconds=2.0, largest=1)
    assert durations.seconds("f") == pytest.approx(0.5)
    durations.add("f", calls=1, seconds=3.0, largest=1)
    assert durations.seconds("f") == pytest.approx(1.0)


def test_families_do_not_mix() -> None:
    durations = Durations()
    durations.add(("module", "f"), 1, 1.0, 10)
    durations.add(("module", "g"), 1, 2.0, 20)
    assert durations.seconds(("module", "f")) == 1.0
    assert durations.largest(("module", "g")) == 20


def test_the_largest_value_is_remembered() -> None:
    durations = Durations()
    for size in (5, 50, 0):
        durations.add("f", 1, 0.1, size)
    assert durations.largest("f") == 50


@pytest.mark.parametrize("calls", [1, 10, 1000])
def test_the_average_follows_a_change_however_long_it_was_otherwise(calls: int) -> None:
    durations = Durations()
    durations.add("f", 100_000, 100.0, 1)
    for _ in range(2000 // calls):
        durations.add("f", calls, calls * 1.0, 1)
    assert durations.seconds("f") == pytest.approx(1.0, rel=0.2)


def test_one_that_is_far_off_does_not_upset_a_long_experience() -> None:
    durations = Durations()
    durations.add("f", 1000, 1.0, 1)
    durations.add("f", 1, 0.1, 1)
    assert durations.seconds("f") == pytest.approx(0.001, rel=1.0)


def test_calls_that_take_no_time_are_known() -> None:
    durations = Durations()
    durations.add("f", 3, 0.0, 0)
    assert durations.seconds("f") == 0.0
    assert durations.largest("f") == 0


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(1, 500), st.floats(0, 1e4)), min_size=1, max_size=30))
def test_the_average_is_between_the_extremes(told: list[tuple[int, float]]) -> None:
    durations = Durations()
    for calls, each in told:
        durations.add("f", calls, calls * each, 1)
    found = durations.seconds("f")
    assert found is not None
    assert min(each for _, each in told) - 1e-6 <= found <= max(each for _, each in told) + 1e-6
