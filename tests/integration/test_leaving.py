"""Workers that leave in good order, by every way in which they can be told to."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, LocalCluster, get_worker
from support.cluster_info import workers_of
from support.scaling import scale
from support.waiting import wait_until

from daskbatch import Batch, WorkerLost
from daskbatch.batch.task import Task

#: A value of this size stays on its worker. Bytes.
LARGE = 200_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster that each test leaves with three workers, all of which may be new."""
    with LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address=":0", memory_limit=0
    ) as made:
        yield made


@pytest.fixture
def batch(cluster: LocalCluster) -> Iterator[Batch]:
    with Batch(cluster) as batch:
        scale_to(cluster, batch, 3)
        yield batch


def scale_to(cluster: LocalCluster, batch: Batch, workers: int, others: int = 0) -> None:
    """Have a cluster get workers, also in place of those that were retired by others.

    Parameters
    ----------
    others
        How many workers there are that the cluster object has not started.
    """

    def is_there() -> bool:
        for name, nanny in list(cluster.workers.items()):
            if nanny.status.name not in ("init", "starting", "running"):
                del cluster.workers[name]
                cluster.worker_spec.pop(name, None)
        if len(cluster.scheduler.running) == batch.num_workers == workers + others:
            return True
        # Again and again: if one of its workers ends at this moment, the cluster may give it up.
        scale(cluster, workers)
        return False

    wait_until(is_there, f"there are not {workers} workers")


# -- what tasks do ----------------------------------------------------------------------


def append(path: Path, go: Path, text: str = "") -> str:
    """Read and write a file, and wait in between: a second run would be seen."""
    path.with_suffix(".where").write_text(get_worker().address)
    with path.open("a") as file:
        file.write("begin ")
    wait_until(go.exists, "the task was not let through")
    with path.open("a") as file:
        file.write("end ")
    return text


def read_write_tasks(batch: Batch, root: Path, count: int, size: int = 0) -> list[Task]:
    tasks = []
    for number in range(count):
        path = root / f"file {number}"
        path.touch()
        access = {"reads": batch.read(path), "writes": batch.write(path)}
        tasks.append(batch.function(append, path, root / "go", "x" * size, **access))
    batch.compile(tasks).start()
    return tasks


def contents(root: Path, count: int) -> list[str]:
    return [(root / f"file {number}").read_text() for number in range(count)]


def await_begun(root: Path, count: int) -> None:
    wait_until(
        lambda: sum(path.stat().st_size > 0 for path in root.glob("file ?")) >= count,
        f"{count} tasks have not begun",
    )


def count_of(read: Any, keys: Sequence[Any]) -> int:
    return sum(read(key) == key for key in keys)


# -- scale ------------------------------------------------------------------------------


def test_scale_down_to_one_loses_nothing(
    cluster: LocalCluster, batch: Batch, tmp_path: Path
) -> None:
    once, twice = batch.ddict(shards=3), batch.ddict(replicas=2)
    queues = [batch.queue() for _ in range(3)]
    for number in range(30):
        once[number] = twice[number] = number
    for number, queue in enumerate(queues):
        queue.put(number)
    values = [batch.function(bytes, LARGE) for _ in range(9)]
    batch.compile(values).run(60)
    tasks = read_write_tasks(batch, tmp_path, 6, size=LARGE)
    await_begun(tmp_path, 3)

    scale(cluster, 1)
    # Shards and queues move before the tasks have ended.
    wait_until(lambda: len({shard["worker"] for shard in once.stats()}) == 1, "nothing moves")
    (tmp_path / "go").touch()
    for task in tasks:
        task.wait(60)
    wait_until(lambda: batch.num_workers == 1, "the workers have not left")

    assert contents(tmp_path, 6) == ["begin end "] * 6
    assert {len(task.get(60)) for task in tasks} == {LARGE}
    assert {len(each.get(60)) for each in values} == {LARGE}
    assert count_of(once.get, range(30)) == count_of(twice.get, range(30)) == 30
    assert [queue.get(timeout=60) for queue in queues] == [0, 1, 2]
    assert {shard["missing"] for shard in twice.stats()} == {1}

    scale_to(cluster, batch, 3)
    wait_until(lambda: {shard["missing"] for shard in twice.stats()} == {0}, "no copy was made")
    wait_until(lambda: len({shard["worker"] for shard in once.stats()}) == 3, "nothing spreads")
    assert count_of(once.get, range(30)) == count_of(twice.get, range(30)) == 30


