"""Programs that are started in parts: later parts wait for values of earlier ones."""

from __future__ import annotations

import gc
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.waiting import wait_for_file

from daskbatch import Batch, DependencyFailed, TaskCancelled


def same(value: Any) -> Any:
    return value


def fail(what: str = "boom") -> None:
    raise ValueError(what)


def combine(seconds: float, *values: int) -> int:
    """Add values after some time; raise if seven divides the sum."""
    time.sleep(seconds)
    total = sum(values) + 1
    if total % 7 == 0:
        raise ValueError(total)
    return total


def take_from(batch: Batch, producer: Any, compiled: bool) -> Any:
    consumer = batch.function(same, producer)
    (batch.compile([consumer]) if compiled else consumer).start()
    return consumer


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("over", [False, True])
def test_a_failure_of_an_earlier_submission(batch: Batch, over: bool, compiled: bool) -> None:
    producer = batch.function(fail)
    producer.start()
    if over:
        producer.wait(timeout=60)
    consumer = take_from(batch, producer, compiled)
    with pytest.raises(DependencyFailed, match="'same' did not run, because 'fail' failed") as e:
        consumer.get(timeout=60)
    assert e.value.root == "fail"


@pytest.mark.parametrize("compiled", [False, True])
def test_a_cancelled_task_of_an_earlier_submission(batch: Batch, compiled: bool) -> None:
    producer = batch.function(same, 1)
    assert producer.cancel()
    consumer = take_from(batch, producer, compiled)
    with pytest.raises(DependencyFailed, match="because 'same' \\(1\\) was cancelled") as error:
        consumer.get(timeout=60)
    assert isinstance(error.value.__cause__, TaskCancelled)


def test_a_task_that_is_cancelled_while_its_consumer_waits(batch: Batch, tmp_path: Path) -> None:
    holders = [batch.function(wait_for_file, tmp_path / "go") for _ in range(2)]
    first = batch.compile(holders)
    first.start()
    producer = batch.function(same, holders[0])
    producer.start()
    consumer = take_from(batch, producer, compiled=False)
    assert producer.cancel()
    (tmp_path / "go").touch()
    with pytest.raises(DependencyFailed, match="because 'same' was cancelled"):
        consumer.get(timeout=60)


def test_tasks_that_come_back_take_their_consumers_along(batch: Batch) -> None:
    producers = [batch.function(combine, 0.02, 7 * n) for n in range(30)]
    batch.compile(producers).start()
    consumers = [take_from(batch, producer, compiled=False) for producer in producers]
    assert [c.get(timeout=60) for c in consumers] == [7 * n + 1 for n in range(30)]


@pytest.mark.parametrize("seed", range(8))
def test_random_programs_in_random_parts(batch: Batch, seed: int) -> None:
    """Values and failures are the same as if the calls were made one after another."""
    dice = random.Random(seed)
    tasks: list[Any] = []
    expected: list[int | None] = []
    while len(tasks) < 150:
        part = []
        for _ in range(dice.choice([1, 1, 3, 20])):
            chosen = dice.sample(range(len(tasks)), min(len(tasks), dice.randrange(4)))
            part.append(
                batch.function(
                    combine,
                    dice.choice([0, 0, 0, 0.01, 0.06]),
                    len(tasks),
                    *map(tasks.__getitem__, chosen),
                )
            )
            values = [expected[each] for each in chosen]
            total = None if None in values else sum([len(tasks), 1, *filter(None, values)])
            expected.append(None if total is None or total % 7 == 0 else total)
            tasks.append(part[-1])
        if len(part) == 1 and dice.random() < 0.5:
            part[0].start()
        else:
            batch.compile(part).start()
    for task, value in zip(tasks, expected, strict=True):
        task.wait(timeout=60)
        assert (task.state in ("failed", "skipped")) == (value is None)
        if value is not None:
            assert task.get() == value


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Hypothesis has a callback of the garbage collector, which would swallow a Ctrl-C."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collections")
def test_an_interrupted_start_leaves_no_task_behind(batch: Batch) -> None:
    for delay in (0.0005, 0.002, 0.005, 0.01, 0.02):
        program = batch.compile([batch.function(same, n) for n in range(5_000)])
        alarm = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            alarm.start()
            program.start()
            alarm.join()
            threading.Event().wait(10)
        program.cancel()
        if program.state != "created":
            program.wait(timeout=60)
        assert program.state in ("done", "cancelled")
