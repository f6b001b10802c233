"""Where a Batch runs, how it lives and how it ends."""

from __future__ import annotations

import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import Client, LocalCluster
from support.scaling import scale
from support.waiting import wait_for_file

import daskbatch
from daskbatch import (
    Batch,
    LifecycleError,
    ServiceLost,
    SpecError,
    SubmitAfterCloseError,
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster of one process with four threads, and one more with two."""
    with LocalCluster(
        n_workers=2, threads_per_worker=3, processes=False, dashboard_address=":0"
    ) as cluster:
        yield cluster


def squares(batch: Batch) -> list[int]:
    program = batch.compile([batch.function(pow, number, 2) for number in range(20)])
    program.run(timeout=60)
    return program.get()


def test_on_a_cluster_object(cluster: LocalCluster) -> None:
    with Batch(cluster) as batch:
        assert squares(batch) == [n * n for n in range(20)]
        assert batch.num_workers == 6
    assert cluster.status.name == "running", "a given cluster is never closed"


def test_on_an_address(cluster: LocalCluster) -> None:
    with Batch(cluster.scheduler_address) as batch:
        assert squares(batch) == [n * n for n in range(20)]


def test_on_a_client_which_stays_open(cluster: LocalCluster) -> None:
    with Client(cluster) as client:
        with Batch(client) as batch:
            assert squares(batch) == [n * n for n in range(20)]
            assert batch.client is client
        assert client.submit(pow, 2, 3).result() == 8


def test_two_batches_on_one_cluster(cluster: LocalCluster) -> None:
    with Batch(cluster) as one, Batch(cluster) as other:
        assert squares(one) == squares(other)


def test_the_environment_moves_a_script_to_a_cluster(
    cluster: LocalCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASKBATCH_CLUSTER", cluster.scheduler_address)
    # The script says how many workers it wants on a laptop: that is no error here.
    with Batch(num_workers=2) as batch:
        assert batch.client.scheduler.address == cluster.scheduler_address
        assert squares(batch) == [n * n for n in range(20)]


def test_so_does_the_configuration(cluster: LocalCluster) -> None:
    with dask.config.set({"daskbatch.cluster": cluster.scheduler_address}), Batch() as batch:
        assert batch.client.scheduler.address == cluster.scheduler_address


def test_a_cluster_that_grows_is_used() -> None:
    with (
        LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as cluster,
        Batch(cluster) as batch,
    ):
        program = batch.compile([batch.function(pow, number, 2) for number in range(40)])
        program.start()
        scale(cluster, 2)
        program.wait(timeout=60)
        assert sum(program.get()) == sum(n * n for n in range(40))
        assert batch.num_workers > 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"num_workers": 0}, "num_workers= must be a whole number from 1, not 0"),
        ({"num_workers": 1.5}, "num_workers= must be a whole number from 1, not 1.5"),
        ({"num_workers": 2, "cluster": "tcp://a:1"}, "it cannot change a given cluster"),
        (
            {"cluster": 7},
            "must be a scheduler's address, a scheduler file, a distributed.Client or a cluster",
        ),
    ],
)
def test_wrong_parameters(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said.replace("(", r"\(")) as caught:
        Batch(**arguments)
    assert isinstance(caught.value, SpecError)


def test_nobody_answers() -> None:
    with (
        dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
        pytest.raises(
            ServiceLost, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:1'"
        ) as caught,
    ):
        Batch("tcp://127.0.0.1:1")
    assert "does the scheduler run, is a firewall in between?" in str(caught.value)


def test_an_asynchronous_client_is_refused(cluster: LocalCluster) -> None:
    async def main() -> None:
        async with Client(cluster, asynchronous=True, set_as_default=False) as client:
            with pytest.raises(SpecError, match="asynchronous"):
                Batch(client)

    cluster.sync(main)


def test_what_a_batch_says_of_itself(batch: Batch) -> None:
    assert batch.num_workers == 2
    assert batch.client_id == 0
    assert batch.closed is False
    assert batch.dashboard_link.startswith("http://127.0.0.1:")
    assert "open, 2 workers" in repr(batch)


def test_workers_are_processes_of_their_own(batch: Batch) -> None:
    pids = set(batch.client.run(os.getpid).values())
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_workers_see_directory_environment_and_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "a directory with ünïcode"
    home.mkdir()
    (home / "beside_the_script.py").write_text("def answer():\n    return 42\n")
    monkeypatch.chdir(home)
    monkeypatch.setenv("DASKBATCH_TEST_VARIABLE", "seen")
    monkeypatch.syspath_prepend(str(home))
    import beside_the_script  # type: ignore[import-not-found]

    with Batch(num_workers=1) as batch:
        directory = batch.function(os.getcwd)
        variable = batch.function(os.environ.get, "DASKBATCH_TEST_VARIABLE")
        answer = batch.function(beside_the_script.answer)
        program = batch.compile([directory, variable, answer])
        program.run(timeout=60)
        assert program.get() == [str(home), "seen", 42]


def test_close_join_and_after(tmp_path: Path) -> None:
    batch = Batch(num_workers=1)
    early = batch.function(len, "abc")
    part = batch.function(len, "abc", name="part")
    whole = batch.compile([part], name="whole")
    d, queue = batch.ddict(), batch.queue(name="late")
    d["a"] = 1
    with pytest.raises(LifecycleError, match=r"close\(\) the Batch before join\(\)"):
        batch.join()
    started = batch.function(_await_conflicting_tasks, tmp_path / "done")
    started.start()
    batch.close()
    batch.close()
    assert batch.closed
    with pytest.raises(SubmitAfterCloseError, match="has been closed"):
        batch.function(len, "abc")
    with pytest.raises(SubmitAfterCloseError, match="has been closed"):
        batch.compile([])
    with pytest.raises(SubmitAfterCloseError, match="has been closed"):
        early.start()
    said = r"'len' has not been started, and its Batch has been closed: start it before that"
    with pytest.raises(LifecycleError, match=said):
        early.get()
    for task in (whole, part):
        said = f"'{task.name}' has not been started, and its Batch has been closed: start "
        with pytest.raises(LifecycleError, match=said):
            task.get()
    with pytest.raises(SubmitAfterCloseError, match="closed: nothing can be made or started any"):
        batch.ddict()
    batch.join(timeout=60)
    batch.join()
    with pytest.raises(SubmitAfterCloseError, match="closed: nothing can be made"), batch:
        pass
    assert (tmp_path / "done").exists(), "what is started runs to its end"
    assert started.get() == "touched", "results stay"
    said = r"DDict \w+ cannot be reached: its Batch has probably ended.*, or save\(\) it before"
    with pytest.raises(ServiceLost, match=said):
        d["a"]
    with pytest.raises(ServiceLost, match="Queue 'late' cannot be reached: .*with block$"):
        queue.get(timeout=60)
    batch.terminate()


def _await_conflicting_tasks(path: Path) -> str:
    path.touch()
    return "touched"


def test_join_in_time_or_not(tmp_path: Path) -> None:
    batch = Batch(num_workers=1)
    task = batch.function(wait_for_file, tmp_path / "go")
    task.start()
    batch.close()
    with pytest.raises(TimeoutError, match="1 tasks are not over after 0.2 s"):
        batch.join(timeout=0.2)
    (tmp_path / "go").touch()
    batch.join(timeout=60)


def test_terminate_gives_up_and_leaves_no_process(tmp_path: Path) -> None:
    batch = Batch(num_workers=2)
    pids = [*batch.client.run(os.getpid).values()]
    tasks = [batch.function(wait_for_file, tmp_path / "never") for _ in range(10)]
    batch.compile(tasks).start()
    batch.terminate()
    batch.terminate()
    assert {task.state for task in tasks} == {"cancelled"}
    with pytest.raises(daskbatch.TaskCancelled, match=r"'wait_for_file\[0\]' was cancelled"):
        tasks[0].get()
    _, alive = psutil.wait_procs([psutil.Process(p) for p in pids if psutil.pid_exists(p)], 10)
    assert not alive


def test_a_block_that_raises_terminates(tmp_path: Path) -> None:
    with pytest.raises(KeyError), Batch(num_workers=1) as batch:
        task = batch.function(wait_for_file, tmp_path / "never")
        task.start()
        raise KeyError("mine")
    assert task.state == "cancelled"
    assert batch.closed


def test_a_batch_that_is_dropped_ends() -> None:
    """As in a notebook, when a record that makes one is run a second time."""
    batch = Batch(num_workers=1)
    pid = next(iter(batch.client.run(os.getpid).values()))
    worker = psutil.Process(pid)
    del batch
    gc.collect()
    _, alive = psutil.wait_procs([worker], 30)
    assert not alive


def test_fence(batch: Batch, tmp_path: Path) -> None:
    task = batch.function(wait_for_file, tmp_path / "go")
    task.start()
    with pytest.raises(TimeoutError, match="1 tasks are not over after 0.1 s"):
        batch.fence(timeout=0.1)
    (tmp_path / "go").touch()
    batch.fence(timeout=60)
    assert task.state == "done"


def test_many_threads_use_one_batch(batch: Batch) -> None:
    found: list[int] = []

    def use(base: int) -> None:
        tasks = [batch.function(pow, base, 2) for _ in range(50)]
        for task in tasks:
            task.start()
        found.extend(task.get(timeout=60) for task in tasks)

    threads = [threading.Thread(target=use, args=(base,)) for base in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(base * base for base in range(4) for _ in range(50))


def test_accesses_among_the_arguments_are_refused(batch: Batch) -> None:
    with pytest.raises(SpecError, match="there is an access among the arguments"):
        batch.function(pow, (2, 3), [batch.read("a")], 5)
    with pytest.raises(SpecError, match="there is an access among the arguments"):
        batch.function(pow, (2, 3), [batch.read("a")], [batch.write("b")], None)
    with pytest.raises(SpecError, match="there is an access among the arguments"):
        batch.function(pow, (2, 3), batch.read("a"))
    with pytest.raises(SpecError, match="there is an access among the arguments"):
        batch.function(pow, 2, 3, {"deep": (batch.read("a"),)})


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"], ids=["none", "http"])
def test_somebody_else_at_the_address(answer: bytes) -> None:
    def talk() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            connections.append(connection)
            connection.sendall(answer)

    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=talk, daemon=True).start()
        address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            pytest.raises(ServiceLost, match="no Dask scheduler answers at") as caught,
        ):
            Batch(address)
        if not answer:
            assert "there was no answer within 1." in str(caught.value)
        listener.shutdown(socket.SHUT_RDWR)
        for connection in connections:
            connection.close()


def test_wrong_types_are_said_at_once(batch: Batch) -> None:
    task = batch.function(len, "")
    for wrong in (5, b"", {}):
        with pytest.raises(SpecError, match="give a list of what batch.read"):
            batch.function(len, "", reads=wrong)  # type: ignore[arg-type]
    for path in ("file.txt", Path("file.txt")):
        with pytest.raises(SpecError, match=r"give reads=batch.read\(.*'file.txt'\)"):
            batch.function(len, "", reads=path)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="reads= holds a write of .*: put it into writes="):
        batch.function(len, "", reads=[batch.write("file.txt")])
    with pytest.raises(SpecError, match="cwd= must be a path, not 5"):
        batch.process("ls", cwd=5)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="name= must be a text, not 5"):
        batch.compile([task], name=5)  # type: ignore[arg-type]
    for tasks in (5, task):
        with pytest.raises(daskbatch.GraphError, match="compile takes a list of tasks"):
            batch.compile(tasks)  # type: ignore[arg-type]
    program = batch.compile([task])
    with pytest.raises(daskbatch.GraphError, match="explain takes two tasks; 0 is not a task"):
        program.explain(0, task)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="timeout= must be a number of seconds or a timedelta"):
        batch.fence("5")  # type: ignore[arg-type]
    batch.fence(float("inf"))
