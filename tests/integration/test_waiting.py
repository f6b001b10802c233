"""Tasks that wait for a queue or a dictionary, and which task has the slot meanwhile."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import Empty

import pytest
from support.cluster_info import workers_of
from support.waiting import file_appears, touch, wait_for_file

from daskbatch import Batch, DDict, Queue

Start = Callable[..., Callable[[], object]]


@pytest.fixture(params=["batch", "dask"])
def start(batch: Batch, request: pytest.FixtureRequest) -> Start:
    """Start tasks on one slot, of a Batch or plain ones; returns a function for the result."""
    worker = min(workers_of(batch.client))

    def start(function: Callable[..., object], *args: object) -> Callable[[], object]:
        if request.param == "batch":
            task = batch.options(workers=[worker]).function(function, *args)
            task.start()
            return lambda: task.get(timeout=60)
        future = batch.client.submit(function, *args, workers=[worker], pure=False)
        return lambda: future.result(timeout=60)

    return start


def look(queue: Queue, timeout: float, d: DDict, begun: Path, go: Path, beside: Path) -> bool:
    """Look again and again for what is not there; return whether another task had the slot."""
    begun.touch()
    file_appears(go)
    for _ in range(20):
        with suppress(Empty):
            queue.get(timeout=timeout)
        with suppress(TimeoutError):
            d["a"]
    return beside.exists()


@pytest.mark.parametrize("timeout", [0.0, 0.001])
def test_who_only_looks_keeps_the_slot(
    batch: Batch, start: Start, tmp_path: Path, timeout: float
) -> None:
    begun, go, beside = (tmp_path / name for name in ("begun", "go", "beside"))
    d = batch.ddict(wait_for_keys=True, timeout=timeout)
    looked = start(look, batch.queue(), timeout, d, begun, go, beside)
    assert file_appears(begun)
    behind = start(touch, beside)
    time.sleep(0.2)  # so that it is likely to be in the queue by now
    go.touch()
    assert looked() is False
    behind()
    assert beside.exists()


def give_up(waited_for: Queue | DDict, begun: Path) -> None:
    """Wait for something that never comes, more than once."""
    begun.touch()
    for _ in range(2):
        with pytest.raises((Empty, TimeoutError)):
            if isinstance(waited_for, Queue):
                waited_for.get(timeout=0.3)
            else:
                waited_for["a"]


def alone(directory: Path) -> None:
    """Be the only one that has the slot."""
    (directory / "taken").mkdir()
    time.sleep(0.02)
    (directory / "taken").rmdir()


@pytest.mark.parametrize("kind", ["queue", "ddict"])
def test_a_timeout_is_kept_while_another_task_has_the_slot(
    batch: Batch, start: Start, tmp_path: Path, kind: str
) -> None:
    waited_for = batch.queue() if kind == "queue" else batch.ddict(wait_for_keys=True, timeout=0.3)
    begun, over = tmp_path / "begun", tmp_path / "over"
    giving_up = start(give_up, waited_for, begun)
    assert file_appears(begun)  # else Dask may prefer the task that it has received last
    beside = start(wait_for_file, over)
    try:
        giving_up()
    finally:
        over.touch()
    beside()
    # There are as many slots as before.
    for done in [start(alone, tmp_path) for _ in range(5)]:
        done()
