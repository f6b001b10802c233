"""Rows of a timeline have no overlap, and slots that are idle have one cause each."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.runs import execute, run_of, slots, task

from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG, WAR
from daskbatch.records.run_record import RunRecord, SlotEntry
from daskbatch.report.analysis.idle import IdleCause, IdleTime, find_idle_time
from daskbatch.report.analysis.occupancy import Occupancy
from daskbatch.report.analysis.run_graph import RunGraph
from daskbatch.report.analysis.timeline import make_rows


def idle(run: RunRecord) -> IdleTime:
    return find_idle_time(run, RunGraph(run), Occupancy(run).slots)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(1, 9)), max_size=40))
def test_no_two_tasks_of_a_row_overlap(times: list[tuple[int, int]]) -> None:
    tasks = tuple(task(f"t{n}", start, start + took) for n, (start, took) in enumerate(times))
    rows = make_rows(RunRecord("r", "r", tasks=tasks))
    assert sorted(each.uid for row in rows for each in row.tasks) == sorted(t.uid for t in tasks)
    for row in rows:
        for before, after in pairwise(row.tasks):
            assert (before.ended or 0) <= (after.started or 0)
    # First fit needs as many rows as tasks ran at once.
    most = max((sum(s <= point < s + t for s, t in times) for point in range(40)), default=0)
    assert len(rows) == most


def test_the_steps_of_a_clock_are_no_overlap() -> None:
    end = 1.8e9 + 1
    tasks = (
        task("a", 1.8e9, end),
        task("b", end - 3e-7, end + 1),
        task("c", end + 0.9999, end + 2),
    )
    first, second = make_rows(RunRecord("r", "r", tasks=tasks))
    assert [(each.uid, each.started) for each in first.tasks] == [("a", 1.8e9), ("b", end)]
    assert [each.uid for each in second.tasks] == ["c"]  # more than a step


def test_each_slot_has_a_row_and_rows_beyond_them_are_marked() -> None:
    entries = (SlotEntry("tcp://10.0.0.1:1", "n", 2), SlotEntry("tcp://10.0.0.1:2", "n", 1))
    tasks = tuple(task(f"t{n}", 0.0, 1.0) for n in range(3))
    rows = make_rows(RunRecord("r", "r", tasks=tasks, slots=entries))
    assert [(row.worker[-1], row.index, row.is_extra, len(row.tasks)) for row in rows] == [
        ("1", 0, False, 1),
        ("1", 1, False, 1),
        ("1", 2, True, 1),
        ("2", 0, False, 0),
    ]


def test_idle_slots_have_causes() -> None:
    run = RunRecord(
        "r",
        "r",
        slots=slots(3),
        tasks=(
            task("load", 0.0, 2.0),  # two slots wait for it: 4 s
            replace(task("a", 3.0, 4.0, "load"), submitted=0.0),  # ready from 2.0 on: 1 s
            replace(task("b", 3.0, 4.0, "load"), submitted=0.0),  # and 1 s
            replace(task("late", 6.0, 7.0), submitted=6.0),
        ),
    )
    found = idle(run)
    assert found.seconds == pytest.approx(7.0)
    assert found.busy == pytest.approx(5.0)
    assert found.by_cause == pytest.approx(
        {
            IdleCause.DEPENDENCIES: 4.0,
            IdleCause.STARTING: 2.0,
            # from 2 to 3 the third slot, from 3 to 4 one, from 4 to 6 all three
            IdleCause.PROGRAM: 1.0 + 1.0 + 6.0,
            IdleCause.END: 2.0,
        }
    )
    assert found.waited_for == (("load", pytest.approx(4.0)),)
    assert found.busy + sum(found.by_cause.values()) == pytest.approx(found.total)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(0, 40))
def test_busy_and_idle_time_are_all_the_time(seed: int, count: int, tasks: int) -> None:
    rng = random.Random(seed)
    waits = {n: {rng.randrange(n): rng.choice([ARG, WAR])} for n in range(1, tasks, 2)}
    graph = Graph([f"t{n % 3}" for n in range(tasks)], waits, range(tasks))
    run = execute(run_of(graph), {str(n): rng.random() for n in range(tasks)}, count)
    found = idle(run)
    assert found.busy + sum(found.by_cause.values()) == pytest.approx(found.total, abs=1e-6)
    assert all(seconds >= 0 for seconds in found.by_cause.values())
    assert sum(seconds for _, seconds in found.waited_for) <= (
        found.by_cause[IdleCause.DEPENDENCIES] + 1e-6
    )


def test_nothing_is_idle_if_nothing_has_run() -> None:
    found = idle(RunRecord("r", "r", tasks=(task("a"),), slots=slots(2)))
    assert (found.total, found.busy, sum(found.by_cause.values())) == (0.0, 0.0, 0.0)


def test_a_gang_takes_all_its_slots() -> None:
    run = RunRecord(
        "r", "r", slots=slots(4), tasks=(replace(task("job", 0.0, 2.0), slots=3), task("x", 0, 1))
    )
    occupancy = Occupancy(run)
    assert occupancy.peak == 4
    assert occupancy.seconds_full(0.0, 2.0) == pytest.approx(1.0)
    assert occupancy.seconds_full(0.5, 0.75) == pytest.approx(0.25)
    assert idle(run).busy == pytest.approx(7.0)


def test_the_slots_are_those_at_one_time() -> None:
    run = RunRecord("r", "r", tasks=(task("a", 0, 2),), slots=slots(5), capacity=3)
    assert Occupancy(run).slots == 3
    assert Occupancy(run, "tcp://10.0.0.1:1").slots == 1


def test_slots_that_are_not_known_are_those_that_were_used() -> None:
    assert Occupancy(RunRecord("r", "r", tasks=(task("a", 0, 2), task("b", 1, 3)))).slots == 2
