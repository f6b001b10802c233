"""Programs and libraries that use an executor work with a BatchPoolExecutor, unchanged."""

from __future__ import annotations

import asyncio
import io
import os
import runpy
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    CancelledError,
    Future,
    ThreadPoolExecutor,
    as_completed,
    wait,
)
from pathlib import Path
from typing import Any

import adaptive
import dask
import dask.array as da
import dask.bag as db
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config
from scipy.optimize import brute, differential_evolution, rosen
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from support.paths import EXAMPLES
from support.waiting import touch_and_spin, wait_for_file, wait_until
from tqdm import tqdm

from daskbatch import Batch, BatchPoolExecutor

WORKERS = 2


@pytest.fixture(scope="module")
def pool() -> Iterator[BatchPoolExecutor]:
    with BatchPoolExecutor(max_workers=WORKERS) as found:
        yield found


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """A file that calls may wait for; the fixture makes it at the end, so that no call hangs."""
    yield tmp_path / "open"
    (tmp_path / "open").touch()


@pytest.fixture
def busy(pool: BatchPoolExecutor, gate: Path) -> Iterator[list[Future[str]]]:
    """Calls that keep all workers busy until the gate is open."""
    calls = [pool.submit(wait_for_file, gate) for _ in range(WORKERS)]
    wait_until(lambda: all(each.running() for each in calls))
    yield calls
    gate.touch()
    assert [each.result(30) for each in calls] == [gate.name] * WORKERS


# -- asyncio ------------------------------------------------------------------------------


def test_asyncio_runs_calls_in_it(pool: BatchPoolExecutor) -> None:
    async def main() -> list[Any]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(pool, pow, n, 2) for n in range(5)]
        return [await loop.run_in_executor(pool, os.getpid), *await asyncio.gather(*calls)]

    pid, *squares = asyncio.run(main())
    assert squares == [0, 1, 4, 9, 16]
    assert pid != os.getpid()


def test_asyncio_raises_what_the_call_raises(pool: BatchPoolExecutor) -> None:
    async def main() -> None:
        await asyncio.get_running_loop().run_in_executor(pool, divmod, 1, 0)

    with pytest.raises(ZeroDivisionError):
        asyncio.run(main())


def test_asyncio_wraps_a_future(pool: BatchPoolExecutor) -> None:
    async def main() -> tuple[set[int], int]:
        futures = [asyncio.wrap_future(pool.submit(abs, -n)) for n in range(5)]
        done, _ = await asyncio.wait(futures)
        return {future.result() for future in done}, len(done)

    assert asyncio.run(main()) == ({0, 1, 2, 3, 4}, 5)


def test_futures_are_awaitable_themselves(pool: BatchPoolExecutor) -> None:
    async def main() -> tuple[int, int, BaseException]:
        failing = pool.submit(divmod, 1, 0)
        try:
            await failing
        except ZeroDivisionError as error:
            caught = error
        submitted = await pool.async_submit(pow, 2, 10)
        assert isinstance(submitted, Future)
        return await pool.submit(pow, 2, 8), await submitted, caught

    assert asyncio.run(main())[:2] == (256, 1024)


def test_async_map_yields_in_order(pool: BatchPoolExecutor) -> None:
    async def main() -> list[int]:
        return [each async for each in pool.async_map(pow, [range(20), [2] * 20])]

    assert asyncio.run(main()) == [n**2 for n in range(20)]


def test_the_loop_goes_on_while_a_call_is_awaited(pool: BatchPoolExecutor, tmp_path: Path) -> None:
    async def main() -> str:
        call = asyncio.ensure_future(
            asyncio.wrap_future(pool.submit(wait_for_file, tmp_path / "now"))
        )
        await asyncio.sleep(0)
        (tmp_path / "now").touch()
        return await call

    assert asyncio.run(main()) == "now"


