"""The assigner: which worker receives which tasks, and how many at a time."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from typing import Any

from daskbatch.execute.scheduling.assigner import Assigner
from daskbatch.execute.scheduling.durations import Durations
from daskbatch.execute.scheduling.execution import Execution


def make(
    count: int, workers: str, concurrency: int = 1, seconds: float | None = None, kind: Any = "k"
) -> Assigner:
    durations = Durations()
    if seconds is not None:
        durations.learn(kind, seconds)
    assigner = Assigner(range(count), [kind] * count, concurrency, durations)
    for worker in workers:
        assigner.add_worker(worker)
    return assigner


def places(executions: list[Execution]) -> dict[int, str]:
    return {each.task: each.worker for each in executions}


def test_each_queue_is_given_one_task_of_unknown_duration() -> None:
    assigner = make(10, "ab", concurrency=2)
    assigner.add(range(10))
    assert places(assigner.assign(0.0)) == {0: "a", 1: "b", 2: "a", 3: "b"}
    assert assigner.assign(0.0) == []


def test_a_queue_that_is_empty_is_given_the_next() -> None:
    assigner = make(3, "a")
    assigner.add(range(3))
    (first,) = assigner.assign(0.0)
    assigner.over(first, 1.0)
    assert places(assigner.assign(1.0)) == {1: "a"}


def test_long_tasks_are_given_one_by_one() -> None:
    assigner = make(10, "ab", seconds=1.0)
    assigner.add(range(10))
    assert Counter(places(assigner.assign(0.0)).values()) == {"a": 1, "b": 1}


def test_short_tasks_are_given_many_at_a_time_and_evenly_in_the_end() -> None:
    assigner = make(100, "ab", seconds=1e-5)
    assigner.add(range(100))
    assert Counter(places(assigner.assign(0.0)).values()) == {"a": 50, "b": 50}
    assigner = make(100_000, "ab", seconds=1e-4)
    assigner.add(range(100_000))
    given = Counter(places(assigner.assign(0.0)).values())
    assert all(900 <= count <= 1001 for count in given.values())  # enough for a tenth of a second


def test_a_task_that_runs_on_the_drivers_side_has_a_queue_to_itself() -> None:
    assigner = make(3, "a", kind=None)
    assigner.add(range(3))
    assert len(assigner.assign(0.0)) == 1


def test_a_worker_without_bulk_is_given_one_at_a_time() -> None:
    assigner = make(10, "", seconds=1e-5)
    assigner.add_worker("a", bulk=False)
    assigner.add(range(10))
    assert len(assigner.assign(0.0)) == 1


def test_preferences_of_all_workers_come_before_what_keeps_them_busy() -> None:
    assigner = make(4, "ab")
    assigner.set_locality(0, [("b", 1)], more=False)
    assigner.set_locality(1, [("a", 1)], more=False)
    assigner.add(range(4))
    assert places(assigner.assign(0.0)) == {1: "a", 0: "b"}


def test_the_strongest_preference_decides() -> None:
    assigner = make(2, "ab")
    assigner.set_locality(0, [("a", 1), ("b", 5)], more=False)
    assigner.add(range(2))
    assert places(assigner.assign(0.0)) == {0: "b", 1: "a"}


def test_a_preference_never_keeps_a_worker_idle() -> None:
    assigner = make(2, "ab")
    for task in range(2):
        assigner.set_locality(task, [("a", 1)], more=False)
    assigner.add(range(2))
    assert places(assigner.assign(0.0)) == {0: "a", 1: "b"}


def test_a_prohibition_holds_and_ends_with_a_worker_that_joins() -> None:
    assigner = make(1, "a")
    assigner.set_locality(0, [("a", -1)], more=False)
    assert assigner.is_forbidden_everywhere(0)
    assigner.add([0])
    assert assigner.assign(0.0) == []
    assert assigner.stranded == {0}
    assigner.add_worker("b")
    assert places(assigner.assign(0.0)) == {0: "b"}


def test_a_failed_task_goes_to_another_worker_or_waits_for_it() -> None:
    assigner = make(2, "ab")
    assigner.add([0, 1])
    executions = {each.task: each for each in assigner.assign(0.0)}
    assigner.over(executions[0], 0.1)
    assigner.failed_on(0, "a")
    assigner.add([0])
    assert assigner.assign(0.1) == []  # "a" has nothing to do; "b" is busy
    assigner.over(executions[1], 0.2)
    assert places(assigner.assign(0.2)) == {0: "b"}


def test_a_failed_task_goes_to_the_same_worker_when_the_other_has_gone() -> None:
    assigner = make(1, "ab")
    assigner.failed_on(0, "a")
    assigner.add([0])
    assigner.remove_worker("b")
    assert places(assigner.assign(0.0)) == {0: "a"}


def test_a_worker_that_was_named_as_lost_is_given_nothing_more() -> None:
    assigner = make(4, "ab")
    assigner.add(range(4))
    assigner.lose_worker("a")
    assert places(assigner.assign(0.0)) == {0: "b"}


def test_what_waits_behind_a_long_task_is_taken_back_for_a_queue_that_is_empty() -> None:
    assigner = make(8, "ab", seconds=1e-3)
    assigner.add(range(8))
    executions = assigner.assign(0.0)
    assert len(executions) == 8
    mine = [each for each in executions if each.worker == "a"]
    for each in executions:
        if each.worker == "b":
            assigner.over(each, 0.01)
    assert assigner.may_be_held_up()
    assert assigner.held_up(0.05) == []  # the task before them may still end soon
    assert assigner.held_up(0.2) == mine[1:]
    for each in mine[1:]:
        each.taken_back = True
        assigner.over(each, 0.2)
    assigner.add([each.task for each in mine[1:]])
    assert set(places(assigner.assign(0.2)).values()) == {"b"}


def test_a_queue_that_is_held_up_is_given_no_more() -> None:
    assigner = make(30, "a", seconds=1e-4)
    assigner.add([0])
    assigner.assign(0.0)
    assigner.add(range(1, 30))
    assert assigner.assign(0.2) == []


def test_locality_0_takes_no_memory() -> None:
    workers = [f"worker-{n}" for n in range(100)]
    assigner = Assigner(range(1000), [None] * 1000, 1)
    for worker in workers:
        assigner.add_worker(worker)
    indifferent = [(worker, 0) for worker in workers]
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for task in range(1000):
        assigner.set_locality(task, indifferent, more=False)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Less than 4 bytes a task, of 100 workers. Other threads may allocate meanwhile.
    assert after - before < 4000


def test_kinds_that_return_much_have_a_queue_to_themselves() -> None:
    assigner = make(10, "a", seconds=1e-5)
    assigner.durations.learn_large("k")
    assigner.add(range(10))
    assert len(assigner.assign(0.0)) == 1
