"""Lanes: no more calls at once than there are lanes, whatever the calls take."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from daskbatch.dispatch.cell import Cell, Phase
from daskbatch.lanes import Lanes


def make(count: int) -> deque[Cell]:
    return deque(Cell("home", number, "call", None) for number in range(count))


def may_run(cells: list[Cell]) -> list[Cell]:
    return [
        cell for cell in cells if not cell.over and all(before.over for before, _ in cell.waits)
    ]


@given(st.integers(1, 4), st.lists(st.sampled_from([1e-5, 0.01, 1.0]), max_size=60), st.data())
def test_no_more_than_so_many_may_run(cap: int, seconds: list[float], data: st.DataObject) -> None:
    lanes, gathered = Lanes(cap), make(len(seconds))
    given_out: list[Cell] = []
    while gathered or may_run(given_out):
        if gathered and lanes.is_free():
            given_out += lanes.take(gathered)
        ready = may_run(given_out)
        assert 0 < len(ready) <= cap
        cell = data.draw(st.sampled_from(ready))
        cell.phase, cell.seconds = Phase.DONE, seconds[cell.number]
    assert [cell.over for cell in given_out] == [True] * len(seconds)
    assert sorted(cell.number for cell in given_out) == list(range(len(seconds)))


def test_long_calls_are_given_one_by_one_and_short_ones_many_at_once() -> None:
    for seconds, most in ((1.0, 1), (1e-4, 500)):
        lanes, gathered = Lanes(1), make(1000)
        for _ in range(2):
            taken = lanes.take(gathered)
            for cell in taken:
                cell.phase, cell.seconds = Phase.DONE, seconds
        assert lanes.is_free()
        assert (len(lanes.take(gathered)) > 100) == (most > 1)


def test_what_was_cancelled_is_left_out() -> None:
    lanes, gathered = Lanes(1), make(2)
    gathered[0].phase = Phase.CANCELLED
    assert lanes.take(gathered) == []
    assert lanes.is_free()
    assert len(lanes.take(gathered)) == 1