def test_a_timeout_of_asyncio_cancels_what_has_not_begun(
    pool: BatchPoolExecutor, busy: list[Future[str]], gate: Path, tmp_path: Path
) -> None:
    waiting = pool.submit((tmp_path / "ran").touch)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(waiting), 0.05)

    asyncio.run(main())
    assert waiting.cancelled()
    gate.touch()
    wait(busy, timeout=30)
    assert list(pool.map(abs, range(20), timeout=30)) == list(range(20))
    assert not (tmp_path / "ran").exists()


def test_a_timeout_of_asyncio_stops_what_runs(pool: BatchPoolExecutor, tmp_path: Path) -> None:
    running = [pool.submit(touch_and_spin, tmp_path / str(n)) for n in range(WORKERS)]
    for n in range(WORKERS):
        wait_for_file(tmp_path / str(n))

    async def main() -> None:
        for each in running:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.wrap_future(each), 0.05)

    asyncio.run(main())
    assert all(each.cancelled() for each in running)
    # All workers are free again.
    assert list(pool.map(abs, range(-20, 0), timeout=30)) == list(range(20, 0, -1))


@pytest.mark.usefixtures("busy")
def test_cancelling_an_awaited_future_cancels_the_call(pool: BatchPoolExecutor) -> None:
    waiting = pool.submit(abs, -1)

    async def await_it() -> int:
        return await waiting

    async def main() -> None:
        awaiting = asyncio.create_task(await_it())
        await asyncio.sleep(0)
        awaiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await awaiting

    asyncio.run(main())
    assert waiting.cancelled()
    with pytest.raises(CancelledError):
        waiting.result(30)


def test_a_task_group_may_hold_calls(pool: BatchPoolExecutor) -> None:
    async def call(n: int) -> int:
        return await pool.submit(abs, -n)

    async def main() -> list[int]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call(n)) for n in range(10)]
        return [task.result() for task in tasks]

    assert asyncio.run(main()) == list(range(10))


def test_it_may_be_the_default_executor_of_threads_that_submit(pool: BatchPoolExecutor) -> None:
    async def main() -> list[int]:
        threads = [asyncio.to_thread(lambda n=n: pool.submit(abs, -n).result()) for n in range(8)]
        return await asyncio.gather(*threads)

    assert asyncio.run(main()) == list(range(8))


# -- concurrent.futures -------------------------------------------------------------------


