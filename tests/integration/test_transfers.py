"""Between workers only the values that arguments need are moved."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from support.cluster_info import workers_of

from daskbatch import Batch
from daskbatch.cluster.open_links import OpenLinks

COUNT = 20
ARRAY = 8_000_000

#: Room for what tells that tasks are over: a hundredth of one array for each producer.
NOTHING = COUNT * ARRAY // 100


@pytest.fixture(scope="module")
def batch() -> Iterator[Batch]:
    """Two workers that only these tests use."""
    with Batch(num_workers=2) as batch:
        yield batch


def produce(number: int) -> np.ndarray:
    return np.full(ARRAY // 8, float(number))


def note(number: int) -> int:
    return number


def total(array: np.ndarray) -> float:
    return float(array.sum())


def outgoing(dask_worker: Any) -> int:
    return int(dask_worker.transfer_outgoing_bytes_total)


def moved(batch: Batch) -> int:
    """Return the bytes of values that workers have sent to other workers or to the client."""
    return sum(batch.client.run(outgoing).values())


def addresses(batch: Batch) -> list[str]:
    return sorted(workers_of(batch.client))


def test_order_alone_moves_no_array(batch: Batch) -> None:
    makers = [
        batch.function(produce, number, writes=[batch.write("/data", f"{number}")])
        for number in range(COUNT)
    ]
    followers = [
        batch.function(
            note,
            number,
            reads=[batch.read("/data", f"{number}")],
            writes=[batch.write("/data", f"{number}")],
        )
        for number in range(COUNT)
    ]
    before = moved(batch)
    program = batch.compile(makers + followers)
    program.run(timeout=100)
    assert [task.get() for task in followers] == list(range(COUNT))
    assert moved(batch) - before < NOTHING
    assert makers[-1].get(timeout=60)[0] == COUNT - 1, "the values are there when asked for"
    assert moved(batch) - before < NOTHING, "and a process of the same host maps them"


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_nor_does_it_where_what_follows_must_run_elsewhere(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, seconds: float
) -> None:
    notify = OpenLinks._notify

    def notify_late(links: OpenLinks, method: str, *arguments: Any) -> None:
        if method == "report_all":
            time.sleep(seconds)  # the key may be over before its outcomes are reported
        notify(links, method, *arguments)

    monkeypatch.setattr(OpenLinks, "_notify", notify_late)
    here, there = addresses(batch)
    makers = [
        batch.options(workers=here, writes=[batch.write("/data", f"{number}")]).function(
            produce, number
        )
        for number in range(COUNT)
    ]
    followers = [
        batch.options(workers=there, reads=[batch.read("/data", f"{number}")]).function(
            note, number
        )
        for number in range(COUNT)
    ]
    before = moved(batch)
    batch.compile(makers + followers).run(timeout=100)
    assert [task.get() for task in followers] == list(range(COUNT))
    assert moved(batch) - before < NOTHING


def test_order_within_many_to_many_moves_no_array(batch: Batch) -> None:
    makers = [
        batch.function(produce, number, writes=[batch.write("/data", f"{number}")])
        for number in range(COUNT)
    ]
    followers = [batch.function(note, n, reads=[batch.read("/data")]) for n in range(COUNT)]
    before = moved(batch)
    batch.compile(makers + followers).run(timeout=100)
    assert [task.get() for task in followers] == list(range(COUNT))
    assert moved(batch) - before < NOTHING


def test_an_argument_moves_to_where_it_is_needed(batch: Batch) -> None:
    here, there = addresses(batch)
    array = batch.options(workers=here).function(produce, 2)
    taker = batch.options(workers=there).function(total, array)
    before = moved(batch)
    batch.compile([array, taker]).run(timeout=100)
    assert taker.get() == 2.0 * (ARRAY // 8)
    assert ARRAY <= moved(batch) - before < 2 * ARRAY


def test_an_argument_does_not_move_where_it_need_not(batch: Batch) -> None:
    here, _ = addresses(batch)
    array = batch.options(workers=here).function(produce, 3)
    takers = [batch.options(workers=here).function(total, array) for _ in range(3)]
    before = moved(batch)
    batch.compile([array, *takers]).run(timeout=100)
    assert {taker.get() for taker in takers} == {3.0 * (ARRAY // 8)}
    assert moved(batch) - before < NOTHING
