"""What `cluster=` accepts: scheduler files; and what it says about addresses of other servers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster

from daskbatch import Batch, BatchPoolExecutor, DDict, SpecError


def add(shared: DDict, key: str) -> int:
    return int(shared.fetch_add(key))


def run_in_batch(batch: Batch, number: int) -> int:
    task = batch.function(abs, number)
    task.start()
    return int(task.get(timeout=60))


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A worker in a process of its own, with a nanny."""
    with LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster:
        yield cluster


@pytest.fixture
def scheduler_file(cluster: LocalCluster, tmp_path: Path) -> Path:
    path = tmp_path / "the schedüler.json"
    with Client(cluster) as client:
        client.write_scheduler_file(str(path))
    return path


def test_a_scheduler_file(
    cluster: LocalCluster, scheduler_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DASKBATCH_CLUSTER", str(scheduler_file))
    for named in (str(scheduler_file), scheduler_file, None):
        with Batch(named) as batch:
            assert batch.client.scheduler.address == cluster.scheduler_address
    with BatchPoolExecutor(cluster=scheduler_file) as executor:
        assert executor.submit(abs, -2).result(timeout=60) == 2
    shared = DDict(scheduler_file)
    shared["a"] = 1
    assert shared["a"] == 1
    shared.close()


def test_the_addresses_of_other_servers(cluster: LocalCluster) -> None:
    ((worker, details),) = cluster.scheduler_info["workers"].items()
    with pytest.raises(SpecError, match="is the address of a worker") as caught:
        Batch(worker)
    assert cluster.scheduler_address in str(caught.value)
    with pytest.raises(SpecError, match="is the address of a nanny"):
        Batch(details["nanny"])
    with pytest.raises(SpecError, match="is the address of a worker"):
        DDict(worker)


def test_asynchronous_clusters_are_told_what_to_do() -> None:
    async def make() -> None:
        async with (
            LocalCluster(
                n_workers=0, processes=False, asynchronous=True, dashboard_address=":0"
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            for given in (cluster, client):
                with pytest.raises(SpecError, match="without asynchronous=True"):
                    Batch(given)

    asyncio.run(make())


def test_children_of_a_cluster_in_this_process_share_data_and_use_the_batch() -> None:
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        Batch(cluster) as batch,
    ):
        assert cluster.scheduler_address.startswith("inproc")
        shared = batch.ddict(replicas=2)
        isolated = batch.options(isolation="process")
        tasks = [isolated.function(add, shared, "n") for _ in range(4)]
        tasks.append(batch.function(add, shared, "n"))
        batch.compile(tasks).run(timeout=60, check=True)
        assert shared["n"] == 5
        pid = isolated.function(os.getpid)
        nested = isolated.function(run_in_batch, batch, -3)
        batch.compile([pid, nested]).run(timeout=60, check=True)
        assert pid.get() != os.getpid()
        assert nested.get() == 3
