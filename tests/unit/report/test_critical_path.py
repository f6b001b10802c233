"""The critical path is the chain on which the end of a run hangs, with reasons and gaps."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.runs import edge, execute, run_of, slots, task

from daskbatch.plan.graph import Graph
from daskbatch.plan.hazards import ARG, RAW, WAR, WAW
from daskbatch.records.run_record import BarrierEntry, RunRecord, TaskEntry
from daskbatch.report.analysis.critical_path import PathRecord, find_critical_path
from daskbatch.report.analysis.occupancy import Occupancy
from daskbatch.report.analysis.run_graph import RunGraph


def path_of(run: RunRecord) -> PathRecord:
    return find_critical_path(RunGraph(run), Occupancy(run))


def run(*tasks: TaskEntry, barriers: tuple[BarrierEntry, ...] = (), count: int = 4) -> RunRecord:
    return RunRecord("r", "r", tasks=tasks, barriers=barriers, slots=slots(count))


def test_it_goes_through_the_predecessor_that_ended_last() -> None:
    found = path_of(
        run(
            task("load", 0.0, 1.0),
            task("short", 1.1, 2.0, "load"),
            task("long", 1.2, 5.0, "load"),
            task("other", 0.0, 5.4),
            task("join", 5.5, 6.0, "short", "long"),
        )
    )
    assert [step.name for step in found.steps] == ["load", "long", "join"]
    assert [step.reason for step in found.steps] == ["", "argument", "argument"]
    assert found.length == pytest.approx(1.0 + 3.8 + 0.5)
    assert found.gaps == pytest.approx(0.2 + 0.5)
    assert found.makespan == pytest.approx(6.0)


def test_reasons_name_the_paths_that_both_access() -> None:
    writer = task("writer", 0.0, 1.0, reads=("/d/in",), writes=("/d/out",))
    reader = task("reader", 1.0, 2.0, reads=("/d",), writes=("/e",))
    reader = replace(reader, waits_for=(edge("writer", "RAW"),))
    eraser = task("eraser", 2.0, 3.0, writes=("/d/in", "/d"))
    eraser = replace(eraser, waits_for=(edge("reader", "WAR"), edge("reader", "argument")))
    given_path = task("given", 3.0, 4.0)
    given_path = replace(given_path, waits_for=(edge("eraser", "WAW", "d['k']"),))
    found = path_of(run(writer, reader, eraser, given_path))
    assert [step.reason for step in found.steps] == [
        "",
        "RAW /d",
        "WAR /d; argument",
        "WAW d['k']",
    ]


def test_barriers_and_tasks_that_did_not_run_are_passed() -> None:
    first = task("first", 0.0, 1.0, writes=("/d/a",))
    late = task("late", 0.0, 3.0, writes=("/d/b",))
    skipped = replace(task("skipped", None, None), state="skipped", waits_for=(edge("late"),))
    barrier = BarrierEntry("b", (edge("first", "RAW"), edge("skipped", "WAR")))
    last = replace(task("last", 3.5, 4.0, reads=("/d",)), waits_for=(edge("b", "RAW"),))
    found = path_of(run(first, late, skipped, last, barriers=(barrier,)))
    assert [step.name for step in found.steps] == ["late", "last"]
    assert found.makespan == pytest.approx(4.0)


def test_a_gap_says_why() -> None:
    busy = [task(f"busy{n}", 1.0, 9.0) for n in range(2)]
    first = task("first", 0.0, 1.0)
    waits = task("waits", 9.0, 9.5, "first")
    found = path_of(run(first, *busy, waits, count=2))
    assert [step.gap_cause for step in found.steps] == ["", "all slots were taken"]
    late = replace(task("late", 5.0, 6.0, "first"), submitted=4.9)
    found = path_of(run(first, late))
    assert found.steps[1].gap_cause == "the program started it only then"
    gang = replace(task("gang", 5.0, 6.0, "first"), slots=3)
    assert path_of(run(first, gang)).steps[1].gap_cause == "it needs 3 slots at once"
    again = replace(task("again", 5.0, 6.0, "first"), attempts=2)
    assert path_of(run(first, again)).steps[1].gap_cause == "it was tried 2 times"
    behind = [task(f"b{n}", 1.0 + n, 2.0 + n) for n in range(4)]  # on the same worker
    found = path_of(run(first, *behind, task("behind", 5.0, 6.0, "first")))
    assert found.steps[1].gap_cause == "its worker ran other tasks"
    assert "scheduling" in path_of(run(first, task("x", 5.0, 6.0, "first"))).steps[1].gap_cause
    clocks = path_of(run(first, task("elsewhere", 0.9, 2.0, "first")))
    assert clocks.steps[1].gap == pytest.approx(-0.1)
    assert "clocks" in clocks.steps[1].gap_cause


def test_nothing_has_a_path_if_nothing_has_run() -> None:
    assert path_of(run()) == PathRecord()
    assert path_of(run(task("a"), task("b", 1.0, None))).steps == ()


def test_a_log_with_a_circle_and_missing_tasks_still_has_a_path() -> None:
    one = task("one", 0.0, 2.0, "two", "gone")
    two = task("two", 0.0, 1.0, "one")
    assert [step.name for step in path_of(run(one, two)).steps] == ["two", "one"]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 10_000), st.integers(1, 5), st.integers(1, 40))
def test_length_and_gaps_are_the_makespan(seed: int, count: int, tasks: int) -> None:
    rng = random.Random(seed)
    waits = {
        node: {before: rng.choice([ARG, RAW, WAR, WAW]) for before in rng.sample(range(node), k)}
        for node in range(1, tasks)
        if (k := rng.randrange(min(node, 3) + 1))
    }
    graph = Graph([f"t{n}" for n in range(tasks)], waits, range(tasks))
    done = execute(run_of(graph), {str(n): rng.random() for n in range(tasks)}, count)
    found = path_of(done)
    ended = max(entry.ended or 0.0 for entry in done.tasks)
    started = min(entry.started or 0.0 for entry in done.tasks)
    assert found.length + found.gaps == pytest.approx(ended - started)
    assert all(step.gap >= -1e-9 for step in found.steps)
    uids = [step.uid for step in found.steps]
    for before, after in pairwise(uids):
        assert int(before) in waits[int(after)]


def test_a_path_of_many_tasks_is_found_in_one_walk() -> None:
    tasks = [task(f"t{n}", n, n + 1, *([f"t{n - 1}"] if n else [])) for n in range(5000)]
    assert len(path_of(run(*tasks)).steps) == 5000
