"""Values leave a worker's memory as soon as nothing refers to their tasks any longer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from daskbatch import Batch
from daskbatch.memory.host import host_id
from tests.support.batch_holder import held_by_workers
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

#: 200 KB: they are stored, and not sent.
COUNT = 25_000


def make(number: int) -> Any:
    return np.full(COUNT, float(number))


def last(*arrays: Any) -> float:
    return float(sum(array[-1] for array in arrays))


def without_collector() -> None:
    gc.collect()
    gc.disable()


@pytest.fixture
def uncollected(batch: Batch) -> Iterator[None]:
    """Without Python's search for cycles of objects, here and in the workers."""
    batch.client.run(without_collector)
    without_collector()
    yield
    gc.enable()
    batch.client.run(gc.enable)


@pytest.mark.usefixtures("uncollected")
def test_values_of_planned_blocks(batch: Batch) -> None:
    wait_until(lambda: held_by_workers(batch) == 0)
    for _ in range(3):
        tasks = [batch.function(make, number) for number in range(5)]
        total = batch.function(last, *tasks)
        batch.compile([*tasks, total]).run()
        assert total.get() == 10.0
    assert held_by_workers(batch) >= 5
    del tasks, total
    wait_until(lambda: held_by_workers(batch) == 0)


def feed(batch: Batch, count: int) -> list[Any]:
    """Run a fine-grained program, and return the tasks that make values."""
    makers = [
        batch.function(make, number, writes=batch.write("/d", str(number)))
        for number in range(count)
    ]
    readers = [
        batch.function(
            abs,
            -number,
            reads=[batch.read("/d", str(number)), batch.read("/d", str((number + 1) % count))],
        )
        for number in range(count)
    ]
    batch.compile([*makers, *readers]).run(check=True)
    return makers


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_values_of_single_calls(batch: Batch, isolation: str) -> None:
    wait_until(lambda: held_by_workers(batch) == 0)
    for _ in range(3):
        factory = batch.options(isolation=isolation)
        tasks = [factory.function(make, number) for number in range(5)]
        for task in tasks:
            batch.compile([task]).run()
        assert tasks[-1].get()[0] == 4.0
    assert held_by_workers(batch) >= 5
    del tasks, task
    wait_until(lambda: held_by_workers(batch) == 0)


@pytest.mark.usefixtures("uncollected")
def test_values_of_blocks_that_stay_open(batch: Batch) -> None:
    """A block that takes more tasks keeps the values of earlier ones only while they are needed."""
    wait_until(lambda: held_by_workers(batch) == 0)
    feed(batch, 20)
    kept = feed(batch, 20)[::2]
    for _ in range(5):
        feed(batch, 20)
    assert [task.get()[-1] for task in kept] == list(range(0, 20, 2))
    del kept
    wait_until(lambda: held_by_workers(batch) == 0)
