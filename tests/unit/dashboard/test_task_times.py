"""Tasks of open blocks in the task stream: rows of each worker, and none of workers that left."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from distributed import Scheduler
from distributed.diagnostics.task_stream import TaskStreamPlugin

from daskbatch.dashboard.task_times import TaskTime, TaskTimes


class Stream:
    """What Dask's task stream keeps."""

    def __init__(self) -> None:
        self.buffer: list[dict[str, Any]] = []
        self.index = 0


def make(*workers: str) -> tuple[TaskTimes, Stream, dict[str, None]]:
    """Return task times on a scheduler with some workers, its stream, and these workers."""
    stream, known = Stream(), dict.fromkeys(workers)
    scheduler = SimpleNamespace(plugins={TaskStreamPlugin.name: stream}, workers=known)
    return TaskTimes(cast(Scheduler, scheduler)), stream, known


def time(number: int, worker: str, begin: float, end: float) -> TaskTime:
    return TaskTime("load", number, worker, begin, end, failed=False)


def test_tasks_that_ran_at_the_same_time_have_rows_of_their_own() -> None:
    times, stream, _ = make("a", "b")
    assert times.add([time(0, "a", 0, 2), time(1, "a", 1, 3), time(2, "a", 2, 4)])
    assert times.add([time(3, "b", 0, 1)])
    rows = [(message["worker"], message["thread"]) for message in stream.buffer]
    assert rows == [("a", "member 0"), ("a", "member 1"), ("a", "member 0"), ("b", "member 0")]


def test_without_a_stream_nothing_is_kept() -> None:
    scheduler = SimpleNamespace(plugins={}, workers={"a": None})
    assert not TaskTimes(cast(Scheduler, scheduler)).add([time(0, "a", 0, 1)])


def test_rows_of_workers_that_left_are_not_kept() -> None:
    times, _, workers = make("a")
    for number in range(1000):
        workers.clear()
        workers[f"worker {number}"] = None
        times.add([time(number, f"worker {number}", number, number + 1)])
    assert len(times) == 1
