"""Estimates are those of list scheduling with the measured times."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.runs import edge, execute, run_of, slots, task

from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import RAW
from daskbatch.records.run_record import BarrierEntry, RunRecord
from daskbatch.report.analysis.run_graph import RunGraph
from daskbatch.report.analysis.what_if import estimate, simulate


def test_conditions() -> None:
    write = task("write", 0.0, 1.0)
    readers = [replace(task(f"r{n}", 1, 3), waits_for=(edge("write", "RAW"),)) for n in range(2)]
    barrier = BarrierEntry("b", tuple(edge(f"r{n}", "WAR") for n in range(2)))
    again = replace(task("again", 5, 9), waits_for=(edge("b", "WAR"),))
    run = RunRecord("r", "r", tasks=(write, *readers, again), barriers=(barrier,), slots=slots(1))
    found = {each.condition: each for each in estimate(RunGraph(run), 1)}
    assert {name: each.seconds for name, each in found.items()} == pytest.approx(
        {
            "as it was: 1 slot, all edges": 1 + 2 + 2 + 4,
            "without WAR and WAW edges": 1 + 2 + 2 + 4,
            "with twice the slots (2)": 1 + 2 + 4,
            "with the longest task (again) halved": 1 + 2 + 2 + 2,
            "with a slot for each task": 1 + 2 + 4,
        }
    )
    assert found["with twice the slots (2)"].saved == pytest.approx(2 / 9)
    two = {each.condition: each.seconds for each in estimate(RunGraph(run), 2)}
    assert two["as it was: 2 slots, all edges"] == pytest.approx(7.0)
    assert two["without WAR and WAW edges"] == pytest.approx(5.0)  # `again` beside the readers


def test_a_gang_begins_when_all_its_slots_are_free() -> None:
    run = RunRecord(
        "r",
        "r",
        tasks=(task("a", 0, 1), replace(task("job", 1, 3), slots=2), task("b", 0, 3)),
        slots=slots(2),
    )
    graph = RunGraph(run)
    durations = {"a": 1.0, "job": 2.0, "b": 3.0}
    # The job does not fit at the start, so `b` begins: the job after it, at 3.
    assert simulate(graph, durations, 2) == pytest.approx(5.0)
    # A job that needs more slots than there are takes all.
    assert simulate(graph, durations, 1) == pytest.approx(6.0)
    assert simulate(graph, durations, None) == pytest.approx(3.0)


def test_nothing_is_estimated_if_nothing_has_run() -> None:
    assert estimate(RunGraph(RunRecord("r", "r", tasks=(task("a"),))), 2) == ()


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 40))
def test_a_run_without_lost_time_is_its_own_estimate(seed: int, count: int, tasks: int) -> None:
    rng = random.Random(seed)
    graph = Graph([f"t{n}" for n in range(tasks)], {}, range(tasks))
    run = execute(run_of(graph), {str(n): rng.random() for n in range(tasks)}, count)
    end = max(entry.ended or 0.0 for entry in run.tasks)
    first, *others = estimate(RunGraph(run), count)
    assert first.seconds == pytest.approx(end)
    assert all(each.seconds <= end + 1e-9 for each in others if "halved" not in each.condition)


def test_many_tasks_and_edges_are_simulated_without_recursion() -> None:
    chain = Graph(["t"] * 5000, {n: {n - 1: RAW} for n in range(1, 5000)}, range(5000))
    run = execute(run_of(chain), {str(n): 0.5 for n in range(5000)}, 3)
    assert estimate(RunGraph(run), 3)[0].seconds == pytest.approx(2500.0)