def set_slow_actors(slow: bool) -> None:
    """Have layouts arrive late at the actors of this worker, and closing them take long."""
    module: Any = importlib.import_module("daskbatch.shared.actor")
    actor = module.SharedActor
    if not slow:
        actor.apply_layout, actor._close = module.original_methods
        return
    apply, close = module.original_methods = actor.apply_layout, actor._close

    async def apply_late(*args: Any) -> None:
        await asyncio.sleep(0.2)
        await apply(*args)

    def close_late(self: Any) -> None:
        self.state.close()
        time.sleep(1.0)
        close(self)

    actor.apply_layout, actor._close = apply_late, close_late


def test_a_shard_that_has_moved_is_not_served_where_it_was(
    cluster: LocalCluster, batch: Batch
) -> None:
    scale_to(cluster, batch, 1)
    first = list(workers_of(batch.client))
    batch.client.run(set_slow_actors, True, workers=first)
    try:
        d = batch.ddict(shards=4)
        d.update({number: number for number in range(30)})
        registry = cluster.scheduler.plugins["daskbatch-shared"]

        def workers() -> set[str]:
            """Return where the shards are; the client is not to learn of it."""
            found = registry._find(d._proxy.uid).layouts
            return {replica.worker for layout in found for replica in layout.replicas[:1]}

        scale(cluster, 3)
        wait_until(lambda: len(workers()) == 3, "nothing spreads")
        time.sleep(0.4)  # the late layouts have arrived, and the actors are not closed yet
        assert count_of(d.get, range(30)) == 30
    finally:
        batch.client.run(set_slow_actors, False, workers=first)


def test_scale_to_zero_and_up_again(cluster: LocalCluster, batch: Batch, tmp_path: Path) -> None:
    tasks = read_write_tasks(batch, tmp_path, 6)
    await_begun(tmp_path, 3)
    scale(cluster, 0)
    wait_until(lambda: not cluster.scheduler.running, "the workers do not begin to leave")
    (tmp_path / "go").touch()
    wait_until(lambda: batch.num_workers == 0, "the workers have not left")
    # A worker may begin one more before it learns that it leaves; none is begun and not ended.
    written = {"done": "begin end ", "waiting": ""}
    assert [written[task.state] for task in tasks] == contents(tmp_path, 6)
    assert sum(task.state == "done" for task in tasks) >= 3
    scale(cluster, 1)
    for task in tasks:
        task.get(60)
    assert contents(tmp_path, 6) == ["begin end "] * 6


# -- client.retire_workers --------------------------------------------------------------


def test_a_retired_worker_stays_away(cluster: LocalCluster, batch: Batch, tmp_path: Path) -> None:
    d = batch.ddict(shards=3)
    d.update({number: number for number in range(30)})
    tasks = read_write_tasks(batch, tmp_path, 6)
    await_begun(tmp_path, 3)
    client = batch.client
    retired = list(workers_of(client))[:2]
    nannies = [workers_of(client)[address]["nanny"] for address in retired]
    (tmp_path / "go").touch()
    assert sorted(client.retire_workers(retired)) == sorted(retired)
    for task in tasks:
        task.get(60)
    assert contents(tmp_path, 6) == ["begin end "] * 6
    assert count_of(d.get, range(30)) == 30
    # A nanny that would start another worker would still be there.
    wait_until(
        lambda: (
            not {n.address for n in cluster.workers.values() if n.status.name == "running"}
            & set(nannies)
        ),
        "the nannies have not ended",
    )
    assert batch.num_workers == 1
    # A worker whose shards no other one can take stays, as Dask's own values do.
    last = list(workers_of(client))
    assert client.retire_workers(last) == {}
    assert batch.function(abs, -1).start() is None
    assert count_of(d.get, range(30)) == 30
    assert batch.num_workers == 1


# -- past the time that is left ----------------------------------------------------------


def test_past_the_time_tasks_run_again_or_are_lost(cluster: LocalCluster, tmp_path: Path) -> None:
    with Batch(cluster) as batch, dask.config.set({"daskbatch.leave-timeout": "200ms"}):
        scale_to(cluster, batch, 2)
        names = ["lost", "restartable", "free"]
        tasks = {}
        for name in names:
            path = tmp_path / f"file {name}"
            access = {"reads": batch.read(path), "writes": batch.write(path)}
            if name == "free":
                access.pop("reads")
            factory = batch.options(restartable=name == "restartable", **access)
            tasks[name] = factory.function(append, path, tmp_path / f"go {name}")
        for name in names:
            _move_to_new_worker(batch, cluster, tasks[name], tmp_path / f"file {name}")
            # A second run has the only slot.
            (tmp_path / f"go {name}").touch()
            tasks[name].wait(60)
        with pytest.raises(WorkerLost, match=r"left the cluster .*leave-timeout.*it writes what"):
            tasks["lost"].get(60)
        assert tasks["lost"].state == "failed"
        assert tasks["restartable"].get(60) == tasks["free"].get(60) == ""
        assert (tmp_path / "file restartable").read_text() == "begin begin end "
        assert (tmp_path / "file free").read_text() == "begin begin end "


