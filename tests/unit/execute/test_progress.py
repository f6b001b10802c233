"""The progress of a job: which tasks are ready after successes and failures of all kinds."""

from __future__ import annotations

import random

import pytest

from daskbatch.execute.jobs.task import Task
from daskbatch.execute.scheduling.graph import TaskGraph
from daskbatch.execute.scheduling.progress import MAX_DEATHS, JobProgress, Stage


def make(
    count: int, edges: list[tuple[int, int]], attempts: int = 1, most: int = 16
) -> JobProgress:
    """Make a job of tasks 0, 1, … with edges from earlier to later ones."""
    tasks = [Task(None, number) for number in range(count)]
    for before, after in edges:
        tasks[after].dependencies.add(tasks[before])
    return JobProgress(TaskGraph(tasks), attempts, most)


def run(progress: JobProgress, *tasks: int) -> list[int]:
    """Execute tasks one after another; return the tasks that are ready after the last."""
    ready: list[int] = []
    for task in tasks:
        progress.executing(task)
        ready = progress.succeeded(task)
    return ready


def test_tasks_are_ready_once_all_before_them_are_done() -> None:
    progress = make(4, [(0, 2), (1, 2), (2, 3)])
    assert progress.begin([]) == [0, 1]
    assert run(progress, 0) == []
    assert run(progress, 1) == [2]
    assert run(progress, 2) == [3]
    assert run(progress, 3) == []
    assert progress.unfinished == 0


def test_what_is_done_before_counts_as_done() -> None:
    progress = make(3, [(0, 1), (1, 2)])
    assert progress.begin([0]) == [1]
    assert progress.unfinished == 2


def test_what_is_ready_comes_by_priority() -> None:
    tasks = [Task(None, number, priority=-number) for number in range(3)]
    assert JobProgress(TaskGraph(tasks), 1, 16).begin([]) == [2, 1, 0]


def test_a_failure_counts_as_an_attempt() -> None:
    progress = make(1, [], attempts=2)
    progress.begin([])
    progress.executing(0)
    assert progress.failed(0).ready == [0]
    progress.executing(0)
    assert progress.failed(0).is_permanent
    assert progress.stages[0] == Stage.FAILED


def test_a_loss_counts_as_none_but_deaths_are_bounded() -> None:
    progress = make(1, [])
    progress.begin([])
    for _ in range(100):
        progress.executing(0)
        assert progress.lost(0, 0).ready == [0]
    for _ in range(MAX_DEATHS - 1):
        progress.executing(0)
        assert progress.lost(0, 1).ready == [0]
    progress.executing(0)
    assert progress.lost(0, 1).is_permanent


def test_missing_results_are_made_again_before_the_task_that_misses_them() -> None:
    progress = make(3, [(0, 2), (1, 2)])
    progress.begin([])
    run(progress, 0, 1)
    progress.executing(2)
    change = progress.dependencies_failed(2, [1])
    assert (change.ready, change.redone, change.is_permanent) == ([1], [1], False)
    assert progress.unfinished == 2
    assert run(progress, 1) == [2]
    run(progress, 2)
    assert progress.unfinished == 0


def test_an_indirect_dependency_is_waited_for_too() -> None:
    progress = make(3, [(0, 1), (1, 2)])
    progress.begin([])
    run(progress, 0, 1)
    progress.executing(2)
    assert progress.dependencies_failed(2, [0]).redone == [0]
    assert progress.stages[1] == Stage.DONE
    assert run(progress, 0) == [2]


def test_what_waits_for_a_task_that_is_made_again_is_blocked() -> None:
    progress = make(4, [(0, 1), (0, 2), (0, 3)])
    progress.begin([])
    run(progress, 0)
    progress.executing(1)
    progress.executing(2)
    change = progress.dependencies_failed(1, [0])
    assert change.blocked == [3]
    assert progress.stages[2] == Stage.RUNNING  # it continues to run
    run(progress, 0)
    assert [progress.stages[n] for n in (1, 3)] == [Stage.READY] * 2


def test_a_result_that_was_made_again_since_the_task_began_is_left_alone() -> None:
    progress = make(3, [(0, 1), (0, 2)])
    progress.begin([])
    run(progress, 0)
    progress.executing(1)
    progress.executing(2)
    progress.dependencies_failed(1, [0])
    run(progress, 0)
    change = progress.dependencies_failed(2, [0])
    assert (change.redone, change.ready) == ([], [2])


def test_several_that_miss_the_same_have_it_made_once() -> None:
    progress = make(3, [(0, 1), (0, 2)])
    progress.begin([])
    run(progress, 0)
    progress.executing(1)
    progress.executing(2)
    assert progress.dependencies_failed(1, [0]).redone == [0]
    assert progress.dependencies_failed(2, [0]).redone == []
    assert run(progress, 0) == [1, 2]


@pytest.mark.parametrize("named", [[0], []])
def test_re_execution_is_bounded(named: list[int]) -> None:
    progress = make(2, [(0, 1)], most=3)
    progress.begin([])
    run(progress, 0)
    for _ in range(3):
        progress.executing(1)
        assert not progress.dependencies_failed(1, named).is_permanent
        if named:
            run(progress, 0)
    progress.executing(1)
    assert progress.dependencies_failed(1, named).is_permanent
    assert progress.stages[1] == Stage.FAILED


def test_a_mark_on_a_done_task_has_it_made_again_bounded() -> None:
    progress = make(2, [(0, 1)], most=2)
    progress.begin([])
    run(progress, 0)
    for _ in range(2):
        change = progress.dependency_failed(0)
        assert (change.ready, change.blocked) == ([0], [1])
        run(progress, 0)
    assert progress.dependency_failed(0).is_permanent


def test_a_mark_on_a_task_that_is_not_done_changes_nothing() -> None:
    progress = make(2, [(0, 1)])
    progress.begin([])
    assert progress.dependency_failed(1).ready == []
    progress.executing(0)
    assert progress.dependency_failed(0).ready == [0]  # it runs, so it runs again


def test_any_order_of_events_ends_with_all_done() -> None:
    """In random graphs with random failures, executing the ready tasks always ends the job."""
    for seed in range(200):
        chance = random.Random(seed)
        count = chance.randrange(2, 12)
        edges = [(a, b) for b in range(count) for a in range(b) if chance.random() < 0.3]
        progress = make(count, edges, attempts=1000, most=1000)
        before = {b: {a for a, c in edges if c == b} for b in range(count)}
        ready, running = set(progress.begin([])), []
        for step in range(10_000):
            if not progress.unfinished:
                break
            assert ready or running, f"seed {seed}: nothing can go on"
            if ready and (not running or chance.random() < 0.5):
                task = ready.pop()
                assert all(progress.stages[each] == Stage.DONE for each in before[task])
                progress.executing(task)
                running.append(task)
                continue
            task = running.pop(chance.randrange(len(running)))
            what = chance.random() if step < 200 else 1.0
            if what < 0.2:
                change = progress.failed(task)
            elif what < 0.4:
                ancestors = sorted(progress._graph.ancestors(task))
                named = chance.sample(ancestors, chance.randint(0, len(ancestors)))
                change = progress.dependencies_failed(task, named)
            else:
                ready |= set(progress.succeeded(task))
                continue
            ready -= set(change.blocked)
            ready |= set(change.ready)
        assert progress.unfinished == 0
        assert set(progress.stages) == {Stage.DONE}
