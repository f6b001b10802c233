"""What becomes of tasks when Dask forgets, refuses or cancels their keys: on real clusters."""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.waiting import wait_until

from daskbatch import Batch, DependencyFailed, TaskCancelled
from daskbatch.batch.task import Task

#: A value of this size stays on its worker. Bytes.
LARGE = 200_000

TIMEOUT_SECONDS = 60.0


def note(root: Path, name: str) -> None:
    """Record that a task runs."""
    file = os.open(root / f"{name}.runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, b"x")
    os.close(file)


def runs(root: Path, name: str) -> int:
    """Return how often a task has begun."""
    path = root / f"{name}.runs"
    return path.stat().st_size if path.exists() else 0


def large(root: Path, name: str) -> str:
    note(root, name)
    return name.ljust(LARGE)


def write(root: Path, name: str) -> str:
    (root / "data").write_text(name)
    return large(root, name)


def read(root: Path, name: str, *_: Any) -> str:
    note(root, name)
    return (root / "data").read_text()


def gate(root: Path, name: str) -> str:
    note(root, name)
    wait_until((root / f"{name}.go").exists, name)
    return name


def key_of(task: Task) -> Any:
    block = task._record.block
    assert block is not None
    return block.key


def is_in_memory(dask_scheduler: Any, key: Any) -> bool:
    """Return whether Dask knows that a key is over: the client learns of its tasks before that."""
    state = dask_scheduler.tasks.get(key)
    return state is not None and state.state == "memory"


def forget(dask_scheduler: Any, key: Any) -> bool:
    """Have Dask's scheduler forget a finished key, and notify nobody."""
    for client in list(dask_scheduler.tasks[key].who_wants):
        dask_scheduler.client_releases_keys(keys=[key], client=client.client_key)
    return key in dask_scheduler.tasks


def cancel(dask_scheduler: Any, key: Any) -> None:
    """Cancel a key for all clients, as `Client.cancel(..., force=True)` of another client does."""
    (client,) = dask_scheduler.tasks[key].who_wants
    dask_scheduler.stimulus_cancel([key], client.client_key, True, "on purpose", "")


def on_scheduler(batch: Batch, function: Callable[..., Any], task: Task) -> Any:
    return batch.client.run_on_scheduler(partial(function, key=key_of(task)))


def test_a_key_that_the_scheduler_has_forgotten_is_computed_again(
    batch: Batch, tmp_path: Path
) -> None:
    """Dask refuses the whole graph of the two consumers then ("lost dependencies")."""
    producer = batch.function(large, tmp_path, "producer")
    producer.run(timeout=TIMEOUT_SECONDS)
    wait_until(lambda: on_scheduler(batch, is_in_memory, producer))
    assert not on_scheduler(batch, forget, producer)
    argument = np.ones(LARGE)
    taker = batch.function(len, producer.result)
    other = batch.function(np.sum, argument)
    after = batch.function(len, [other.result, taker.result])
    batch.compile([taker, other, after]).run(timeout=TIMEOUT_SECONDS)
    assert (taker.get(), other.get(), after.get()) == (LARGE, LARGE, 2)
    assert runs(tmp_path, "producer") == 2
    # What it was refused with is there now.
    again = batch.function(np.sum, argument)
    again.run(timeout=TIMEOUT_SECONDS)
    assert again.get() == LARGE
    assert producer.get(timeout=TIMEOUT_SECONDS) == "producer".ljust(LARGE)


def test_a_forgotten_value_that_is_fetched_is_computed_again(batch: Batch, tmp_path: Path) -> None:
    producer = batch.function(large, tmp_path, "producer")
    producer.run(timeout=TIMEOUT_SECONDS)
    wait_until(partial(on_scheduler, batch, is_in_memory, producer))
    assert not on_scheduler(batch, forget, producer)
    # The worker has freed it once it has run something else.
    batch.function(len, "abc").run(timeout=TIMEOUT_SECONDS)
    assert producer.get(timeout=TIMEOUT_SECONDS) == "producer".ljust(LARGE)
    # Nothing that Dask keeps of the failure refers to the task, once its second key is over, too.
    record = weakref.ref(producer._record)
    del producer

    def is_gone() -> bool:
        gc.collect()
        return record() is None

    wait_until(is_gone)


def test_a_forgotten_writer_does_not_run_again(batch: Batch, tmp_path: Path) -> None:
    """Its value is lost. What only comes after it in the order of the program runs."""
    access = batch.write(tmp_path, "data")
    writer = batch.function(write, tmp_path, "writer", writes=access, name="writer")
    writer.run(timeout=TIMEOUT_SECONDS)
    wait_until(lambda: on_scheduler(batch, is_in_memory, writer))
    assert not on_scheduler(batch, forget, writer)
    taker = batch.function(len, writer.result)
    reader = batch.function(read, tmp_path, "reader", reads=batch.read(tmp_path, "data"))
    batch.compile([taker, reader]).run(timeout=TIMEOUT_SECONDS)
    with pytest.raises(DependencyFailed) as caught:
        taker.get()
    assert caught.value.root == "writer"
    assert reader.get() == "writer"
    assert runs(tmp_path, "writer") == 1


def test_a_key_that_a_client_cancels_takes_its_own_tasks_only(
    batch: Batch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    writes = batch.write(tmp_path, "data")
    options = batch.options(isolation="process", writes=writes, name="running")
    running = options.function(gate, tmp_path, "running")
    taker = batch.function(len, running.result)
    after = batch.function(write, tmp_path, "after", writes=writes)
    batch.compile([running, taker]).start()
    try:
        wait_until(lambda: runs(tmp_path, "running") == 1)
        on_scheduler(batch, cancel, running)
        with pytest.raises(TaskCancelled, match="'running' was cancelled"):
            running.get(timeout=TIMEOUT_SECONDS)
        assert "a Dask client has cancelled it (on purpose): task 'running'" in caplog.text
        with pytest.raises(DependencyFailed):
            taker.get(timeout=TIMEOUT_SECONDS)
        after.run(timeout=TIMEOUT_SECONDS)
        assert after.get(timeout=TIMEOUT_SECONDS) == "after".ljust(LARGE)
    finally:
        (tmp_path / "running.go").touch()