def _move_to_new_worker(batch: Batch, cluster: LocalCluster, task: Task, path: Path) -> None:
    """Start a task, and retire the worker that it runs on while it runs."""
    task.start()
    wait_until(lambda: path.exists() and path.read_text(), "the task has not begun")
    scale_to(cluster, batch, 2)
    worker = path.with_suffix(".where").read_text()
    assert list(batch.client.retire_workers([worker])) == [worker]


# -- signals ----------------------------------------------------------------------------


def test_sigterm_to_a_worker_lets_what_runs_end(batch: Batch, tmp_path: Path) -> None:
    d = batch.ddict(shards=3)
    d.update({number: number for number in range(30)})
    addresses = list(workers_of(batch.client))
    pids = batch.client.run(os.getpid)
    tasks = read_write_tasks(batch, tmp_path, 6)
    await_begun(tmp_path, 3)
    for address in addresses[:2]:
        os.kill(pids[address], signal.SIGTERM)
    (tmp_path / "go").touch()
    for task in tasks:
        task.get(60)
    assert contents(tmp_path, 6) == ["begin end "] * 6
    assert count_of(d.get, range(30)) == 30


def test_an_executable_that_gets_sigterm_with_its_worker_has_not_failed(
    batch: Batch, tmp_path: Path
) -> None:
    program = 'echo $$ >> "$0/pids"; test -e "$0/go" || exec sleep 600'
    task = batch.process("sh", "-c", program, tmp_path)
    task.start()
    pids = tmp_path / "pids"
    wait_until(lambda: pids.exists() and pids.read_text(), "it has not begun")
    child = psutil.Process(int(pids.read_text()))
    worker = next(pid for pid in batch.client.run(os.getpid).values() if _is_above(pid, child))
    (tmp_path / "go").touch()
    # As a batch system does at the end of a job's time.
    child.terminate()
    os.kill(worker, signal.SIGTERM)
    assert task.get(60) == 0
    assert len(pids.read_text().split()) == 2


def _is_above(pid: int, child: psutil.Process) -> bool:
    return pid in {parent.pid for parent in child.parents()}


def _terminate_child() -> int:
    child = os.fork()
    if not child:
        time.sleep(600)
        os._exit(0)
    os.kill(child, signal.SIGTERM)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_sigterm_ends_what_a_task_has_forked(batch: Batch) -> None:
    task = batch.function(_terminate_child)
    task.run(60)
    assert task.get() == -signal.SIGTERM