def test_wait_takes_futures_of_threads_too(pool: BatchPoolExecutor, gate: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        late = pool.submit(wait_for_file, gate)
        early = threads.submit(abs, -1)
        done, left = wait([late, early], timeout=30, return_when=FIRST_COMPLETED)
        assert (done, left) == ({early}, {late})
        failing = pool.submit(divmod, 1, 0)
        done, left = wait([late, failing], timeout=30, return_when=FIRST_EXCEPTION)
        assert (done, left) == ({failing}, {late})
        gate.touch()
        done, left = wait([late, early, failing], timeout=30)
        assert not left


def test_as_completed_takes_futures_of_threads_too(pool: BatchPoolExecutor, tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as threads:
        first, second, third = (tmp_path / name for name in ("first", "second", "third"))
        futures = {
            pool.submit(wait_for_file, third),
            threads.submit(wait_for_file, second),
            pool.submit(wait_for_file, first),
        }
        came = []
        first.touch()
        for future in as_completed(futures, timeout=30):
            came.append(future.result())
            for path in (second, third)[: len(came)]:
                path.touch()
    assert came == ["first", "second", "third"]


def test_a_callback_may_submit(pool: BatchPoolExecutor) -> None:
    last: Future[int] = Future()

    def go_on(future: Future[int]) -> None:
        if future.result() < 10:
            pool.submit(lambda n: n + 1, future.result()).add_done_callback(go_on)
        else:
            last.set_result(future.result())

    pool.submit(int).add_done_callback(go_on)
    assert last.result(30) == 10


# -- SciPy --------------------------------------------------------------------------------


def test_scipy_evolves_as_alone(pool: BatchPoolExecutor) -> None:
    def minimize(workers: Any) -> Any:
        return differential_evolution(
            rosen, [(0, 2)] * 2, workers=workers, updating="deferred", rng=7, maxiter=20
        )

    alone, parallel = minimize(1), minimize(pool.map)
    assert np.array_equal(parallel.x, alone.x)
    assert (parallel.fun, parallel.nit, parallel.nfev) == (alone.fun, alone.nit, alone.nfev)


def test_scipy_searches_a_grid_as_alone(pool: BatchPoolExecutor) -> None:
    grid = [slice(-2, 2, 0.5)] * 2
    assert np.array_equal(
        brute(rosen, grid, workers=pool.map, finish=None), brute(rosen, grid, finish=None)
    )


# -- Adaptive -----------------------------------------------------------------------------


def peak(x: float) -> float:
    return x + 1e-4 / (1e-4 + (x - 0.3) ** 2)


def test_adaptive_blocks_on_it(pool: BatchPoolExecutor) -> None:
    learner = adaptive.Learner1D(peak, bounds=(-1, 1))
    adaptive.BlockingRunner(learner, npoints_goal=40, executor=pool, ntasks=WORKERS)
    assert learner.npoints >= 40
    assert all(y == peak(x) for x, y in learner.data.items())
    # The Runner leaves an executor that it was given.
    assert pool.submit(abs, -1).result(30) == 1


def test_adaptive_runs_beside_a_loop(pool: BatchPoolExecutor) -> None:
    async def main() -> str:
        runner = adaptive.AsyncRunner(
            learner, goal=lambda it: it.npoints >= 40, executor=pool, ntasks=WORKERS
        )
        await runner.task
        return runner.status()

    learner = adaptive.Learner1D(peak, bounds=(-1, 1))
    assert asyncio.run(main()) == "finished"
    assert all(y == peak(x) for x, y in learner.data.items())


def test_adaptive_says_what_failed(pool: BatchPoolExecutor) -> None:
    learner = adaptive.Learner1D(lambda x: 1 / int(x), bounds=(-1, 1))
    # With the line of the function, which only the remote traceback has.
    with pytest.raises(RuntimeError, match=r"1 / int\(x\)") as caught:
        adaptive.BlockingRunner(learner, npoints_goal=9, executor=pool, ntasks=WORKERS)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


# -- Dask's collections -------------------------------------------------------------------


def test_dask_computes_on_it(pool: BatchPoolExecutor) -> None:
    pids = dask.compute([dask.delayed(os.getpid, pure=False)() for _ in range(4)], scheduler=pool)
    assert os.getpid() not in pids[0]
    total = dask.delayed(sum)([dask.delayed(pow)(n, 2) for n in range(10)])
    assert dask.compute(total, scheduler=pool) == (285,)


def test_dask_reads_how_many_workers_it_has(pool: BatchPoolExecutor) -> None:
    assert pool._max_workers == WORKERS


def test_dask_arrays_and_bags_are_computed_on_it(pool: BatchPoolExecutor) -> None:
    with dask.config.set(scheduler=pool):
        grid = da.ones((400, 400), chunks=100)
        assert float((grid + grid.T).sum().compute()) == 2 * 400 * 400
        words = db.from_sequence(["a b", "b c", "c d"], npartitions=3)
        counts = words.map(str.split).flatten().frequencies().compute()
    assert sorted(counts) == [("a", 1), ("b", 2), ("c", 2), ("d", 1)]


def test_dask_raises_what_a_task_raises(pool: BatchPoolExecutor) -> None:
    with pytest.raises(ZeroDivisionError):
        dask.delayed(divmod)(1, 0).compute(scheduler=pool)


# -- tqdm ---------------------------------------------------------------------------------


def test_tqdm_shows_a_map(pool: BatchPoolExecutor) -> None:
    bar = io.StringIO()
    results = list(tqdm(pool.map(abs, range(-30, 0)), total=30, file=bar))
    assert results == list(range(30, 0, -1))
    assert "30/30" in bar.getvalue()


def test_tqdm_shows_futures_as_they_come(pool: BatchPoolExecutor) -> None:
    bar = io.StringIO()
    futures = [pool.submit(abs, -n) for n in range(30)]
    assert {each.result() for each in tqdm(as_completed(futures), total=30, file=bar)} == set(
        range(30)
    )
    assert "30/30" in bar.getvalue()


# -- joblib and scikit-learn --------------------------------------------------------------


ExecutorBackend = runpy.run_path(str(EXAMPLES / "executor_joblib.py"))["ExecutorBackend"]


@pytest.fixture
def joblib_uses(pool: BatchPoolExecutor) -> Iterator[None]:
    with parallel_config(ExecutorBackend(pool, WORKERS), n_jobs=-1):
        yield


@pytest.mark.usefixtures("joblib_uses")
def test_joblib_runs_its_calls_on_it() -> None:
    assert Parallel()(delayed(pow)(n, 2) for n in range(50)) == [n**2 for n in range(50)]
    assert os.getpid() not in Parallel()(delayed(os.getpid)() for _ in range(4))
    assert sorted(
        Parallel(return_as="generator_unordered")(delayed(abs)(-n) for n in range(20))
    ) == list(range(20))


@pytest.mark.usefixtures("joblib_uses")
def test_joblib_raises_what_a_call_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        Parallel()(delayed(divmod)(1, n) for n in [2, 1, 0, 1, 2])


@pytest.mark.usefixtures("joblib_uses")
def test_joblib_may_be_nested() -> None:
    def inner() -> list[int]:
        return Parallel(n_jobs=2)(delayed(abs)(-n) for n in range(3))

    assert Parallel()(delayed(inner)() for _ in range(4)) == [[0, 1, 2]] * 4


def test_scikit_learn_fits_on_it_as_alone(pool: BatchPoolExecutor) -> None:
    def fit() -> tuple[list[float], dict[str, Any], list[float]]:
        data, model = load_iris(return_X_y=True), LogisticRegression(max_iter=1000)
        search = GridSearchCV(model, {"C": [0.1, 1]}, cv=3).fit(*data)
        scores = search.cv_results_["mean_test_score"].tolist()
        return scores, search.best_params_, cross_val_score(model, *data, cv=3).tolist()

    alone = fit()
    with parallel_config(ExecutorBackend(pool, WORKERS), n_jobs=-1):
        assert fit() == alone


# -- the examples -------------------------------------------------------------------------

PRINTED = {
    "adaptive": "points: True most of them at the peak: True",
    "asyncio": (
        "primes below 100, 1000, 10000: 25 168 1229\nbelow 20000: 2262\nand 4\nand 8\nand 10"
    ),
    "dask": "sum of squares: 285\nmean of an array: 499.5",
    "futures": "7 files have words: True",
    "joblib": (
        "   C   gamma  right\n"
        " 0.1  0.0001    31%\n 0.1   0.001    85%\n 0.1    0.01    13%\n"
        "   1  0.0001    90%\n   1   0.001    92%\n   1    0.01    62%\n"
        "  10  0.0001    92%\n  10   0.001    92%\n  10    0.01    64%\n"
        "best: {'C': 10, 'gamma': 0.001} right in 92%"
    ),
    "scipy": "least at [1. 1.]\nas without workers: True",
    "tqdm": "the same sum: True",
}


def test_all_examples_are_listed() -> None:
    there = {path.stem.removeprefix("executor_") for path in EXAMPLES.glob("executor_*.py")}
    assert there == PRINTED.keys()
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    assert all(f"`executor_{name}.py`" in listed for name in there)


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_found(name: str, batch: Batch, tmp_path: Path) -> None:
    program = EXAMPLES / f"executor_{name}.py"
    environment = {"DASKBATCH_CLUSTER": batch.client.scheduler.address}
    if name == "futures":
        # One needs nothing but itself; others are spared the start of a cluster.
        environment.clear()
    run = subprocess.run(
        [sys.executable, "-W", "error", program],
        cwd=tmp_path,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == PRINTED[name].strip()
    if name != "tqdm":
        assert run.stderr == ""
