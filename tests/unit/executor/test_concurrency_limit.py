"""Lanes: no more calls at once than there are lanes, whatever the calls take."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.executor.concurrency_limit import ConcurrencyLimit
from daskbatch.plan.hazards import ARG


def make(count: int) -> deque[TaskRecord]:
    return deque(TaskRecord("home", number, "call", None) for number in range(count))


def may_run(records: list[TaskRecord]) -> list[TaskRecord]:
    return [
        record
        for record in records
        if not record.over and all(before.over for before, _ in record.waits)
    ]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.integers(1, 4), st.lists(st.sampled_from([1e-5, 0.01, 1.0]), max_size=60), st.data())
def test_no_more_than_so_many_may_run(cap: int, seconds: list[float], data: st.DataObject) -> None:
    clock = Clock()
    lanes, gathered = ConcurrencyLimit(cap, clock), make(len(seconds))
    given_out: list[TaskRecord] = []
    while gathered or may_run(given_out):
        lanes.divert()
        if gathered and lanes.is_free():
            given_out += lanes.take(gathered)
        ready = may_run(given_out)
        assert 0 < len(ready) <= cap
        assert lanes.seconds_to_wait() is None or len(ready) < cap
        record = data.draw(st.sampled_from(ready))
        record.phase, record.seconds = Phase.DONE, seconds[record.number]
        clock.now += record.seconds
    assert [record.over for record in given_out] == [True] * len(seconds)
    assert sorted(record.number for record in given_out) == list(range(len(seconds)))


def chains(records: list[TaskRecord]) -> list[list[TaskRecord]]:
    """Give those calls that wait for each other together, in their order."""
    found: list[list[TaskRecord]] = []
    for record in records:
        before = [before for before, _ in record.waits]
        chain = next((each for each in found if each[-1] in before), None)
        if chain is None:
            found.append([record])
        else:
            chain.append(record)
    return found


def two_lanes_of_short_calls(
    clock: Clock,
) -> tuple[ConcurrencyLimit, list[TaskRecord], list[TaskRecord]]:
    lanes = ConcurrencyLimit(2, clock)
    for record in lanes.take(make(2)):
        record.phase, record.seconds = Phase.DONE, 0.001
    gathered = make(24)
    taken: list[TaskRecord] = []
    while gathered and lanes.is_free():
        taken += lanes.take(gathered)
    one, two = chains(taken)
    assert len(one) > 3
    return lanes, one, two


def end(records: list[TaskRecord], seconds: float = 0.001) -> None:
    for record in records:
        record.phase, record.seconds = Phase.DONE, seconds


def test_what_waits_behind_a_call_that_takes_long_goes_where_nothing_is_left() -> None:
    clock = Clock()
    lanes, (first, *behind), others = two_lanes_of_short_calls(clock)
    assert lanes.seconds_to_wait() is None, "no lane is empty"
    end(others)
    assert not lanes.divert(), "it has just begun"
    seconds = lanes.seconds_to_wait()
    assert seconds is not None
    clock.now += seconds
    assert lanes.seconds_to_wait() == 0
    assert lanes.divert() == behind
    assert chains([first, *behind]) == [[first], behind]
    assert lanes.seconds_to_wait() is None
    # Should what goes first there take long as well, the rest goes back.
    end([first], 1.0)
    clock.now += 1.0
    assert lanes.divert() == behind[1:]
    assert may_run(behind) == behind[:2]


def test_it_goes_to_as_many_lanes_as_there_are() -> None:
    clock = Clock()
    lanes = ConcurrencyLimit(4, clock)
    end(lanes.take(make(4)))
    taken = lanes.take(make(160))
    first, *others = chains(taken)
    for other in others:
        end(other)
    lanes.divert()
    clock.now += 1.0
    assert sorted(record.number for record in lanes.divert()) == [
        record.number for record in first[1:]
    ]
    assert len(may_run(first)) == 4


def test_what_it_takes_the_result_of_a_diverted_call_waits_for() -> None:
    clock = Clock()
    lanes, (first, second, *behind), others = two_lanes_of_short_calls(clock)
    second.waits = ((first, ARG),)  # as the dispatcher has it, where one takes from the other
    end(others)
    lanes.divert()
    clock.now += 1.0
    assert lanes.divert() == [second, *behind]
    assert second.waits == ((first, ARG),)


def test_a_call_that_takes_long_has_no_more_put_behind_it() -> None:
    clock = Clock()
    lanes = ConcurrencyLimit(1, clock)
    end(lanes.take(make(1)))
    (first,) = lanes.take(make(1))
    assert lanes.is_free(), "those of its like are short"
    clock.now += 1.0
    assert not lanes.is_free()
    assert lanes.take(make(3)) == []
    end([first], 1.0)
    assert lanes.is_free()


def test_long_calls_are_given_one_by_one_and_short_ones_many_at_once() -> None:
    for seconds, most in ((1.0, 1), (1e-4, 500)):
        lanes, gathered = ConcurrencyLimit(1), make(1000)
        for _ in range(2):
            taken = lanes.take(gathered)
            for record in taken:
                record.phase, record.seconds = Phase.DONE, seconds
        assert lanes.is_free()
        assert (len(lanes.take(gathered)) > 100) == (most > 1)


def test_what_was_cancelled_is_left_out() -> None:
    lanes, gathered = ConcurrencyLimit(1), make(2)
    gathered[0].phase = Phase.CANCELLED
    assert lanes.take(gathered) == []
    assert lanes.is_free()
    assert len(lanes.take(gathered)) == 1