@contextlib.contextmanager
def worker_by_command(cluster: LocalCluster, root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A worker with a nanny, which are processes of a group of their own."""
    command = [sys.executable, "-m", "distributed.cli.dask_worker", cluster.scheduler_address]
    with open(root / "worker.log", "wb") as log:
        process = subprocess.Popen(
            [*command, "--nthreads", "1", "--no-dashboard", "--host", "127.0.0.1"],
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(60)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_signal_to_a_worker_and_its_nanny(
    cluster: LocalCluster, tmp_path: Path, number: signal.Signals
) -> None:
    with Batch(cluster) as batch, worker_by_command(cluster, tmp_path) as process:
        scale_to(cluster, batch, 1, others=1)
        tasks = read_write_tasks(batch, tmp_path, 4)
        await_begun(tmp_path, 2)
        os.killpg(process.pid, number)
        if number == signal.SIGKILL:
            wait_until(lambda: batch.num_workers == 1, "its death is not noticed")
        (tmp_path / "go").touch()
        for task in tasks:
            task.wait(60)
        lost = [task for task in tasks if task.state == "failed"]
        # Of those that had not begun, none is lost, though no nanny of theirs can say so.
        assert len(lost) == (1 if number == signal.SIGKILL else 0)
        for task in lost:
            with pytest.raises(WorkerLost, match="it writes what it reads"):
                task.get()
        written = sorted(contents(tmp_path, 4))
        assert written == ["begin "] * len(lost) + ["begin end "] * (4 - len(lost))


# -- the end of a lifetime ----------------------------------------------------------------


def test_a_task_does_not_begin_on_a_worker_that_ends_before() -> None:
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=":0", lifetime="600s"
        ) as cluster,
        Batch(cluster) as batch,
    ):
        short = batch.options(walltime=60).function(abs, -1)
        long = batch.options(walltime=6000, name="long").function(abs, -2)
        batch.compile([short, long]).start()
        assert short.get(60) == 1
        assert long.state == "waiting"
        assert "has a walltime of 6000 s; the worker that stays longest ends in" in long.why()
        cluster.new_spec["options"]["lifetime"] = None
        scale(cluster, 2)
        assert long.get(60) == 2


# -- clusters that grow ----------------------------------------------------------------


def test_everything_waits_for_the_first_worker() -> None:
    with (
        dask.config.set({"daskbatch.unmet-timeout": "100ms"}),
        LocalCluster(
            n_workers=0, threads_per_worker=1, dashboard_address=":0", resources={"GPU": 1}
        ) as cluster,
        Batch(cluster) as batch,
    ):
        task = batch.options(resources={"GPU": 1}).function(abs, -1)
        task.start()
        with pytest.raises(TimeoutError):
            task.get(timeout=1)
        cluster.adapt(minimum=0, maximum=2, interval="100ms")
        assert task.get(60) == 1
        twice = batch.ddict(replicas=2)
        twice["a"] = 1
        assert twice.stats()[0]["missing"] == 1
        # A program of many tasks of unknown duration asks for more than one worker.
        program = batch.compile([batch.function(time.sleep, 0.5) for _ in range(40)])
        program.start()
        wait_until(lambda: batch.num_workers == 2, "the cluster does not grow")
        wait_until(lambda: twice.stats()[0]["missing"] == 0, "no copy was made")
        program.cancel()


def test_an_embedded_cluster_grows_and_shrinks() -> None:
    with (
        dask.config.set({"daskbatch.idle-timeout": "500ms"}),
        Batch(num_workers=(1, 2)) as batch,
    ):
        assert batch.num_workers == 1
        d = batch.ddict(shards=2)
        d.update({number: number for number in range(30)})
        program = batch.compile([batch.function(time.sleep, 0.3) for _ in range(20)])
        program.start()
        wait_until(lambda: batch.num_workers == 2, "it does not grow")
        program.wait(60)
        wait_until(lambda: batch.num_workers == 1, "it does not shrink")
        assert count_of(d.get, range(30)) == 30


# -- a thread that does not stop ----------------------------------------------------------


def _wait_in_c(begun: Path, pipe: Path) -> None:
    """Wait in a single call of a C function until the test writes to a named pipe."""
    import ctypes

    command = f"touch {shlex.quote(str(begun))}; cat {shlex.quote(str(pipe))} > /dev/null"
    ctypes.CDLL(None).system(command.encode())


def test_a_thread_that_does_not_stop_leaves_its_slot(tmp_path: Path) -> None:
    with (
        dask.config.set({"daskbatch.stop-grace": "200ms"}),
        Batch(num_workers=1) as batch,
    ):
        pipe = tmp_path / "pipe"
        os.mkfifo(pipe)
        stuck = batch.function(_wait_in_c, tmp_path / "begun", pipe)
        stuck.start()
        wait_until((tmp_path / "begun").exists, "it has not begun")
        assert stuck.cancel()
        other = batch.function(abs, -1)
        other.start()
        assert other.get(60) == 1
        assert batch.client.submit(abs, -2).result(60) == 2
        assert stuck.state == "running"
        pipe.write_bytes(b"end")
        stuck.wait(60)
        assert stuck.state == "cancelled"


def test_a_dictionary_without_a_batch_moves(cluster: LocalCluster) -> None:
    from daskbatch import DDict, Queue

    with Batch(cluster) as batch:
        scale_to(cluster, batch, 2)
    with Client(cluster) as client:
        d, queue = DDict(client, shards=2), Queue(client, replicas=2)
        d.update({number: number for number in range(30)})
        queue.put("a")
        worker = d.workers_for([0])[0]
        assert list(client.retire_workers([worker])) == [worker]
        assert count_of(d.get, range(30)) == 30
        assert queue.get(timeout=60) == "a"


@pytest.mark.timeout(100)
def test_a_worker_leaves_to_which_shards_are_moving() -> None:
    """The moves end: nothing waits for the worker, and the shards stay where they are."""
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Batch(cluster) as batch,
    ):
        shared, copied = batch.ddict(shards=6), batch.ddict(replicas=2)
        content = {number: bytes(20_000) for number in range(30)}
        shared.update(content)
        copied.update(content)
        (first,) = cluster.scheduler.workers
        for some_have_moved in (False, True, True):
            scale(cluster, 2)
            wait_until(lambda: len(cluster.scheduler.workers) == 2, "no worker joins")
            (new,) = cluster.scheduler.workers.keys() - {first}
            if some_have_moved:
                wait_until(lambda new=new: new in str(shared.stats()), "no shard moves")
            batch.client.retire_workers([new])
            assert new not in cluster.scheduler.workers
            scale_to(cluster, batch, 1)
            assert dict(shared) == dict(copied) == content
