"""Workers with another daskbatch, without one, or with another Python get no tasks."""

from __future__ import annotations

import logging
import operator
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster, get_worker
from support.cluster_info import workers_of
from support.outside import outside_cluster
from support.waiting import wait_until

from daskbatch import Batch, BatchError, ServiceLost, SpecError, WorkerLost
from daskbatch.cluster.growth import missing_watch
from daskbatch.execute import ExecutionContext, Job, RmiTask

#: What a worker is started with: it pretends to have another daskbatch, or none.
PRETENCES = {
    "another": "import daskbatch\ndaskbatch.__version__ = '99.0'\n",
    "none": (
        "import importlib.util\n"
        "find_spec = importlib.util.find_spec\n"
        "importlib.util.find_spec = (\n"
        "    lambda name, *args: None if name == 'daskbatch' else find_spec(name, *args)\n"
        ")\n"
    ),
}


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with outside_cluster(1, 1) as cluster, Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        yield client


@contextmanager
def worker(client: Client, python: str, *options: str) -> Iterator[str]:
    """Start a further worker of the cluster; yields its address."""
    before = set(workers_of(client))
    command = [python, "-m", "distributed.cli.dask_worker", client.scheduler.address]
    command += ["--nthreads", "1", "--no-dashboard", *options]
    path = os.pathsep.join(filter(None, sys.path)) if python == sys.executable else os.getcwd()
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": path})
    try:
        wait_until(lambda: len(workers_of(client)) > len(before), "no worker")
        (address,) = set(workers_of(client)) - before
        yield address
    finally:
        process.terminate()
        process.wait(60)
        wait_until(lambda: len(workers_of(client)) == len(before), "it stays")


def double(number: int) -> int:
    return 2 * number


def own_address() -> str:
    return str(get_worker().address)


@pytest.mark.parametrize("pretence", PRETENCES)
def test_a_worker_with_other_software(
    client: Client, pretence: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    preload = tmp_path / "preload.py"
    preload.write_text(PRETENCES[pretence], "utf-8")
    words = "daskbatch 99.0" if pretence == "another" else "no daskbatch"
    caplog.set_level(logging.WARNING, "daskbatch")
    options = "--no-nanny", "--preload", str(preload)
    with Batch(client) as batch, worker(client, sys.executable, *options) as address:
        wait_until(lambda: words in caplog.text, "nothing is said")
        assert address in caplog.text
        use_all_but(batch, address)
        # Other clients use it.
        future = client.submit(operator.add, 1, 2, workers=[address], pure=False)
        assert future.result(60) == 3
        with pytest.raises(BatchError, match=f"{address} on .* and {words}"):
            Batch(client)


def use_all_but(batch: Batch, address: str) -> None:
    """Use a Batch in each way, and check that one of the workers is not used."""
    assert batch.num_workers == 1
    tasks: list[Any] = [batch.function(double, number) for number in range(20)]
    tasks += [batch.function(double, tasks[3]), batch.process("true")]
    tasks += [batch.options(isolation="process").function(double, 1)]
    tasks += [batch.options(walltime=1).function(double, 1)]
    tasks += [batch.options(cores=1).function(double, 1)]
    forbidden = batch.options(workers=address).function(double, 1)
    forbidden.start()
    batch.compile(tasks).run(60)
    used = {task.info.worker for task in tasks}
    assert len(used) == 1
    assert address not in used
    assert forbidden.state == "waiting"
    forbidden.cancel()
    context = ExecutionContext(batch)
    assert {worker.address for worker in context.workers} == used
    job = Job(context, [RmiTask(context, number, own_address, ()) for number in range(6)])
    assert {task.result() for task in context.execute(job)} == used
    dictionary = batch.ddict(shards=4)
    dictionary.put_many({number: number for number in range(20)})
    assert set(dictionary.workers_for(range(20))) == used


def test_a_cluster_of_workers_with_other_software_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(missing_watch, "_FIRST_SECONDS", 0.1)
    monkeypatch.setattr(missing_watch, "_INTERVAL_SECONDS", 0.1)
    preload = tmp_path / "preload.py"
    preload.write_text(PRETENCES["another"], "utf-8")
    with (
        dask.config.set({"daskbatch.unmet-timeout": "500ms"}),
        LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        Client(cluster, set_as_default=False) as client,
        Batch(client.scheduler.address) as batch,
    ):
        # With no worker at all, it waits.
        waiting = batch.function(double, 1)
        waiting.start()
        wait_until(lambda: "tasks wait for a worker: the cluster has none" in caplog.text, "silent")
        assert waiting.state == "waiting"
        with worker(client, sys.executable, "--no-nanny", "--preload", str(preload)) as address:
            words = f"{address} on .* has Python .* and daskbatch 99.0; tasks need "
            with pytest.raises(SpecError, match=f"'double' has no worker: .*{words}"):
                waiting.get(60)
            context = ExecutionContext(batch)
            assert context.workers == []
            job = Job(context, [RmiTask(context, 0, double, (1,))])
            with pytest.raises(WorkerLost, match=f"may execute task 0 has joined .*{words}"):
                list(context.execute(job))
            with pytest.raises(ServiceLost, match=f"ddict has no worker: .*{words}"):
                batch.ddict()


@pytest.mark.skipif(
    "DASKBATCH_OTHER_PYTHON" not in os.environ,
    reason="DASKBATCH_OTHER_PYTHON names no interpreter of another version that has distributed",
)
def test_a_worker_with_another_python(client: Client, caplog: pytest.LogCaptureFixture) -> None:
    python = os.environ["DASKBATCH_OTHER_PYTHON"]
    caplog.set_level(logging.WARNING, "daskbatch")
    with Batch(client) as batch, worker(client, python) as address:
        wait_until(lambda: "it gets no tasks of this Batch" in caplog.text, "nothing is said")
        use_all_but(batch, address)
        with pytest.raises(BatchError, match=f"{address} on .* has Python 3"):
            Batch(client)
