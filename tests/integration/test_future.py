"""A task that waits for a future of an executor releases its slot, in whatever way it waits."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import clients
from support.waiting import wait_for_file, wait_until

from daskbatch import Batch, TaskTimeout, as_executor

SECONDS = 60


@pytest.fixture(scope="module")
def shared_slot() -> Iterator[Batch]:
    """A Batch with one worker of one slot."""
    batch = Batch(num_workers=1)
    yield batch
    batch.terminate()


@pytest.fixture
def slot(shared_slot: Batch) -> Iterator[Batch]:
    yield shared_slot
    shared_slot.fence(timeout=SECONDS)


def by_result(batch: Batch) -> list[int]:
    return [as_executor(batch).submit(abs, -number).result() for number in range(3)]


def by_exception(batch: Batch) -> list[int]:
    futures = [as_executor(batch).submit(abs, -number) for number in range(3)]
    assert [future.exception() for future in futures] == [None] * 3
    return [future.result() for future in futures]


def by_shutdown(batch: Batch) -> list[int]:
    with as_executor(batch) as executor:
        futures = [executor.submit(abs, -number) for number in range(3)]
    assert all(future.done() for future in futures)
    return [future.result() for future in futures]


def by_wait(batch: Batch) -> list[int]:
    executor = as_executor(batch)
    futures = [executor.submit(abs, -number) for number in range(3)]
    concurrent.futures.wait(futures[:2], return_when=concurrent.futures.FIRST_COMPLETED)
    assert any(future.done() for future in futures[:2])
    assert concurrent.futures.wait(futures).not_done == set()
    return [future.result() for future in futures]


def by_as_completed(batch: Batch) -> list[int]:
    executor = as_executor(batch)
    futures = [executor.submit(abs, -number) for number in range(3)]
    return sorted(future.result() for future in concurrent.futures.as_completed(futures))


async def by_await(batch: Batch) -> list[int]:
    executor = as_executor(batch)
    return list(await asyncio.gather(*(executor.submit(abs, -number) for number in range(3))))


def in_a_thread(batch: Batch) -> list[int]:
    """Wait in a thread that the task has started, and that does not count as the task's."""
    batch.client_id  # noqa: B018 - the task becomes a client
    executor = as_executor(batch)
    futures = [executor.submit(abs, -number) for number in range(3)]
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.extend(each.result() for each in futures))
    thread.start()
    thread.join()
    return found


def deeper(batch: Batch) -> list[int]:
    with as_executor(batch) as executor:
        return list(executor.submit(by_result, batch).result())


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize(
    "how",
    [
        by_result,
        by_exception,
        by_shutdown,
        by_wait,
        by_as_completed,
        by_await,
        in_a_thread,
        deeper,
    ],
)
def test_a_task_that_waits_gives_up_its_slot(
    slot: Batch, how: Callable[[Batch], Any], isolation: str
) -> None:
    # Without it, the task waits for one that waits for its slot, until its time is up.
    task = slot.options(isolation=isolation, timeout=None).function(how, slot)
    task.start()
    try:
        assert task.get(timeout=20) == [0, 1, 2]
    finally:
        task.cancel()


def test_between_two_that_are_completed_the_slot_is_the_tasks(slot: Batch, tmp_path: Path) -> None:
    """The task has its slot while it uses a future from `as_completed`: nothing else runs then."""

    def look(batch: Batch, path: Path) -> int:
        executor = as_executor(batch)
        seen = 0
        for future in concurrent.futures.as_completed(
            [executor.submit(clients.alone, batch, path) for _ in range(4)]
        ):
            seen += future.result()
            seen += clients.alone(batch, path)
        return seen

    task = slot.function(look, slot, tmp_path)
    task.start()
    assert task.get(timeout=SECONDS) == 0


def test_a_task_can_be_stopped_while_it_waits(slot: Batch, tmp_path: Path) -> None:
    def wait_for_ever(batch: Batch, path: Path) -> None:
        executor = as_executor(batch)
        future = executor.submit(wait_for_file, path / "never")
        (path / "waits").touch()
        concurrent.futures.wait([future])

    task = slot.function(wait_for_ever, slot, tmp_path)
    task.start()
    wait_until((tmp_path / "waits").exists)
    assert task.cancel()
    task.wait(timeout=SECONDS)
    hasty = slot.options(timeout=0.5).function(wait_for_ever, slot, tmp_path)
    hasty.start()
    with pytest.raises(TaskTimeout):
        hasty.get(timeout=SECONDS)


def test_times_are_kept_while_a_task_waits(slot: Batch, tmp_path: Path) -> None:
    def wait_in_vain(batch: Batch, path: Path) -> list[str]:
        future = as_executor(batch).submit(wait_for_file, path / "go")
        said = []
        for wait in (
            lambda: future.result(0.1),
            lambda: future.exception(timeout=0),
            lambda: list(concurrent.futures.as_completed([future], 0.1)),
        ):
            try:
                wait()
            except TimeoutError:
                said.append("in vain")
        assert concurrent.futures.wait([future], timeout=0).not_done == {future}
        (path / "go").touch()
        return said

    task = slot.function(wait_in_vain, slot, tmp_path)
    task.start()
    assert task.get(timeout=SECONDS) == ["in vain"] * 3
