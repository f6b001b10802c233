"""Tasks that are clients of their own Batch: while they wait, other tasks have their slot."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import LocalCluster
from support import clients
from support.waiting import read_pid, wait_for_file, wait_until

from daskbatch import Batch, TaskCancelled, TaskTimeout

ISOLATION = pytest.mark.parametrize("isolation", ["thread", "process"])


@pytest.fixture(scope="module")
def shared_slot() -> Iterator[Batch]:
    """A Batch with one worker of one slot."""
    batch = Batch(num_workers=1)
    yield batch
    batch.terminate()


@pytest.fixture
def slot(shared_slot: Batch) -> Iterator[Batch]:
    """The same Batch; after each test, the creator must be its only client."""
    yield shared_slot
    shared_slot.fence(timeout=60)
    wait_until(lambda: _clients(shared_slot) == 1)


def _clients(batch: Batch) -> int:
    def count(dask_scheduler: object) -> int:
        service = dask_scheduler.plugins["daskbatch-service"]  # type: ignore[attr-defined]
        return len(list(service._clients))

    return int(batch.client.run_on_scheduler(count))


@ISOLATION
def test_ten_levels_on_one_slot(slot: Batch, isolation: str) -> None:
    made = slot.options(isolation=isolation).function(clients.go_down, slot, 10, isolation)
    made.start()
    found = made.get(timeout=90)
    assert len(set(found)) == 11, "each is a client of its own"
    assert found == sorted(found)


def test_many_tasks_share_a_connection(slot: Batch) -> None:
    program = slot.compile([slot.function(clients.square, slot, number) for number in range(100)])
    program.run(timeout=60)
    values, numbers = zip(*program.get(), strict=True)
    assert values == tuple(number**2 for number in range(100))
    assert len(set(numbers)) == 100

    def connections(dask_scheduler: object) -> int:
        return len(dask_scheduler.clients)  # type: ignore[attr-defined]

    # The creator's, the worker's, perhaps one of a child; and what Dask keeps for itself.
    assert slot.client.run_on_scheduler(connections) < 16


def test_a_batch_that_a_function_knows_by_itself(slot: Batch) -> None:
    """The Batch is sent with the function, once to each worker, and not with each call."""

    def cube(number: int) -> int:
        task = slot.function(pow, number, 3)
        task.start()
        return task.get()

    program = slot.compile([slot.function(cube, number) for number in range(20)])
    program.run(timeout=60)
    assert program.get() == [number**3 for number in range(20)]


def test_what_is_behind_it_in_its_block_does_not_wait(tmp_path: Path) -> None:
    """The task that it waits for ends only when the one behind it has run on the other slot."""
    with dask.config.set({"daskbatch.block-budget": "60 s"}):
        batch = Batch(num_workers=2)
    try:
        for isolation in ("thread", "process"):
            make = batch.options(isolation=isolation).function
            waits = make(clients.wait_for_another, batch, tmp_path / isolation)
            behind = make(Path.touch, tmp_path / isolation)
            others = [make(len, "") for _ in range(40)]  # or they would have blocks of their own
            program = batch.compile([waits, behind, *others])
            program.run(timeout=30)
            assert waits.get() == isolation
    finally:
        batch.terminate()


@ISOLATION
def test_one_slot_is_one_task_that_computes(slot: Batch, tmp_path: Path, isolation: str) -> None:
    assert _meetings(slot, tmp_path, isolation) == 0


def _meetings(slot: Batch, directory: Path, isolation: str) -> int:
    make = slot.options(isolation=isolation).function
    program = slot.compile([make(clients.alone, slot, directory) for _ in range(8)])
    program.run(timeout=60)
    return sum(program.get())


def test_await(slot: Batch) -> None:
    task = slot.function(clients.await_two, slot)
    task.run(timeout=60)
    assert task.get() == [9, 16]


@ISOLATION
def test_threads_that_a_task_starts(slot: Batch, isolation: str) -> None:
    task = slot.options(isolation=isolation).function(clients.use_in_threads, slot)
    task.run(timeout=60)
    found, numbers = task.get()
    assert found == [0, 1, 4, 9]
    assert len(numbers) == 1, "they are the task's"


def test_what_stays_on_a_worker(slot: Batch) -> None:
    task = slot.function(clients.large, slot)
    task.run(timeout=60)
    assert task.get() == 300_000


@ISOLATION
def test_after_close(slot: Batch, isolation: str) -> None:
    task = slot.options(isolation=isolation).function(clients.use_after_close, slot)
    task.run(timeout=60)
    assert "has been closed" in task.get()
    assert not slot.closed


# -- a task is to what it has started what a with-block is ------------------------------


@ISOLATION
def test_it_is_over_when_all_is_that_it_has_started(
    slot: Batch, tmp_path: Path, isolation: str
) -> None:
    task = slot.options(isolation=isolation).function(
        clients.start_and_return, slot, tmp_path / "done"
    )
    task.start()
    # There is one slot: the first function has returned if the second one runs.
    wait_until((tmp_path / "done.begun").exists)
    with pytest.raises(TimeoutError):
        task.wait(timeout=0.3)
    (tmp_path / "done.go").touch()
    task.wait(timeout=60)
    assert task.get() == "returned"
    assert (tmp_path / "done").exists()


@ISOLATION
def test_if_it_fails_all_is_stopped(slot: Batch, tmp_path: Path, isolation: str) -> None:
    task = slot.options(isolation=isolation).function(
        clients.start_and_fail, slot, tmp_path / "task"
    )
    task.run(timeout=60)
    with pytest.raises(KeyError, match="mine"):
        task.get()
    assert (tmp_path / "task.stopped").exists(), "before it is over itself"


@ISOLATION
def test_if_it_is_cancelled_while_it_waits(slot: Batch, tmp_path: Path, isolation: str) -> None:
    task = slot.options(isolation=isolation).function(
        clients.start_and_wait, slot, tmp_path / "task"
    )
    task.start()
    wait_until((tmp_path / "task.begun").exists)
    assert task.cancel()
    task.wait(timeout=30)
    with pytest.raises(TaskCancelled):
        task.get()
    wait_until((tmp_path / "task.stopped").exists)
    assert _meetings(slot, tmp_path, isolation) == 0, "there are as many threads as before"


@ISOLATION
def test_if_its_time_is_up_while_it_waits(slot: Batch, tmp_path: Path, isolation: str) -> None:
    task = slot.options(isolation=isolation, timeout=8).function(
        clients.start_and_wait, slot, tmp_path / "task"
    )
    task.start()
    with pytest.raises(TaskTimeout):
        task.get(timeout=60)
    wait_until((tmp_path / "task.stopped").exists)


def test_a_timeout_is_kept_though_no_slot_is_free(slot: Batch, tmp_path: Path) -> None:
    """A task whose wait times out continues, even if another task has its slot."""

    def wait_in_vain(batch: Batch, path: Path) -> str:
        task = batch.function(wait_for_file, path / "go")
        task.start()
        try:
            task.get(timeout=0.5)
        except TimeoutError:
            (path / "go").touch()
            return "in vain"
        return "not in vain"

    task = slot.function(wait_in_vain, slot, tmp_path)
    task.run(timeout=30)
    assert task.get() == "in vain"


def test_its_worker_is_killed_while_it_waits(tmp_path: Path) -> None:
    with Batch(num_workers=2) as batch:
        task = batch.function(clients.wait_and_tell, batch, tmp_path)
        task.start()
        os.kill(read_pid(tmp_path / "waiting"), signal.SIGKILL)
        wait_until(lambda: len((tmp_path / "waiting").read_text().split()) == 2)
        (tmp_path / "go").touch()
        assert task.get(timeout=60) == "go", "it runs again, and so does what it starts"


def test_a_batch_that_a_task_makes(slot: Batch) -> None:
    task = slot.function(clients.make_another)
    task.run(timeout=60)
    assert task.get() == (0, 41, True)


def test_in_the_process_of_the_creator(tmp_path: Path) -> None:
    """In the creator's process, a task may use the creator's Batch object itself."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Batch(cluster) as batch,
    ):
        seen: list[tuple[int, bool]] = []
        _objects["batch"] = batch, seen
        before = batch.function(len, "four")
        before.start()
        task = batch.function(_use_object)
        task.run(timeout=30)
        assert task.get() == 8
        assert seen == [(1, True)]
        assert batch.client_id == 0
        assert not batch.closed
        assert before.get() == 4


_objects: dict[str, tuple[Batch, list[tuple[int, bool]]]] = {}


def _use_object() -> int:
    batch, seen = _objects["batch"]
    task = batch.function(pow, 2, 3)
    task.run()
    number = batch.client_id
    batch.close()
    seen.append((number, batch.closed))
    assert threading.current_thread() is not threading.main_thread()
    return int(task.get())
