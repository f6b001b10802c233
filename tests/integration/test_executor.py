"""`BatchPoolExecutor`: what CPython's own tests of executors do not test."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future, ThreadPoolExecutor, wait
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.waiting import wait_until

from daskbatch import (
    Batch,
    BatchPoolExecutor,
    DependencyFailed,
    GraphError,
    LifecycleError,
    SerializationError,
    SpecError,
    SubmitAfterCloseError,
    TaskCrashed,
    TaskTimeout,
    WorkerLost,
    as_executor,
)
from daskbatch.cluster.session import Session

SECONDS = 60


@pytest.fixture
def executor(batch: Batch) -> Iterator[BatchPoolExecutor]:
    with as_executor(batch) as made:
        yield made


def raise_it(error: BaseException) -> None:
    raise error


def begin_and_wait(path: Path) -> None:
    """Make a file, and run until the file is removed."""
    path.touch()
    end = time.monotonic() + SECONDS / 2
    while path.exists() and time.monotonic() < end:
        time.sleep(0.01)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# -- calls ----------------------------------------------------------------------------------


def test_all_keywords_are_the_functions(executor: BatchPoolExecutor) -> None:
    def keywords(**given: Any) -> dict[str, Any]:
        return given

    given = dict.fromkeys(
        ["self", "fn", "key", "workers", "retries", "name", "timeout", "priority", "reads"], 1
    )
    assert executor.submit(keywords, **given).result(SECONDS) == given


def test_equal_calls_are_each_run(executor: BatchPoolExecutor, tmp_path: Path) -> None:
    file = tmp_path / "calls"

    def call() -> None:
        with file.open("a") as out:
            out.write("x")

    wait([executor.submit(call) for _ in range(20)])
    assert file.read_text() == "x" * 20


def test_functions_of_all_kinds(executor: BatchPoolExecutor) -> None:
    async def later(value: int) -> int:
        await asyncio.sleep(0)
        return value

    class Adder:
        def __call__(self, a: int, b: int) -> int:
            return a + b

    assert executor.submit(int, "12").result(SECONDS) == 12
    assert executor.submit("abc".upper).result(SECONDS) == "ABC"
    assert executor.submit(Adder(), 1, b=2).result(SECONDS) == 3
    assert executor.submit(later, 7).result(SECONDS) == 7
    assert list(executor.map(later, range(5), chunksize=2)) == [0, 1, 2, 3, 4]


def test_a_future_carries_its_task(executor: BatchPoolExecutor) -> None:
    future = executor.submit(print, "hello")
    assert future.result(SECONDS) is None
    assert future.task.stdout.get() == "hello"
    assert future.task.state == "done"
    assert future.task.uid != executor.submit(print).task.uid


def test_a_future_among_arguments_is_waited_for(executor: BatchPoolExecutor) -> None:
    parts = [executor.submit(pow, 2, n) for n in range(5)]
    total = executor.submit(sum, {"numbers": parts}["numbers"])
    doubled = executor.map(lambda x: 2 * x, [total, parts[0]])
    assert total.result(SECONDS) == 31
    assert list(doubled) == [62, 2]
    assert list(executor.map(sum, [[total, 1], [2, 3]], chunksize=2)) == [32, 5]


def test_a_future_whose_call_failed_fails_what_takes_it(executor: BatchPoolExecutor) -> None:
    bad = executor.submit(raise_it, ValueError("no"))
    with pytest.raises(DependencyFailed, match="no"):
        executor.submit(str, bad).result(SECONDS)


def test_a_future_of_another_executor_is_refused(executor: BatchPoolExecutor) -> None:
    with BatchPoolExecutor(max_workers=1) as other:
        theirs = other.submit(abs, -1)
        with pytest.raises(GraphError, match="another Batch: give its value"):
            executor.submit(abs, theirs)


def test_two_executors_on_one_batch_take_each_others_futures(batch: Batch) -> None:
    with as_executor(batch) as one, as_executor(batch) as two:
        future: Any = 0
        for number in range(20):
            future = (one if number % 2 else two).submit(lambda a: a + 1, future)
        assert future.result(SECONDS) == 20


def test_a_plain_future_is_no_argument(executor: BatchPoolExecutor) -> None:
    future: Future[int] = Future()
    said = r"it is args\[0\], a Future of another executor: give its result\(\)"
    with pytest.raises(SerializationError, match=said):
        executor.submit(id, future).result(SECONDS)


def test_large_results_are_here_after_the_end() -> None:
    with BatchPoolExecutor(max_workers=2) as executor:
        future = executor.submit(np.zeros, 300_000)
        arrays = executor.map(np.ones, [300_000] * 3)
    assert future.result(SECONDS).nbytes == 2_400_000
    assert [array.sum() for array in arrays] == [300_000] * 3


def test_a_large_result_stays_for_other_calls(executor: BatchPoolExecutor) -> None:
    future = executor.submit(np.ones, 300_000)
    assert future.result(SECONDS).sum() == 300_000
    assert executor.submit(np.sum, future).result(SECONDS) == 300_000


# -- exceptions -----------------------------------------------------------------------------


class Odd(Exception):
    def __init__(self, number: int, *, why: str) -> None:
        super().__init__(f"{number}: {why}")
        self.number = number


def raise_odd() -> None:
    error = Odd(7, why="seven")
    error.add_note("a note")
    raise error


def raise_group() -> None:
    raise ExceptionGroup("both", [ValueError(1), KeyError("k")])


@pytest.mark.parametrize("chunksize", [1, 2])
def test_exceptions_arrive_whole(executor: BatchPoolExecutor, chunksize: int) -> None:
    with pytest.raises(Odd, match="7: seven") as caught:
        list(executor.map(lambda _: raise_odd(), range(2), chunksize=chunksize))
    assert caught.value.number == 7
    assert caught.value.__notes__ == ["a note"]
    assert "raise error" in str(caught.value.__cause__)
    with pytest.raises(ExceptionGroup) as group:
        list(executor.map(lambda _: raise_group(), range(2), chunksize=chunksize))
    assert [type(each) for each in group.value.exceptions] == [ValueError, KeyError]


def test_the_traceback_says_which_call_it_is_of(executor: BatchPoolExecutor) -> None:
    future = executor.submit(divmod, 1, 0)
    with pytest.raises(ZeroDivisionError) as caught:
        future.result(SECONDS)
    heading = str(caught.value.__cause__).strip().splitlines()[1]
    assert heading.startswith("task 'divmod'")
    assert f", {future.task.uid}, on worker tcp://" in heading
    assert heading.endswith(", attempt 1:")


def test_each_call_of_a_chunk_keeps_its_own_exception(executor: BatchPoolExecutor) -> None:
    ran = executor.map(lambda n: n if n != 2 else raise_odd(), range(4), chunksize=4)
    assert [next(ran), next(ran)] == [0, 1]
    with pytest.raises(Odd):
        next(ran)
    # What is unpicklable of a chunk is so alone, as an argument and as a result.
    results = executor.map(
        lambda n: n if n != 1 else (lambda: threading.Lock(), threading.Lock()),
        range(3),
        chunksize=3,
    )
    assert next(results) == 0
    with pytest.raises(SerializationError):
        next(results)
    arguments = executor.map(type, [0, threading.Lock(), 2], chunksize=3)
    assert next(arguments) is int
    with pytest.raises(SerializationError):
        next(arguments)


def test_sys_exit_is_an_error_of_its_call(executor: BatchPoolExecutor) -> None:
    future = executor.submit(sys.exit, 3)
    with pytest.raises(SystemExit) as caught:
        future.result(SECONDS)
    assert isinstance(caught.value, TaskCrashed)
    assert caught.value.code == caught.value.exitcode == 3
    with pytest.raises(TaskCrashed):
        list(executor.map(sys.exit, [4]))
    for isolation in ("thread", "process"):
        isolated = executor.options(isolation=isolation)
        for make, code, exitcode in (
            (lambda: "bye", "bye", 1),
            (lambda: None, None, 0),
            (threading.Lock, 1, 1),  # it cannot be sent
        ):
            error = isolated.submit(lambda make: sys.exit(make()), make).exception(SECONDS)
            assert isinstance(error, SystemExit)
            assert (error.code, error.exitcode) == (code, exitcode)
            assert pickle.loads(pickle.dumps(error)).code == code


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_call_that_is_interrupted_breaks_nothing(
    executor: BatchPoolExecutor, isolation: str
) -> None:
    isolated = executor.options(isolation=isolation)
    future = isolated.submit(raise_it, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt) as caught:
        future.result(SECONDS)
    assert isinstance(caught.value, TaskCrashed)
    assert not isinstance(caught.value, BrokenExecutor), "no interpreter has ended"
    assert isinstance(pickle.loads(pickle.dumps(caught.value)), KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        list(isolated.map(raise_it, [KeyboardInterrupt()]))
    assert isolated.submit(abs, -1).result(SECONDS) == 1


def test_a_crash_of_a_child_is_one_of_a_pool(executor: BatchPoolExecutor) -> None:
    isolated = executor.options(isolation="process")
    with pytest.raises(BrokenExecutor) as caught:
        isolated.submit(die).result(SECONDS)
    assert isinstance(caught.value, TaskCrashed)
    assert executor.submit(abs, -1).result(SECONDS) == 1


def test_workers_that_die_are_a_broken_executor_at_the_third_only(tmp_path: Path) -> None:
    with BatchPoolExecutor(max_workers=2) as executor:

        def die_at_first(path: Path) -> str:
            if not path.exists():
                path.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return "again"

        assert executor.submit(die_at_first, tmp_path / "a").result(SECONDS) == "again"
        lost = executor.submit(die)
        with pytest.raises(BrokenExecutor) as caught:
            lost.result(SECONDS)
        assert isinstance(caught.value, WorkerLost)
        assert executor.submit(abs, -1).result(SECONDS) == 1, "and the pool goes on"


# -- running and cancelling -------------------------------------------------------------------


def test_running_tells_the_truth(executor: BatchPoolExecutor, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    future = executor.submit(begin_and_wait, file)
    wait_until(future.running)
    assert file.exists()
    assert not future.done()
    assert "running" in repr(future)
    file.unlink()
    future.result(SECONDS)
    assert not future.running()
    assert not future.cancel(), "it is over"


def test_what_runs_can_be_cancelled(executor: BatchPoolExecutor, tmp_path: Path) -> None:
    file = tmp_path / "runs"
    future = executor.submit(begin_and_wait, file)
    wait_until(future.running)
    told = threading.Event()
    future.add_done_callback(lambda _: told.set())
    assert future.cancel()
    assert future.cancelled()
    assert told.wait(SECONDS)
    with pytest.raises(CancelledError):
        future.result()
    # Its slot is free again, though the file is still there.
    assert list(executor.map(abs, [-1, -2, -3])) == [1, 2, 3]
    assert wait([future], SECONDS).done == {future}


def test_cancelled_before_it_is_handed_over(executor: BatchPoolExecutor) -> None:
    futures = [executor.submit(abs, -1) for _ in range(100)]
    outcomes = [future.cancel() for future in futures]
    assert wait(futures, SECONDS).not_done == set()
    for future, cancelled in zip(futures, outcomes, strict=True):
        assert future.cancelled() == cancelled


def test_a_map_that_is_left_is_cancelled(executor: BatchPoolExecutor, tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(40)]
    results = executor.map(begin_and_wait, files)
    wait_until(lambda: sum(file.exists() for file in files) == 2)
    with pytest.raises(TimeoutError):
        list(executor.map(begin_and_wait, [tmp_path / "other"], timeout=0.05))
    results.close()  # type: ignore[attr-defined]
    assert executor.submit(abs, -1).result(SECONDS) == 1
    assert sum(file.exists() for file in files) <= 4


def test_asyncio_stops_what_takes_too_long(executor: BatchPoolExecutor, tmp_path: Path) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(
                loop.run_in_executor(executor, begin_and_wait, tmp_path / "a"), 0.3
            )
        assert await (await executor.async_submit(pow, 2, 10)) == 1024
        assert [each async for each in executor.async_map(abs, [[-1, 2]])] == [1, 2]
        one_by_one = executor.async_map(abs, [range(5)], buffersize=1)
        assert [each async for each in one_by_one] == [0, 1, 2, 3, 4]
        endless = executor.async_map(abs, [count()], buffersize=4)
        assert [await anext(endless) for _ in range(20)] == list(range(20))
        with pytest.raises(TimeoutError):
            async for _ in executor.async_map(begin_and_wait, [[tmp_path / "b"]], timeout=0.2):
                pass

    asyncio.run(main())


# -- map ------------------------------------------------------------------------------------


def test_map_takes_what_is_endless(executor: BatchPoolExecutor) -> None:
    asked: list[int] = []

    def numbers() -> Iterator[int]:
        for number in count():
            asked.append(number)
            yield number

    results = executor.map(abs, numbers(), buffersize=10)
    assert list(islice(results, 100)) == list(range(100))
    assert len(asked) <= 111
    for ahead in (1, 2, 100):
        assert list(executor.map(abs, range(20), buffersize=ahead)) == list(range(20))
        several = executor.map(abs, range(20), chunksize=3, buffersize=ahead)
        assert list(several) == list(range(20))
    chunks = executor.map(abs, count(), chunksize=7, buffersize=2)
    assert list(islice(chunks, 50)) == list(range(50))


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (ValueError, {"chunksize": 0}),
        (ValueError, {"chunksize": -1}),
        (ValueError, {"buffersize": 0}),
        (TypeError, {"buffersize": "1"}),
    ],
)
def test_wrong_numbers(
    executor: BatchPoolExecutor, kind: type[Exception], settings: dict[str, Any]
) -> None:
    with pytest.raises(kind):
        executor.map(abs, [1], **settings)


def test_map_of_nothing(executor: BatchPoolExecutor) -> None:
    assert list(executor.map(abs, [])) == []
    assert list(executor.map(abs, [], chunksize=5)) == []
    assert list(executor.map(abs)) == []


def test_an_iterable_that_raises(executor: BatchPoolExecutor) -> None:
    def numbers() -> Iterator[int]:
        yield 1
        raise Odd(1, why="no more")

    with pytest.raises(Odd):
        executor.map(abs, numbers())


def test_a_map_counts_as_pending() -> None:
    with BatchPoolExecutor(max_workers=2) as executor:
        results = executor.map(time.sleep, [0.05] * 10)
        with BatchPoolExecutor(max_workers=1) as other:
            other.map(abs, range(10))
    assert list(results) == [None] * 10


# -- options, names, limits -------------------------------------------------------------------


def test_options_hold_for_what_they_return(executor: BatchPoolExecutor, tmp_path: Path) -> None:
    hasty = executor.options(timeout=0.2, name="hasty")
    with pytest.raises(TaskTimeout, match="'hasty'"):
        hasty.submit(time.sleep, 60).result(SECONDS)
    with pytest.raises(TaskTimeout):
        list(hasty.map(time.sleep, [60], chunksize=3))
    assert executor.submit(time.sleep, 0.3).result(SECONDS) is None
    elsewhere = executor.options(cwd=tmp_path, env={"WHERE": "there"})
    assert elsewhere.submit(os.getcwd).result(SECONDS) == str(tmp_path)
    assert elsewhere.submit(os.getenv, "WHERE").result(SECONDS) == "there"

    def fail_at_first(path: Path) -> str:
        if not path.exists():
            path.touch()
            raise ValueError
        return "again"

    robust = executor.options(retries=1)
    assert robust.submit(fail_at_first, tmp_path / "f").result(SECONDS) == "again"


def test_what_cannot_be_met_fails_alone(executor: BatchPoolExecutor) -> None:
    greedy = executor.options(resources={"no-such": 1})
    futures = [executor.submit(abs, -1), greedy.submit(abs, -2), executor.submit(abs, -3)]
    assert futures[0].result(SECONDS) == 1
    with pytest.raises(SpecError, match="no-such"):
        futures[1].result(SECONDS)
    assert futures[2].result(SECONDS) == 3


def test_max_workers_is_what_libraries_look_for() -> None:
    with BatchPoolExecutor(max_workers=np.int64(2)) as executor:
        assert executor._max_workers == 2
        assert executor.batch.num_workers == 2
        assert executor.submit(abs, -1).result(SECONDS) == 1


@pytest.mark.parametrize(
    "settings",
    [
        {"max_workers": 0},
        {"max_workers": 1.5},
        {"max_workers": True},
        {"name": ""},
        {"name": 3},
        {"cpus_per_job": 0},
        {"cpus_per_job": "two"},
        {"cpus_per_job": -1},
    ],
)
def test_wrong_settings(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        BatchPoolExecutor(**settings)


def test_cpus_per_job_on_this_machine() -> None:
    with BatchPoolExecutor(max_workers=1, cpus_per_job="2500m") as executor:
        names = ["OMP", "OPENBLAS", "MKL", "NUMEXPR"]
        found = executor.map(os.getenv, [f"{name}_NUM_THREADS" for name in names])
        assert list(found) == ["2"] * 4
        assert executor.submit(os.getenv, "VECLIB_MAXIMUM_THREADS").result(SECONDS) == "2"


def most_at_once(directory: Path, expected: int) -> int:
    """Return how many calls of this function run at once, with this one.

    Until that many have been seen once, each call waits for the others.
    """
    running, seen = directory / f"running-{expected}", directory / f"seen-{expected}"
    running.mkdir(exist_ok=True)
    mine = running / f"{os.getpid()}-{threading.get_ident()}-{time.monotonic_ns()}"
    mine.touch()
    wait_until(lambda: seen.exists() or len(list(running.iterdir())) >= expected)
    seen.touch()
    found = len(list(running.iterdir()))
    # So that others are seen if more can run at once than may.
    time.sleep(0.02)
    found = max(found, len(list(running.iterdir())))
    mine.unlink()
    return found


def test_a_given_cluster(tmp_path: Path) -> None:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=2, threads_per_worker=3, dashboard_address="127.0.0.1:0"
    ) as cluster:
        for cap in (1, 4):
            with BatchPoolExecutor(cluster=cluster, max_workers=cap) as executor:
                assert executor._max_workers == cap
                least = min(cap, 2)
                found = list(executor.map(most_at_once, [tmp_path] * 40, [least] * 40))
                assert least <= max(found) <= cap
                future: Any = 0
                for _ in range(10):
                    future = executor.submit(lambda a: a + 1, future)
                assert future.result(SECONDS) == 10
        with BatchPoolExecutor(cluster=cluster, cpus_per_job=2) as executor:
            # The slots of both workers count together, since they are on one host.
            assert max(executor.map(most_at_once, [tmp_path] * 12, [1] * 12)) <= 3
            assert executor.submit(os.getenv, "OMP_NUM_THREADS").result(SECONDS) == "2"
        with BatchPoolExecutor(cluster=cluster, cpus_per_job=4) as executor:
            assert executor.submit(abs, -1).result(SECONDS) == 1
        with BatchPoolExecutor(cluster=cluster, cpus_per_job=7) as executor:
            never = executor.submit(abs, -1)
            executor.shutdown(cancel_futures=True)
            assert never.cancelled()
        with BatchPoolExecutor(cluster=cluster) as executor:
            assert executor._max_workers == 6
        assert cluster.scheduler.status.name == "running", "it is never closed"


def test_a_call_is_not_bound_to_a_lane_while_another_is_free(tmp_path: Path) -> None:
    from distributed import LocalCluster

    def wait_or_end_it(what: str) -> bool:
        end = time.monotonic() + SECONDS / 2
        while what == "wait" and not (tmp_path / "end").exists():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
        if what == "end":
            (tmp_path / "end").touch()
        return True

    with (
        LocalCluster(n_workers=2, threads_per_worker=2, dashboard_address="127.0.0.1:0") as cluster,
        BatchPoolExecutor(cluster=cluster, max_workers=2) as executor,
    ):
        # Calls of this function were short, so that many are chained into one sequence.
        for _ in range(3):
            assert all(executor.map(wait_or_end_it, [""] * 400))
        assert all(executor.map(wait_or_end_it, ["wait", "end", *[""] * 10]))


def test_the_name_stands_on_the_dashboard(batch: Batch) -> None:
    with BatchPoolExecutor(cluster=batch.client, name="survey") as executor:
        futures = [executor.submit(abs, -1), executor.submit(abs, -2)]
        wait(futures, SECONDS)
        prefixes = batch.client.run_on_scheduler(
            lambda dask_scheduler: list(dask_scheduler.task_prefixes)
        )
    assert "survey_abs" in prefixes


# -- many threads ---------------------------------------------------------------------------


def test_four_threads_lose_nothing(executor: BatchPoolExecutor) -> None:
    def client(number: int) -> list[int]:
        futures = [executor.submit(divmod, i, number + 2) for i in range(1000)]
        return [future.result(SECONDS)[0] for future in futures]

    with ThreadPoolExecutor(4) as threads:
        for number, got in enumerate(threads.map(client, range(4))):
            assert got == [i // (number + 2) for i in range(1000)]


def test_a_callback_may_submit(executor: BatchPoolExecutor) -> None:
    more: Future[Any] = Future()

    def submit(future: Future[Any]) -> None:
        more.set_result(executor.submit(abs, future.result()))

    executor.submit(abs, -5).add_done_callback(submit)  # in whichever thread
    assert more.result(SECONDS).result(SECONDS) == 5


def test_a_callback_that_ends_the_interpreter_ends_nothing(
    executor: BatchPoolExecutor, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    future = executor.submit(begin_and_wait, begun)
    # Before the call ends: else this thread would run the callback.
    future.add_done_callback(lambda _: sys.exit(1))
    wait_until(begun.exists)
    begun.unlink()
    assert future.result(SECONDS) is None
    assert executor.submit(abs, -1).result(SECONDS) == 1


# -- the end --------------------------------------------------------------------------------


def test_nothing_is_taken_after_the_end(batch: Batch) -> None:
    executor = as_executor(batch)
    assert executor.submit(abs, -1).result(SECONDS) == 1
    executor.shutdown()
    executor.shutdown()
    for call in (lambda: executor.submit(abs, -1), lambda: executor.map(abs, [1])):
        with pytest.raises(RuntimeError, match="after shutdown"):
            call()
    assert not batch.closed


def test_shutdown_without_waiting_finishes_all() -> None:
    executor = BatchPoolExecutor(max_workers=2, wait_on_exit=False)
    with executor:
        futures = [executor.submit(time.sleep, 0.05) for _ in range(10)]
    assert not all(future.done() for future in futures)
    assert wait(futures, SECONDS).not_done == set()
    wait_until(lambda: executor.batch._session.ended)


def test_cancelled_at_the_end_is_what_has_not_begun(tmp_path: Path) -> None:
    executor = BatchPoolExecutor(max_workers=2)
    files = [tmp_path / str(number) for number in range(20)]
    futures = [executor.submit(begin_and_wait, file) for file in files]
    wait_until(lambda: sum(file.exists() for file in files) == 2)
    wait_until(lambda: sum(future.running() for future in futures) == 2)
    executor.shutdown(wait=False, cancel_futures=True)
    assert sum(future.cancelled() for future in futures) == 18
    for file in files:
        file.unlink(missing_ok=True)
    assert wait(futures, SECONDS).not_done == set()
    assert sum(not future.cancelled() for future in futures) == 2


@pytest.mark.parametrize("whose", ["executor", "client"])
def test_what_waits_for_a_slot_that_others_have_is_cancelled_at_the_end(
    batch: Batch, executor: BatchPoolExecutor, tmp_path: Path, whose: str
) -> None:
    files = [tmp_path / str(number) for number in range(2)]
    busy = [executor.submit(begin_and_wait, file) for file in files]
    wait_until(lambda: all(future.running() for future in busy))
    wait_until(lambda: all(file.exists() for file in files))
    owns = whose == "client"
    other = BatchPoolExecutor(cluster=batch.client) if owns else as_executor(batch)
    futures = [other.submit(abs, -1), other.submit(abs, -2)]
    other.shutdown(cancel_futures=True)
    assert [future.cancelled() for future in futures] == [True, True]
    assert not any(future.done() for future in busy)
    for file in files:
        file.unlink()
    assert [future.result(SECONDS) for future in busy] == [None, None]


def test_an_interrupted_submission_does_not_hold_up_other_calls(
    batch: Batch, executor: BatchPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit = Session.submit
    interrupted: list[str] = []

    def interrupt(session: Session, *args: Any) -> None:
        # The thread that makes a single call submits it itself.
        if threading.current_thread() is threading.main_thread() and not interrupted:
            interrupted.append("Ctrl-C")
            raise KeyboardInterrupt
        submit(session, *args)

    monkeypatch.setattr(Session, "submit", interrupt)
    open_blocks = batch._session.dispatcher.table.open_blocks

    def is_interrupted() -> bool:
        try:
            assert executor.submit(abs, -1).result(SECONDS) == 1
        except KeyboardInterrupt:
            return True
        return open_blocks.is_paused  # the machine is too slow for direct connections

    wait_until(is_interrupted)
    futures = [executor.submit(abs, -number) for number in range(10)]
    assert [future.result(SECONDS) for future in futures] == list(range(10))


def test_single_calls_of_several_threads_are_all_run(executor: BatchPoolExecutor) -> None:
    results: dict[int, list[int]] = {}

    def call(number: int) -> None:
        results[number] = [executor.submit(abs, -n).result(SECONDS) for n in range(20)]

    threads = [threading.Thread(target=call, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(4 * SECONDS)
    assert results == {number: list(range(20)) for number in range(4)}


def test_a_callback_does_not_wait_for_the_end(batch: Batch, tmp_path: Path) -> None:
    executor = as_executor(batch)
    begun = tmp_path / "begun"
    said: Future[str] = Future()

    def shut_down(future: Future[Any]) -> None:
        with pytest.raises(RuntimeError, match=r"wait=False") as caught:
            executor.shutdown()
        said.set_result(f"{future.result()}: {caught.value}")

    # The call ends after its callback was added: else this thread would run the callback.
    future = executor.submit(begin_and_wait, begun)
    future.add_done_callback(shut_down)
    wait_until(begun.exists)
    begun.unlink()
    assert said.result(SECONDS).startswith("None: a callback")
    later = executor.submit(abs, -2)
    later.add_done_callback(lambda _: executor.shutdown(wait=False, cancel_futures=True))
    assert later.result(SECONDS) == 2
    executor.shutdown()


def test_an_executor_that_is_dropped_finishes_and_ends() -> None:
    executor = BatchPoolExecutor(max_workers=1)
    batch = executor.batch
    future = executor.submit(time.sleep, 0.1)
    del executor
    assert future.result(SECONDS) is None
    wait_until(lambda: batch._session.ended)
    idle = BatchPoolExecutor(max_workers=1)
    batch = idle.batch
    del idle
    wait_until(lambda: batch._session.ended)


def test_with_a_batch_that_is_closed() -> None:
    with Batch(num_workers=1) as batch:
        executor = as_executor(batch)
        futures = [executor.submit(time.sleep, 0.01) for _ in range(20)]
        batch.close()
        with pytest.raises(SubmitAfterCloseError):
            executor.submit(abs, -1)
        batch.join(timeout=SECONDS)
    assert all(future.done() and not future.exception() for future in futures)
    with pytest.raises(SubmitAfterCloseError):
        as_executor(batch)


def test_with_a_batch_that_is_terminated() -> None:
    batch = Batch(num_workers=1)
    executor = as_executor(batch)
    futures = [executor.submit(time.sleep, 0.1) for _ in range(50)]
    batch.terminate()
    assert wait(futures, SECONDS).not_done == set()
    assert any(future.cancelled() for future in futures)
    executor.shutdown()


def test_tasks_and_calls_share_a_batch(batch: Batch, executor: BatchPoolExecutor) -> None:
    futures = [executor.submit(pow, n, 2) for n in range(50)]
    total = batch.function(sum, futures)
    total.run(timeout=SECONDS)
    assert total.get() == sum(n * n for n in range(50))
    assert executor.submit(abs, total).result(SECONDS) == total.get()
    batch.fence(timeout=SECONDS)
    unstarted = batch.function(abs, -1)
    with pytest.raises(LifecycleError, match="not been started"):
        executor.submit(abs, unstarted)


def test_it_does_not_travel(executor: BatchPoolExecutor) -> None:
    with pytest.raises(TypeError, match="another one"):
        pickle.dumps(executor)
    with pytest.raises(SpecError, match="takes a Batch"):
        as_executor("tcp://127.0.0.1:1")  # type: ignore[arg-type]
