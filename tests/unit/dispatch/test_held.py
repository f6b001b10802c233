"""Held tasks become ready once, when all that they wait for is over."""

from __future__ import annotations

import random

import pytest

from daskbatch.dispatch.open_blocks.held import HeldTasks
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.plan.hazards import ARG


def make_records(waits: list[list[int]]) -> list[TaskRecord]:
    records: list[TaskRecord] = []
    for number, before in enumerate(waits):
        record = TaskRecord("client", number, f"task {number}", None)
        record.rank = number
        record.phase = Phase.WAITING
        record.waits = tuple((records[each], ARG) for each in before)
        records.append(record)
    return records


def end(held: HeldTasks, record: TaskRecord, phase: Phase = Phase.DONE) -> list[TaskRecord]:
    record.waits = tuple(record.unfinished_waits().items())
    record.phase = phase
    held.remove(record)
    return held.over(record)[0]


@pytest.mark.parametrize("seed", range(20))
def test_each_task_becomes_ready_once_and_not_early(seed: int) -> None:
    rng = random.Random(seed)
    waits = [rng.sample(range(number), rng.randrange(min(number, 4) + 1)) for number in range(60)]
    records = make_records(waits)
    held = HeldTasks()
    ready = held.add(records, [1.0] * len(records))
    seen = list(ready)
    while ready:
        record = ready.pop(rng.randrange(len(ready)))
        assert all(before.over for before, _ in record.waits)
        more = end(held, record)
        ready += more
        seen += more
    assert sorted(record.number for record in seen) == list(range(60))
    assert not held


def test_a_cancelled_task_passes_on_what_it_waits_for() -> None:
    first, second, third = records = make_records([[], [0], [1]])
    held = HeldTasks()
    assert held.add(records, [1.0] * 3) == [first]
    assert end(held, second, Phase.CANCELLED) == []
    assert end(held, first) == [third]


def test_a_task_that_is_held_again_waits_again() -> None:
    first, second = records = make_records([[], [0]])
    held = HeldTasks()
    held.add(records, [1.0, 1.0])
    held.remove(second)  # it was sent ahead, behind the first
    assert held.add([second], [1.0]) == []
    assert held.waits_for_one(first) == [second]
    assert end(held, first) == [second]


def test_the_longest_way_to_the_end_comes_first() -> None:
    records = make_records([[], [], [0], [2]])
    held = HeldTasks()
    held.add(records, [1.0, 2.0, 1.0, 5.0])
    assert [held.level(record) for record in records] == [7.0, 2.0, 6.0, 5.0]
    assert held.work == 9.0
    held.remove(records[3])
    assert held.work == 4.0
    held.add([records[3]], [3.0])
    assert held.work == 7.0
