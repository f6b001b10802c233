"""What a function has returned decides where the large arrays of its next call are made."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from support.payloads import Call, call, spec

from daskbatch.memory import array_ranges
from daskbatch.memory.arena import Arena
from daskbatch.memory.host import host_id
from daskbatch.serialization import pickling
from daskbatch.worker.entry import run_block
from daskbatch.worker.execution import returned_arrays
from daskbatch.worker.execution.outcome import BlockResult, Status

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

COUNT = 200_000  # numbers of 8 bytes

#: What members keep, in this process.
KEPT: list[Any] = []


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    returned_arrays._known.clear()
    KEPT.clear()
    yield
    KEPT.clear()


@pytest.fixture
def copies(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list of how much was copied into the arena each time, which grows."""
    sizes: list[int] = []
    write = Arena.write

    def note(self: Arena, buffers: Any, given: Any) -> Any:
        sizes.append(sum(given))
        return write(self, buffers, given)

    monkeypatch.setattr(Arena, "write", note)
    return sizes


def run(*calls: Call, **changes: Any) -> BlockResult:
    """Run calls in one block."""
    return run_block(pickling.dumps(spec(*calls, share_limit=1 << 30, **changes)))


def values(result: BlockResult) -> list[Any]:
    assert set(result.statuses) == {Status.DONE}, result
    return [pickling.loads(value) for value in result.values]


def fill(number: float, count: int = COUNT) -> Any:
    return np.full(count, number)


def test_the_first_array_of_a_function_is_copied_and_the_next_ones_are_not(
    copies: list[int],
) -> None:
    found = values(run(*(call(fill, float(number)) for number in range(5))))
    assert [each[-1] for each in found] == list(range(5))
    assert copies == [COUNT * 8]
    # What was learned holds for other blocks of this process.
    found = values(run(call(fill, 7.0), call(fill, 8.0)))
    assert [each.sum() for each in found] == [7 * COUNT, 8 * COUNT]
    assert copies == [COUNT * 8]


def test_an_array_of_another_size_is_copied_once(copies: list[int]) -> None:
    sizes = [COUNT, COUNT, 5 * COUNT, COUNT, 5 * COUNT, 5 * COUNT, COUNT]
    found = values(run(*(call(fill, 1.0, size) for size in sizes)))
    assert [len(each) for each in found] == sizes
    assert copies == [COUNT * 8, 5 * COUNT * 8]


def test_small_arrays_teach_nothing(copies: list[int]) -> None:
    run(*(call(fill, 1.0, 20_000) for _ in range(3)))
    assert copies == [160_000] * 3
    assert not returned_arrays._known


def keep(number: float) -> Any:
    array = np.full(COUNT, number)
    KEPT.append(array)
    return array


def change_kept() -> None:
    for each in KEPT:
        each += 100


def test_what_a_function_keeps_is_copied_and_changes_nothing(copies: list[int]) -> None:
    calls = [call(keep, 1.0), call(keep, 2.0), call(keep, 3.0), call(change_kept)]
    found = values(run(*calls))
    assert [None if each is None else each.sum() / COUNT for each in found] == [1, 2, 3, None]
    assert len(copies) == 3
    assert [each[0] for each in KEPT] == [101, 102, 103]


def test_a_function_that_keeps_its_arrays_is_given_up() -> None:
    run(*(call(keep, 1.0) for _ in range(6)))
    assert array_ranges.has_ranges()
    KEPT.clear()
    array_ranges.collect()
    assert not array_ranges.has_ranges()
    run(call(keep, 1.0))
    assert not array_ranges.has_ranges()


CACHE: dict[str, Any] = {}


def cached() -> Any:
    """Return the same array each time, as functions with a cache do."""
    if "array" not in CACHE:
        CACHE["array"] = np.zeros(COUNT)
    CACHE["array"] += 1
    return CACHE["array"]


