"""Our executor passes the tests of Hail's `BatchPoolExecutor`, rewritten by behaviour.

Where these differ from `concurrent.futures`, we follow the latter: `exception()` returns the
exception and does not raise it, and an exception keeps its type. Hail's tests of container images
have no counterpart.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from functools import partial

import psutil
import pytest
from support.waiting import wait_until

from daskbatch import Batch, BatchPoolExecutor

Make = Callable[..., BatchPoolExecutor]


@pytest.fixture
def make(batch: Batch) -> Iterator[Make]:
    """Makes executors on the shared cluster; at the end, no call of them runs there."""
    yield partial(BatchPoolExecutor, cluster=batch.client)
    wait_until(lambda: not any(batch.client.processing().values()), "a call still runs")


def sleep_forever() -> None:
    while True:
        time.sleep(0.01)


def fail() -> None:
    raise ValueError("dead")


# -- map ----------------------------------------------------------------------------------


def test_simple_map(make: Make) -> None:
    with make() as pool:
        assert list(pool.map(lambda x: x * 3, range(4))) == [0, 3, 6, 9]


def test_empty_map(make: Make) -> None:
    with make() as pool:
        assert list(pool.map(lambda x: x * 3, [])) == []
        assert list(pool.map(lambda: 3)) == []


@pytest.mark.parametrize("chunksize", [1, 5, 7, 100])
def test_map_chunksize(make: Make, chunksize: int) -> None:
    rows, columns = zip(*[(row, column) for row in range(5) for column in range(5)], strict=True)
    with make() as pool:
        products = pool.map(lambda x, y: x * y, rows, columns, chunksize=chunksize)
        assert list(products) == [row * column for row in range(5) for column in range(5)]


def test_map_takes_the_shortest_of_its_iterables(make: Make) -> None:
    with make() as pool:
        assert list(pool.map(pow, [1, 2, 3], [2, 2], chunksize=2)) == [1, 4]


def test_map_timeout(make: Make) -> None:
    with make() as pool, pytest.raises(TimeoutError):
        list(pool.map(lambda _: sleep_forever(), range(5), timeout=0.3))
    # The block has ended: what was not over has been cancelled.


def test_map_error_without_wait_no_error(make: Make) -> None:
    with make(wait_on_exit=False) as pool:
        results = pool.map(lambda _: sleep_forever(), range(5), timeout=0.1)
    with pytest.raises(TimeoutError):
        next(results)


def test_exception_in_map(make: Make) -> None:
    with make() as pool:
        results = pool.map(lambda _: fail(), range(5))
        with pytest.raises(ValueError, match="^dead$"):
            next(results)


# -- submit -------------------------------------------------------------------------------


def test_simple_submit_result(make: Make) -> None:
    with make() as pool:
        future = pool.submit(lambda: 7 * 3)
    assert future.result() == 21


def test_the_function_s_keywords_are_its_own(make: Make) -> None:
    with make() as pool:
        future = pool.submit(lambda **given: given, fn=1, self=2, unapplied=3, key=4)
    assert future.result() == {"fn": 1, "self": 2, "unapplied": 3, "key": 4}


def test_result_with_timeout(make: Make) -> None:
    with make() as pool:
        future = pool.submit(sleep_forever)
        with pytest.raises(TimeoutError):
            future.result(timeout=0.1)
        assert future.cancel()


def test_call_result_after_timeout(make: Make) -> None:
    with make() as pool:
        future = pool.submit(sleep_forever)
        for _ in range(2):
            with pytest.raises(TimeoutError):
                future.result(timeout=0.1)
        assert future.cancel()


def test_exception_in_result(make: Make) -> None:
    with make() as pool:
        future = pool.submit(fail)
        with pytest.raises(ValueError, match="^dead$") as caught:
            future.result()
    assert "ValueError: dead" in str(caught.value.__cause__)


def test_exception_in_exception(make: Make) -> None:
    with make() as pool:
        error = pool.submit(fail).exception()
    assert isinstance(error, ValueError)
    assert error.args == ("dead",)


def test_no_exception_when_exiting_context(make: Make) -> None:
    with make() as pool:
        future = pool.submit(fail)
    assert isinstance(future.exception(timeout=0), ValueError)


# -- coroutine functions ------------------------------------------------------------------


def test_basic_async_fun(make: Make) -> None:
    with make() as pool:
        assert pool.submit(asyncio.sleep, 0.01).result() is None


def test_async_fun_returns_value(make: Make) -> None:
    async def multiply(i: int, j: int) -> int:
        await asyncio.sleep(0)
        return i * j

    with make() as pool:
        assert pool.submit(multiply, 2, 3).result() == 6
        assert list(pool.map(multiply, range(3), range(3))) == [0, 1, 4]


# -- cancelling ---------------------------------------------------------------------------


def test_cancel_future(make: Make) -> None:
    with make() as pool:
        future = pool.submit(sleep_forever)
        assert future.cancel()
        assert future.cancelled()


def test_cancel_future_that_runs(make: Make) -> None:
    with make() as pool:
        future = pool.submit(sleep_forever)
        while not future.running():
            assert not future.done()
        assert future.cancel()
        assert future.cancelled()
        assert not future.running()


def test_cancel_future_that_is_over(make: Make) -> None:
    with make() as pool:
        done, failed = pool.submit(abs, -1), pool.submit(fail)
    assert not done.cancel()
    assert not failed.cancel()
    assert not done.cancelled()


def test_cancel_future_after_shutdown_no_wait(make: Make) -> None:
    pool = make()
    future = pool.submit(sleep_forever)
    pool.shutdown(wait=False)
    assert future.cancel()
    assert future.cancelled()


def test_cancel_future_after_exit_no_wait_on_exit(make: Make) -> None:
    with make(wait_on_exit=False) as pool:
        future = pool.submit(sleep_forever)
    assert future.cancel()
    assert future.cancelled()


# -- the end ------------------------------------------------------------------------------


def test_calls_after_the_end_are_refused(make: Make) -> None:
    with make() as pool:
        pass
    for give in (lambda: pool.submit(abs, 1), lambda: pool.map(abs, [1])):
        with pytest.raises(RuntimeError, match="shutdown"):
            give()


def test_nothing_is_waited_for_nor_left_of_a_cancelled_call() -> None:
    me = psutil.Process()
    before = set(me.children(recursive=True))
    with BatchPoolExecutor(max_workers=1) as pool:
        # C code, which nothing but the end of its process stops.
        # If it were waited for, the test would hang.
        future = pool.submit(time.sleep, 600)
        while not future.running():
            assert not future.done()
        assert future.cancel()
    assert set(me.children(recursive=True)) <= before


@pytest.mark.parametrize(
    ("cpus", "threads"), [("0.25", 1), ("500m", 1), (1, 1), ("1.5", 1), (2, 2), ("2500m", 2)]
)
def test_libraries_are_held_to_their_cores(cpus: int | str, threads: int) -> None:
    names = ["OMP", "OPENBLAS", "MKL"]
    variables = [f"{name}_NUM_THREADS" for name in names]
    variables += ["VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS"]
    with BatchPoolExecutor(max_workers=1, cpus_per_job=cpus) as pool:
        assert list(pool.map(os.getenv, variables)) == [str(threads)] * 5
