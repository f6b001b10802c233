"""Tasks of several slots: granted all at once, given back at any end, and lent while they wait."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from support.gangs import TIMEOUT_SECONDS, gangs, no_slot_is_held, start, wait_for
from support.outside import outside_cluster
from support.scaling import scale
from support.waiting import wait_until

from daskbatch import (
    Batch,
    BatchPoolExecutor,
    SpecError,
    TaskCancelled,
    TaskTimeout,
)
from daskbatch.batch.task import Task
from daskbatch.worker.execution.task_context import current_context


def allocation() -> tuple[tuple[tuple[str, int], ...], int] | None:
    context = current_context()
    found = None if context is None else context.allocation
    return None if found is None else (found.hosts, found.cores)


@pytest.fixture(scope="module", params=["4x1", "2x2"])
def four(request: pytest.FixtureRequest) -> Iterator[Batch]:
    """A Batch with four slots on one host: of single-threaded workers, or of two threads each."""
    if request.param == "4x1":
        with Batch(num_workers=4) as batch:
            yield batch
        return
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=False,
            protocol="tcp",
            dashboard_address=":0",
        ) as cluster,
        Batch(cluster) as batch,
    ):
        yield batch


# -- what is granted ----------------------------------------------------------------------


def test_a_task_is_granted_its_cores_on_one_host_and_libraries_know(batch: Batch) -> None:
    task = start(batch.options(cores=2).function(allocation))
    hosts, cores = task.get(timeout=60)
    assert [count for _, count in hosts] == [1]
    assert cores == 2
    threads = start(batch.options(cores=2).function(os.getenv, "OMP_NUM_THREADS"))
    other = start(
        batch.options(cores=2, env={"OMP_NUM_THREADS": "7"}).function(os.getenv, "OMP_NUM_THREADS")
    )
    process = start(batch.options(cores="1500m").process("sh", "-c", "echo $MKL_NUM_THREADS"))
    assert threads.get(timeout=60) == "2"
    assert other.get(timeout=60) == "7"
    assert process.stdout.get(timeout=60) == "1"


def test_a_part_of_a_core_is_a_slot_and_needs_no_gang(batch: Batch) -> None:
    assert start(batch.options(cores=0.5).function(allocation)).get(timeout=60) is None
    assert start(batch.options(cores="1500m").function(allocation)).get(timeout=60)[1] == 2


def test_gangs_that_are_alike_run_one_after_another_and_ordinary_tasks_beside(four: Batch) -> None:
    three = four.options(cores=3, isolation="thread")
    tasks = [three.function(pow, n, 2) for n in range(20)]
    tasks += [four.function(pow, n, 3) for n in range(40)]
    four.compile(tasks).run(timeout=120)
    assert [task.get() for task in tasks[:20]] == [n**2 for n in range(20)]
    assert [task.get() for task in tasks[20:]] == [n**3 for n in range(40)]
    no_slot_is_held(four)


@pytest.mark.parametrize("cores", [0, -1, "two", True, [2]])
def test_cores_must_be_a_number(batch: Batch, cores: Any) -> None:
    with pytest.raises(SpecError, match="cores= must be a number such as 2"):
        batch.options(cores=cores)


def test_more_cores_than_a_host_has_fail_at_the_start(batch: Batch) -> None:
    task = batch.options(cores=3, name="fit").function(len, "abc")
    with pytest.raises(SpecError, match="'fit' asks for 3 slots of one host, all at once; .* 2"):
        task.start()
    assert task.state == "created"


# -- order --------------------------------------------------------------------------------


def test_a_waiting_gang_takes_no_slot_and_what_it_waits_for_can_be_asked(
    four: Batch, tmp_path: Path
) -> None:
    threads = four.options(isolation="thread")
    first = start(four.options(cores=3, isolation="thread").function(wait_for, tmp_path / "end"))
    wait_until(lambda: [each["state"] for each in gangs(four)] == ["has its slots"])
    second = start(four.options(cores=4, isolation="thread").function(len, "abc"))
    wait_until(lambda: len(gangs(four)) == 2)
    # The fourth slot still runs ordinary tasks, one after another.
    for n in range(5):
        assert start(threads.function(pow, n, 2)).get(timeout=60) == n**2
    assert gangs(four)[-1]["why"] == "other gangs have the slots"
    third = start(four.options(cores=2, isolation="thread", name="third").function(len, "ab"))
    wait_until(lambda: len(gangs(four)) == 3 and gangs(four)[-1]["why"] != "")
    said = second.why()
    assert said.endswith(" waits for 4 slots, all at once: other gangs have the slots."), said
    assert third.why().startswith("'third' ")
    assert "waits for 2 slots, all at once: " in third.why()
    assert third.why().endswith("; 1 task of several slots is before it.")
    assert second.state == "waiting"
    (tmp_path / "end").touch()
    assert first.get(timeout=60) == "end"
    assert second.get(timeout=60) == 3
    assert third.get(timeout=60) == 2


def test_a_stream_of_short_tasks_does_not_keep_a_gang_from_its_slots(four: Batch) -> None:
    over = threading.Event()
    submitted: list[Task] = []

    def submit() -> None:
        while not over.is_set():
            some = [four.function(time.sleep, 0.002) for _ in range(20)]
            four.compile(some).start()
            submitted.extend(some)
            wait_until(lambda: sum(task.state != "done" for task in submitted) < 60)

    feeding = threading.Thread(target=submit)
    feeding.start()
    try:
        for _ in range(3):
            task = start(four.options(cores=4, isolation="thread").function(len, "abc"))
            assert task.get(timeout=60) == 3
    finally:
        over.set()
        feeding.join()


def test_a_stream_of_gangs_does_not_keep_short_tasks_from_their_slots(four: Batch) -> None:
    over = threading.Event()
    running: list[Task] = []

    def submit() -> None:
        while not over.is_set():
            running.append(
                start(four.options(cores=4, isolation="thread").function(time.sleep, 0.002))
            )
            # There are always gangs that wait.
            wait_until(lambda: sum(task.state != "done" for task in running) < 5)

    feeding = threading.Thread(target=submit)
    feeding.start()
    try:
        for n in range(5):
            assert start(four.function(pow, n, 2)).get(timeout=60) == n**2
        isolated = start(four.options(isolation="process").function(pow, 2, 3))
        assert isolated.get(timeout=60) == 8
    finally:
        over.set()
        feeding.join()


def test_priority_orders_the_gangs_that_wait(four: Batch, tmp_path: Path) -> None:
    order = tmp_path / "order"

    def note(name: str) -> None:
        with order.open("a") as file:
            file.write(name)

    whole = {"cores": 4, "isolation": "thread"}
    first = start(four.options(**whole).function(wait_for, tmp_path / "end"))
    wait_until(lambda: len(gangs(four)) == 1)
    waiting = [
        start(four.options(**whole, priority=priority, name=name).function(note, name))
        for name, priority in (("c", 0), ("a", 5), ("d", -1), ("b", 2))
    ]
    wait_until(lambda: len(gangs(four)) == 5)
    (tmp_path / "end").touch()
    for task in [first, *waiting]:
        task.wait(timeout=60)
    assert order.read_text() == "abcd"


# -- the end of gangs ---------------------------------------------------------------------


def test_every_end_gives_the_slots_back(four: Batch, tmp_path: Path) -> None:
    whole = four.options(cores=4)
    runs = start(whole.function(wait_for, tmp_path / "never", tmp_path / "begun"))
    wait_for(tmp_path / "begun")
    waits = start(whole.function(len, "abc"))
    wait_until(lambda: len(gangs(four)) == 2)
    assert waits.cancel()
    assert runs.cancel()
    with pytest.raises(TaskCancelled):
        runs.get(timeout=60)
    late = start(four.options(cores=4, timeout=0.2).function(time.sleep, 60))
    with pytest.raises(TaskTimeout):
        late.get(timeout=60)
    fails = start(whole.function(int, "x"))
    with pytest.raises(ValueError, match="invalid literal"):
        fails.get(timeout=60)
    assert start(whole.function(len, "abc")).get(timeout=60) == 3
    no_slot_is_held(four)


def test_a_client_that_ends_gives_the_slots_back(four: Batch, tmp_path: Path) -> None:
    with Batch(four.client) as other:
        runs = start(other.options(cores=3).function(wait_for, tmp_path / "x", tmp_path / "begun"))
        waits = start(other.options(cores=4).function(len, "abc"))
        wait_for(tmp_path / "begun")
        other.terminate()
    assert runs.state == waits.state == "cancelled"
    task = start(four.options(cores=4, isolation="thread").function(len, "abc"))
    assert task.get(timeout=60) == 3


# -- gangs that wait inside -----------------------------------------------------------------


def inner(batch: Batch, cores: int, depth: int, isolation: str) -> int:
    """Wait for a task of some cores, which does the same."""
    if depth == 0:
        return 0
    options = batch.options(cores=cores, isolation=isolation)
    task = start(options.function(inner, batch, cores, depth - 1, isolation))
    return 1 + task.get(timeout=TIMEOUT_SECONDS)


@pytest.mark.parametrize(("cores", "isolation"), [(1, "thread"), (4, "thread"), (4, "process")])
def test_a_gang_that_waits_lends_its_slots(four: Batch, cores: int, isolation: str) -> None:
    options = four.options(cores=4, isolation=isolation)
    task = start(options.function(inner, four, cores, 2, isolation))
    assert task.get(timeout=120) == 2
    no_slot_is_held(four)


def test_a_gang_that_has_waited_continues_with_all_its_slots(four: Batch, tmp_path: Path) -> None:
    def waits(batch: Batch) -> str:
        assert start(batch.function(pow, 2, 3)).get(timeout=TIMEOUT_SECONDS) == 8
        return wait_for(tmp_path / "end", tmp_path / "continues")

    task = start(four.options(cores=4, isolation="thread").function(waits, four))
    wait_for(tmp_path / "continues")
    other = start(four.function(Path.touch, tmp_path / "ran"))
    wait_until(lambda: [each["state"] for each in gangs(four)] == ["has its slots"])
    assert not (tmp_path / "ran").exists()
    (tmp_path / "end").touch()
    assert task.get(timeout=60) == "end"
    other.wait(timeout=60)
    assert (tmp_path / "ran").exists()


# -- workers that come and go ---------------------------------------------------------------


def kill_itself(once: Path) -> str:
    """Kill the worker that runs this, the first time."""
    with contextlib.suppress(FileExistsError):
        once.touch(exist_ok=False)
        os.kill(os.getpid(), signal.SIGKILL)
    return "again"


@pytest.mark.slow
def test_workers_that_are_killed(tmp_path: Path) -> None:
    with (
        outside_cluster(workers=2, threads=1) as cluster,
        Batch(cluster) as batch,
    ):
        two = batch.options(cores=2, isolation="thread")
        # The worker of the task itself; it may run again.
        assert start(two.function(kill_itself, tmp_path / "once")).get(timeout=120) == "again"
        # The other worker, while the task runs: it goes on, and the slots come back.
        pids = batch.client.run(os.getpid)
        assert len(pids) == 2
        runs = start(two.function(wait_for, tmp_path / "end", tmp_path / "begun"))
        wait_for(tmp_path / "begun")
        ran_on = batch.client.run_on_scheduler(_worker_of_gang)
        (other,) = [pid for address, pid in pids.items() if address != ran_on]
        os.kill(other, signal.SIGKILL)
        waits = start(two.function(len, "abc"))
        wait_until(lambda: other not in batch.client.run_on_scheduler(_worker_pids))
        (tmp_path / "end").touch()
        assert runs.get(timeout=120) == "end"
        assert waits.get(timeout=120) == 3
        no_slot_is_held(batch)


def _worker_pids(dask_scheduler: Any) -> list[int]:
    return [worker.pid for worker in dask_scheduler.workers.values()]


def _worker_of_gang(dask_scheduler: Any) -> str:
    (found,) = [
        address
        for address, worker in dask_scheduler.workers.items()
        if any("daskbatch_slot" not in str(task.key) for task in worker.processing)
    ]
    return str(found)


def test_a_worker_that_joins_makes_a_gang_possible() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Batch(cluster) as batch,
    ):
        task = start(batch.options(cores=2, isolation="thread").function(len, "abc"))
        wait_until(lambda: len(gangs(batch)) == 1)
        assert gangs(batch)[0]["why"] == "the workers that may run it have too few slots"
        assert start(batch.function(len, "ab")).get(timeout=60) == 2, "it keeps nobody away"
        scale(cluster, 2)
        assert task.get(timeout=60) == 3


# -- executors and fresh children -----------------------------------------------------------


def test_the_cores_of_an_executor_on_workers_of_one_thread(batch: Batch) -> None:
    with BatchPoolExecutor(cluster=batch.client, cpus_per_job=2) as executor:
        futures = [executor.submit(allocation) for _ in range(5)]
        assert {future.result(timeout=60)[1] for future in futures} == {2}
        threads = executor.submit(os.getenv, "OMP_NUM_THREADS")
        assert threads.result(timeout=60) == "2"
        single = executor.options(cores=1).submit(allocation)
        assert single.result(timeout=60) is None


def test_a_fresh_child_is_new_and_not_used_again(batch: Batch) -> None:
    fresh = batch.options(isolation="fresh")
    tasks = [fresh.function(os.getpid) for _ in range(4)]
    batch.compile(tasks).run(timeout=120)
    pids = {task.get() for task in tasks}
    assert len(pids) == 4
    warm = [batch.options(isolation="process").function(os.getpid) for _ in range(4)]
    batch.compile(warm).run(timeout=120)
    assert not pids & {task.get() for task in warm}
    gang = start(batch.options(isolation="fresh", cores=2).function(allocation))
    assert gang.get(timeout=60)[1] == 2
