"""No more calls run at once than the limit allows, however long the calls take."""

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
def test_no_more_than_so_many_may_run(
    max_running: int, seconds: list[float], data: st.DataObject
) -> None:
    clock = Clock()
    limit, queued = ConcurrencyLimit(max_running, clock), make(len(seconds))
    submitted: list[TaskRecord] = []
    while queued or may_run(submitted):
        limit.divert()
        if queued and limit.is_free():
            submitted += limit.take(queued)
        ready = may_run(submitted)
        assert 0 < len(ready) <= max_running
        assert limit.seconds_to_wait() is None or len(ready) < max_running
        record = data.draw(st.sampled_from(ready))
        record.phase, record.seconds = Phase.DONE, seconds[record.number]
        clock.now += record.seconds
    assert [record.over for record in submitted] == [True] * len(seconds)
    assert sorted(record.number for record in submitted) == list(range(len(seconds)))


def chains(records: list[TaskRecord]) -> list[list[TaskRecord]]:
    """Return the chains: lists of calls of which each waits for the previous one."""
    found: list[list[TaskRecord]] = []
    for record in records:
        before = [before for before, _ in record.waits]
        chain = next((each for each in found if each[-1] in before), None)
        if chain is None:
            found.append([record])
        else:
            chain.append(record)
    return found


def two_chains_of_short_calls(
    clock: Clock,
) -> tuple[ConcurrencyLimit, list[TaskRecord], list[TaskRecord]]:
    limit = ConcurrencyLimit(2, clock)
    for record in limit.take(make(2)):
        record.phase, record.seconds = Phase.DONE, 0.001
    queued = make(24)
    taken: list[TaskRecord] = []
    while queued and limit.is_free():
        taken += limit.take(queued)
    one, two = chains(taken)
    assert len(one) > 3
    return limit, one, two


def end(records: list[TaskRecord], seconds: float = 0.001) -> None:
    for record in records:
        record.phase, record.seconds = Phase.DONE, seconds


def test_what_waits_behind_a_call_that_takes_long_goes_where_nothing_is_left() -> None:
    clock = Clock()
    limit, (first, *behind), others = two_chains_of_short_calls(clock)
    assert limit.seconds_to_wait() is None, "no chain is empty"
    end(others)
    assert not limit.divert(), "it has just begun"
    seconds = limit.seconds_to_wait()
    assert seconds is not None
    clock.now += seconds
    assert limit.seconds_to_wait() == 0
    assert limit.divert() == behind
    assert chains([first, *behind]) == [[first], behind]
    assert limit.seconds_to_wait() is None
    # If the first of them takes long as well, the others go back.
    end([first], 1.0)
    clock.now += 1.0
    assert limit.divert() == behind[1:]
    assert may_run(behind) == behind[:2]


def test_it_goes_to_all_sequences_that_are_empty() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(4, clock)
    end(limit.take(make(4)))
    taken = limit.take(make(160))
    first, *others = chains(taken)
    for other in others:
        end(other)
    limit.divert()
    clock.now += 1.0
    assert sorted(record.number for record in limit.divert()) == [
        record.number for record in first[1:]
    ]
    assert len(may_run(first)) == 4


def test_what_it_takes_the_result_of_a_diverted_call_waits_for() -> None:
    clock = Clock()
    limit, (first, second, *behind), others = two_chains_of_short_calls(clock)
    second.waits = (
        (first, ARG),
    )  # as the dispatcher sets it, if one takes the result of the other
    end(others)
    limit.divert()
    clock.now += 1.0
    assert limit.divert() == [second, *behind]
    assert second.waits == ((first, ARG),)


def test_a_call_that_takes_long_has_no_more_put_behind_it() -> None:
    clock = Clock()
    limit = ConcurrencyLimit(1, clock)
    end(limit.take(make(1)))
    (first,) = limit.take(make(1))
    assert limit.is_free(), "calls have been short so far"
    clock.now += 1.0
    assert not limit.is_free()
    assert limit.take(make(3)) == []
    end([first], 1.0)
    assert limit.is_free()


def test_long_calls_are_given_one_by_one_and_short_ones_many_at_once() -> None:
    for seconds, most in ((1.0, 1), (1e-4, 500)):
        limit, queued = ConcurrencyLimit(1), make(1000)
        for _ in range(2):
            taken = limit.take(queued)
            for record in taken:
                record.phase, record.seconds = Phase.DONE, seconds
        assert limit.is_free()
        assert (len(limit.take(queued)) > 100) == (most > 1)


def test_what_was_cancelled_is_left_out() -> None:
    limit, queued = ConcurrencyLimit(1), make(2)
    queued[0].phase = Phase.CANCELLED
    assert limit.take(queued) == []
    assert limit.is_free()
    assert len(limit.take(queued)) == 1
