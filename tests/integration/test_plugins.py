"""Batches on a cluster of somebody else: workers join and leave, and Batches come and go."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client, LocalCluster, get_worker
from support.cluster_info import workers_of
from support.own_process import in_own_process
from support.scaling import scale
from support.waiting import touch, wait_for_file, wait_until, wait_until_running

from daskbatch import Batch, DependencyFailed, TaskCancelled

#: What daskbatch calls the things that it puts on a cluster.
OURS = "daskbatch"


def make_cluster(workers: int, **options: Any) -> LocalCluster:
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        dashboard_address=":0",
        **{"processes": False, **options},
    )


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    """Two workers of one thread."""
    with make_cluster(2) as cluster:
        yield cluster


def addresses(batch: Batch) -> set[str]:
    return set(workers_of(batch.client))


def where() -> str:
    print("on", get_worker().address)
    return str(get_worker().address)


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


# -- workers come and go ------------------------------------------------------------------


@pytest.mark.parametrize("processes", [False, True], ids=["threads", "processes"])
def test_a_worker_that_joins_later_is_like_the_others(processes: bool) -> None:
    with make_cluster(1, processes=processes) as cluster, Batch(cluster) as batch:
        first = batch.function(where)
        first.run(timeout=60)
        scale(cluster, 2)
        batch.client.wait_for_workers(2, timeout=60)
        wait_until(lambda: batch.num_workers == 2)
        (new,) = addresses(batch) - {first.get()}
        tasks = [batch.options(workers=new).function(where) for _ in range(10)]
        process = batch.options(workers=new).process("echo", "from an executable")
        batch.compile([*tasks, process]).run(timeout=60)
        assert {task.get() for task in tasks} == {new}
        assert {task.stdout.get() for task in tasks} == {f"on {new}"}
        assert process.stdout.get() == "from an executable"


def test_a_worker_that_leaves_is_done_without() -> None:
    with make_cluster(2) as cluster, Batch(cluster) as batch:
        assert batch.num_workers == 2
        scale(cluster, 1)
        wait_until(lambda: batch.num_workers == 1)
        tasks = [batch.function(where) for _ in range(10)]
        batch.compile(tasks).run(timeout=60)
        assert {task.get() for task in tasks} <= addresses(batch)


def test_a_cluster_that_adapts_to_what_there_is_to_do() -> None:
    with make_cluster(0) as cluster, Batch(cluster) as batch:
        cluster.adapt(minimum=0, maximum=2, interval="50ms")
        tasks = [batch.function(where) for _ in range(20)]
        batch.compile(tasks).run(timeout=60)
        assert all(task.stdout.get() == f"on {task.get()}" for task in tasks)
        wait_until(lambda: batch.num_workers == 0)
        again = batch.function(where)
        again.run(timeout=60)
        assert again.get()


# -- what was cancelled -------------------------------------------------------------------


def test_what_was_cancelled_stays_so_on_the_first_worker_of_all(tmp_path: Path) -> None:
    with make_cluster(0) as cluster, Batch(cluster) as batch:
        file = [batch.write(tmp_path / "file")]
        victim = batch.function(touch, tmp_path / "victim", name="victim", writes=file)
        after = batch.function(append, tmp_path / "file", "x", writes=file)
        taker = batch.function(len, victim)
        other = batch.function(touch, tmp_path / "other")
        program = batch.compile([victim, after, taker, other])
        program.start()
        assert victim.cancel() is True
        scale(cluster, 1)
        program.wait(timeout=60)
        assert not (tmp_path / "victim").exists()
        with pytest.raises(TaskCancelled, match="'victim' was cancelled"):
            victim.get()
        with pytest.raises(DependencyFailed, match="victim"):
            taker.get()
        assert after.state == "done", "it only comes after the cancelled one"
        assert other.get() == "other"


def test_what_was_cancelled_stays_so_on_one_more_worker(tmp_path: Path) -> None:
    with make_cluster(1) as cluster, Batch(cluster) as batch:
        busy = batch.options(priority=1).function(wait_for_file, tmp_path / "go")
        busy.start()
        wait_until_running(busy)
        files = [[batch.write(tmp_path, f"file {number}")] for number in range(40)]
        tasks = [
            batch.function(touch, tmp_path / f"{number}", writes=file)
            for number, file in enumerate(files)
        ]
        # Since these hang on the keys of those, no key is dropped when a task is cancelled.
        behind = [batch.function(len, "abc", writes=file) for file in files]
        program = batch.compile(tasks + behind)
        program.start()
        victims, others = tasks[::2], tasks[1::2]
        assert all(task.cancel() for task in victims)
        scale(cluster, 2)
        # The first worker is still busy: these can only be done by the new one.
        wait_until(lambda: any(task.state == "done" for task in [*others, *behind]))
        assert busy.state == "running"
        (tmp_path / "go").touch()
        program.wait(timeout=60)
        assert {task.state for task in victims} == {"cancelled"}
        assert [task.get() for task in others] == [f"{number}" for number in range(1, 40, 2)]
        assert [task.get() for task in behind] == [3] * 40
        touched = {path.name for path in tmp_path.iterdir()} - {"go"}
        assert touched == {f"{number}" for number in range(1, 40, 2)}


# -- side by side -------------------------------------------------------------------------


@pytest.fixture(params=["a client each", "one client"])
def given(request: pytest.FixtureRequest, cluster: LocalCluster) -> Iterator[Any]:
    """The arguments of two Batches that use one cluster."""
    if request.param == "one client":
        with Client(cluster) as client:
            yield client
    else:
        yield cluster


def test_two_at_once_run_alike_programs(given: Any, tmp_path: Path) -> None:
    with Batch(given, name="same") as one, Batch(given, name="same") as other:
        programs = []
        for batch, letter in ((one, "a"), (other, "b")):
            # Equal names, numbers and accesses; what they do differs.
            shared = [batch.write("/the/same/file")]
            tasks = [
                batch.function(append, tmp_path / letter, f"{letter}{n} ", writes=shared)
                for n in range(50)
            ]
            tasks += [batch.function(print, letter, number) for number in range(50)]
            programs.append(batch.compile(tasks))
        for program in programs:
            program.start()
        for program, letter in zip(programs, "ab", strict=True):
            program.wait(timeout=60)
            assert program.state == "done"
            assert program.stdout.get().splitlines() == [f"{letter} {n}" for n in range(50)]
            assert (tmp_path / letter).read_text().split() == [f"{letter}{n}" for n in range(50)]


def test_cancelling_in_one_leaves_the_other_alone(given: Any, tmp_path: Path) -> None:
    with Batch(given) as one, Batch(given) as other:
        busy = [one.options(priority=9).function(wait_for_file, tmp_path / "go") for _ in range(2)]
        for task in busy:
            task.start()
        wait_until_running(*busy)
        mine = one.compile([one.function(touch, tmp_path / f"one {n}") for n in range(20)])
        theirs = other.compile([other.function(touch, tmp_path / f"other {n}") for n in range(20)])
        mine.start()
        theirs.start()
        assert mine.cancel() is True
        (tmp_path / "go").touch()
        theirs.wait(timeout=60)
        assert theirs.get() == [f"other {n}" for n in range(20)]
        assert mine.state == "cancelled"
        assert not list(tmp_path.glob("one *"))


@pytest.mark.parametrize("ending", ["join", "terminate", "drop"])
def test_the_end_of_one_leaves_the_other_alone(given: Any, tmp_path: Path, ending: str) -> None:
    with Batch(given) as stays:
        program = stays.compile(
            [stays.function(wait_for_file, tmp_path / "go")]
            + [stays.function(print, number) for number in range(20)]
        )
        program.start()
        goes = Batch(given)
        task = goes.function(print, "soon over")
        task.run(timeout=60)
        if ending == "join":
            goes.close()
            goes.join(timeout=60)
        elif ending == "terminate":
            goes.terminate()
        del goes, task
        gc.collect()
        (tmp_path / "go").touch()
        program.wait(timeout=60)
        assert program.stdout.get().split() == [str(number) for number in range(20)]
        more = stays.function(wait_for_file, tmp_path / "go on")
        more.start()
        # Only reports tell that.
        wait_until_running(more)
        (tmp_path / "go on").touch()
        assert more.get(timeout=60) == "go on"


# -- leaving ------------------------------------------------------------------------------


def on_scheduler(dask_scheduler: Any) -> dict[str, list[str]]:
    s = dask_scheduler
    return {
        "scheduler plugins": sorted(s.plugins),
        "plugins for workers": sorted(s.worker_plugins),
        "handlers": sorted([*s.handlers, *s.stream_handlers]),
    }


def on_worker(dask_worker: Any) -> dict[str, list[str]]:
    return {
        "plugins": sorted(dask_worker.plugins),
        "handlers": sorted(dask_worker.stream_handlers),
    }


def count_keys(dask_scheduler: Any) -> int:
    return len(dask_scheduler.tasks)


def count_ready(dask_worker: Any) -> int:
    return len(dask_worker.state.ready)


def use(batch: Batch) -> list[Any]:
    """Run tasks with values of all sizes, one that fails and one that is cancelled."""
    large = [batch.function(bytes, 1_000_000) for _ in range(3)]
    tasks = [*large, batch.function(len, large[0]), batch.function(int, "x")]
    program = batch.compile(tasks)
    program.run(timeout=60)
    assert tasks[3].get() == 1_000_000
    cancelled = batch.function(len, "abc")
    cancelled.start()
    cancelled.cancel()
    return [*tasks, program, cancelled]


def test_the_cluster_and_its_client_go_on(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        for given in (cluster, client, cluster.scheduler_address):
            with Batch(given) as batch:
                use(batch)
            assert cluster.status.name == "running"
            assert client.submit(pow, 2, 3, pure=False).result(timeout=60) == 8


def test_no_key_is_left(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        for given in (cluster, client, cluster.scheduler_address):
            with Batch(given) as batch:
                tasks = use(batch)
            del batch, tasks
            gc.collect()
            wait_until(lambda: client.run_on_scheduler(count_keys) == 0)


@pytest.mark.parametrize("kind", ["cluster", "client"])
def test_what_was_given_up_does_not_run(cluster: LocalCluster, tmp_path: Path, kind: str) -> None:
    with Client(cluster) as client:
        batch = Batch(client if kind == "client" else cluster)
        busy = [
            batch.options(priority=1).function(wait_for_file, tmp_path / "go") for _ in range(2)
        ]
        for task in busy:
            task.start()
        wait_until_running(*busy)
        program = batch.compile([batch.function(touch, tmp_path / f"{n}") for n in range(50)])
        program.start()
        batch.terminate()
        assert program.state == "cancelled"
        wait_until(lambda: client.run_on_scheduler(count_keys) == 0)
        wait_until(lambda: not any(client.run(count_ready).values()))
        (tmp_path / "go").touch()
        # What comes behind them runs behind them.
        with Batch(client) as behind:
            program = behind.compile([behind.function(where) for _ in range(50)])
            program.run(timeout=60)
        assert [path.name for path in tmp_path.iterdir()] == ["go"]


def test_nothing_piles_up(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        with Batch(cluster) as batch:
            use(batch)
        before = client.run_on_scheduler(on_scheduler), client.run(on_worker)
        for _ in range(5):
            with Batch(cluster) as batch:
                use(batch)
        assert (client.run_on_scheduler(on_scheduler), client.run(on_worker)) == before


def variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.endswith("_NUM_THREADS")}


# Here workers are forked, by a process that does not have what their nanny sets for them.
@in_own_process
def test_what_a_nanny_sets_for_its_worker_alone_does_not_reach_children() -> None:
    with LocalCluster(n_workers=1, dashboard_address=":0") as cluster, Batch(cluster) as batch:
        in_worker = batch.function(variables)
        in_child = batch.options(isolation="process").function(variables)
        executable = batch.process("env")
        batch.compile([in_worker, in_child, executable]).run(timeout=60)
        assert "OMP_NUM_THREADS" in in_worker.get()
        # What this process was started with is the user's, and does.
        ours = b"OMP_NUM_THREADS=" in Path("/proc/self/environ").read_bytes()
        assert ("OMP_NUM_THREADS" in in_child.get()) is ours
        assert ("OMP_NUM_THREADS=" in executable.stdout.get()) is ours