def test_an_array_that_a_function_caches_and_changes_is_copied_each_time() -> None:
    run(call(fill, 0.0))  # the arena exists
    key = returned_arrays.key_of(pickling.dumps(cached))
    expected = (returned_arrays._Expected(COUNT * 8),)
    returned_arrays._known[key] = returned_arrays._Known(expected)
    found = values(run(*(call(cached) for _ in range(4))))
    assert [each[0] for each in found] == [1, 2, 3, 4]
    CACHE.clear()


async def fill_later(number: float) -> Any:
    await asyncio.sleep(0)
    return np.full(COUNT, number)


def test_coroutines_make_arrays_in_place(copies: list[int]) -> None:
    found = values(run(*(call(fill_later, float(number)) for number in range(4))))
    assert [each[0] for each in found] == [0, 1, 2, 3]
    assert len(copies) == 1


def fail_while_arrays_are_freed(number: int) -> Any:
    array = np.full(COUNT, 1.0)
    if number == 2:
        return array + np.ones(COUNT + 1)
    if number == 3:
        with pytest.raises(ValueError, match="broadcast"):
            array + np.ones(COUNT + 1)
    return array


def test_errors_of_numpy_stay_what_they_are() -> None:
    result = run(*(call(fail_while_arrays_are_freed, number) for number in range(5)))
    done, failed = Status.DONE, Status.FAILED
    assert list(result.statuses) == [done, done, failed, done, done]
    assert result.values[2] is not None
    assert b"ValueError" in result.values[2]


def fail_with_arrays(number: float) -> Any:
    array = np.full(COUNT, number)
    if number == 2:
        raise ValueError(f"{array.sum():g}")
    return array


def test_a_call_that_fails_frees_its_arrays() -> None:
    result = run(*(call(fail_with_arrays, float(number)) for number in range(4)))
    assert list(result.statuses) == [Status.DONE, Status.DONE, Status.FAILED, Status.DONE]
    del result
    gc.collect()  # the traceback of the error
    array_ranges.collect()
    assert not array_ranges.has_ranges()


def test_an_error_of_a_value_that_cannot_be_sent_names_its_type() -> None:
    result = run(call(generator, 0), call(generator, 1))
    assert list(result.statuses) == [Status.DONE, Status.FAILED]
    value = result.values[1]
    assert value is not None
    assert b"generator" in value


def generator(number: int) -> Any:
    array = np.full(COUNT, 1.0)
    return (each for each in array) if number else array


MAKERS: dict[str, Callable[[int], Any]] = {
    "zeros": lambda number: np.zeros(COUNT) + number,
    "empty": lambda number: np.empty(COUNT),
    "concatenated": lambda number: np.concatenate([np.full(COUNT // 2, number)] * 2),
    "sorted": lambda number: np.sort(np.arange(COUNT)[::-1] * number),
    "matrix": lambda number: np.ones((400, 500)) @ np.full((500, 500), number),
    "fft": lambda number: np.fft.fft(np.full(COUNT, number)),
    "cumulated": lambda number: np.cumsum(np.full(COUNT, number)),
    "copy": lambda number: np.full(COUNT, number).copy(),
    "type": lambda number: np.full(COUNT, number).astype(float),
    "random": lambda number: np.random.default_rng(number).random(COUNT),
    "stacked": lambda number: np.vstack([np.full(COUNT, number)] * 3),
    "where": lambda number: np.where(np.arange(COUNT) % 2, number, 0),
    "loaded": lambda number: pickling.loads(pickling.dumps(np.full(COUNT, number))),
}


@pytest.mark.parametrize("name", MAKERS)
def test_arrays_have_the_numbers_that_they_have_without(name: str) -> None:
    make = MAKERS[name]
    found = values(run(*(call(make, number) for number in range(4))))
    for number, each in enumerate(found):
        expected = make(number)
        assert each.shape == expected.shape
        if name != "empty":
            np.testing.assert_array_equal(each, expected)


def test_only_so_many_functions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(returned_arrays, "_MAX_FUNCTIONS", 3)
    for name in list(MAKERS)[:6]:
        run(call(MAKERS[name], 1))
    assert len(returned_arrays._known) == 3
