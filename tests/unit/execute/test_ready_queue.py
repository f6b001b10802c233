"""The ready queue: which worker receives which task, by preferences, prohibitions, priorities."""

from __future__ import annotations

import random

from daskbatch.execute.scheduling.ready_queue import ReadyQueue, allowed_workers


def drain(queue: ReadyQueue, worker: str) -> list[int]:
    found = []
    while (task := queue.take(worker)) is not None:
        found.append(task)
    return found


def test_tasks_come_by_rank() -> None:
    queue = ReadyQueue()
    for task in (2, 0, 1):
        queue.add(task, task)
    assert drain(queue, "a") == [0, 1, 2]


def test_what_prefers_a_worker_comes_first_and_what_prefers_another_last() -> None:
    queue = ReadyQueue()
    queue.add(0, 0, {"b": 1})
    queue.add(1, 1)
    queue.add(2, 2, {"a": 1})
    queue.add(3, 3, {"a": 2})
    assert queue.best_degree("a") == 2
    assert drain(queue, "a") == [3, 2, 1, 0]


def test_what_is_forbidden_is_never_taken() -> None:
    queue = ReadyQueue()
    queue.add(0, 0, forbidden=frozenset({"a"}))
    queue.add(1, 1, {"a": 5}, forbidden=frozenset({"a"}))
    assert drain(queue, "a") == []
    assert drain(queue, "b") == [0, 1]


def test_a_worker_that_is_busy_takes_no_strangers() -> None:
    queue = ReadyQueue()
    queue.add(0, 0, {"b": 1})
    assert queue.take_other("a", strangers=False) is None
    assert queue.take_other("a") == 0


def test_what_was_removed_or_moved_is_not_taken_twice() -> None:
    queue = ReadyQueue()
    queue.add(0, 0, {"a": 1})
    queue.add(1, 1)
    queue.discard(1)
    queue.add(0, 0, forbidden=frozenset({"a"}))
    assert len(queue) == 1
    assert drain(queue, "a") == []
    assert drain(queue, "b") == [0]


def test_each_task_is_taken_once_whoever_takes() -> None:
    chance = random.Random(1)
    queue = ReadyQueue()
    for task in range(500):
        degrees = {worker: chance.choice([0, 1, 2]) for worker in "abc"}
        forbidden = frozenset(w for w in "abc" if chance.random() < 0.2 and w != "a")
        queue.add(task, chance.randrange(500), degrees, forbidden)
    found: list[int] = []
    while queue:
        task = queue.take(chance.choice("abc"))
        if task is not None:
            found.append(task)
    assert sorted(found) == list(range(500))


def test_a_retry_goes_elsewhere_where_there_is_an_elsewhere() -> None:
    assert allowed_workers("abc", {}, "a", "") == ["b", "c"]
    assert allowed_workers("ab", {}, "ab", "") == ["a"]  # not on the worker where it failed last
    assert allowed_workers("a", {}, "aa", "") == ["a"]
    assert allowed_workers("ab", {"b": -1}, "a", "") == ["a"]
    assert allowed_workers("ab", {"a": -1, "b": -1}, "", "") == []


def test_workers_that_were_named_as_lost_are_the_last_resort() -> None:
    assert allowed_workers("ab", {}, "", "a") == ["b"]
    assert allowed_workers("ab", {}, "b", "a") == ["b"]
    assert allowed_workers("ab", {}, "a", "ab") == ["b"]
    assert allowed_workers("a", {}, "a", "a") == ["a"]
