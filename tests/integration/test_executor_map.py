"""`BatchPoolExecutor.map`: when calls are submitted, and the outcomes of calls in a chunk."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.waiting import wait_until

from daskbatch import Batch, BatchPoolExecutor, TaskCrashed, as_executor
from daskbatch.errors import LoadingError

SECONDS = 60


@pytest.fixture
def executor(batch: Batch) -> Iterator[BatchPoolExecutor]:
    with as_executor(batch) as made:
        yield made


# -- chunks -----------------------------------------------------------------------------------


class Reduced:
    """Calls a function when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.reduced = function, args

    def __reduce__(self) -> Any:
        return self.reduced


def until_it_raises(results: Iterable[Any]) -> tuple[list[Any], BaseException]:
    found = []
    with pytest.raises(BaseException) as caught:
        for result in results:
            found.append(result)
    return found, caught.value


@pytest.mark.parametrize("chunksize", [1, 3])
@pytest.mark.parametrize("reduced", [(int, "zz"), (sys.exit, 5)], ids=["ValueError", "SystemExit"])
def test_a_result_that_cannot_be_loaded_fails_alone(
    executor: BatchPoolExecutor, chunksize: int, reduced: Any
) -> None:
    results = executor.map(
        lambda n: Reduced(*reduced) if n == 2 else [n], range(1, 4), chunksize=chunksize
    )
    found, error = until_it_raises(results)
    assert found == [[1]]
    assert isinstance(error, LoadingError)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_sys_exit_is_the_same_in_a_chunk(executor: BatchPoolExecutor, chunksize: int) -> None:
    found, error = until_it_raises(executor.map(sys.exit, [3, 4], chunksize=chunksize))
    assert found == []
    assert isinstance(error, SystemExit)
    assert isinstance(error, TaskCrashed)
    assert error.code == 3


def test_objects_of_a_chunk_are_of_one_class(executor: BatchPoolExecutor) -> None:
    class Local:
        def __init__(self, number: int) -> None:
            self.number = number

    results = list(executor.map(Local, range(4), chunksize=2))
    assert [(type(each), each.number) for each in results] == [(Local, n) for n in range(4)]


@pytest.mark.parametrize("name", ["chunksize", "buffersize"])
def test_whole_numbers_of_all_kinds(executor: BatchPoolExecutor, name: str) -> None:
    assert list(executor.map(abs, range(5), **{name: np.int64(2)})) == list(range(5))
    with pytest.raises((TypeError, ValueError), match=name):
        executor.map(abs, range(5), **{name: 2.0})


# -- when calls are given ---------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"buffersize": 100}, {"chunksize": 2}])
def test_calls_are_given_while_the_iterable_waits(
    executor: BatchPoolExecutor, tmp_path: Path, settings: dict[str, int]
) -> None:
    def paths() -> Iterator[Path]:
        # It waits for what the last call, or chunk, does.
        for number in range(4 * settings.get("chunksize", 1)):
            if number % settings.get("chunksize", 1) == 0 and number:
                wait_until((tmp_path / str(number - 1)).exists)
            yield tmp_path / str(number)

    assert set(executor.map(Path.touch, paths(), **settings)) == {None}


def test_an_executor_that_ends_while_the_iterable_waits() -> None:
    began, ended = threading.Event(), threading.Event()

    def numbers() -> Iterator[int]:
        yield 1
        began.set()
        ended.wait(SECONDS)
        yield 2

    executor = BatchPoolExecutor(max_workers=1)
    raised: list[BaseException] = []

    def consume() -> None:
        try:
            executor.map(abs, numbers())
        except RuntimeError as error:
            raised.append(error)

    thread = threading.Thread(target=consume)
    thread.start()
    assert began.wait(SECONDS)
    executor.shutdown()
    ended.set()
    thread.join(SECONDS)
    assert len(raised) == 1


# -- in coroutines ----------------------------------------------------------------------------


async def double_all(batch: Batch, numbers: list[int]) -> list[int]:
    return [each async for each in as_executor(batch).async_map(lambda n: 2 * n, [numbers])]


def test_a_task_that_waits_for_a_map_gives_its_slot() -> None:
    batch = Batch(num_workers=1)
    try:
        task = batch.function(double_all, batch, [1, 2, 3])
        task.start()
        assert task.get(SECONDS) == [2, 4, 6]
    finally:
        batch.terminate()
