"""Gangs on clusters that change: restarted, with workers that retire or join; and beside Dask."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import dask
import pytest
from distributed import Client, LocalCluster
from support.cluster_info import workers_of
from support.gangs import TIMEOUT_SECONDS, gangs, no_slot_is_held, start, wait_for
from support.outside import outside_cluster
from support.scaling import scale
from support.waiting import wait_until

from daskbatch import Batch, BatchError


def in_process(**options: Any) -> LocalCluster:
    options = {"n_workers": 2, "threads_per_worker": 1, **options}
    return LocalCluster(processes=False, protocol="tcp", dashboard_address=":0", **options)


def test_a_restart_ends_gangs_and_later_ones_get_their_slots(tmp_path: Path) -> None:
    with outside_cluster(workers=2, threads=1) as cluster, Batch(cluster) as batch:
        two = batch.options(cores=2, isolation="thread")
        runs = start(two.function(wait_for, tmp_path / "end", tmp_path / "begun"))
        wait_until((tmp_path / "begun").exists)
        waits = start(two.function(len, "abc"))
        wait_until(lambda: len(gangs(batch)) == 2)
        batch.client.restart()
        for task in (runs, waits):
            with pytest.raises(BatchError):
                task.get(timeout=TIMEOUT_SECONDS)
        assert start(two.function(len, "ab")).get(timeout=TIMEOUT_SECONDS) == 2
        no_slot_is_held(batch)


def test_a_worker_that_retires_gives_its_gang_time_and_the_next_one_waits(tmp_path: Path) -> None:
    with (
        dask.config.set({"daskbatch.leave-timeout": "3s"}),
        in_process() as cluster,
        Batch(cluster) as batch,
    ):
        two = batch.options(cores=2, isolation="thread")
        runs = start(two.function(wait_for, tmp_path / "end", tmp_path / "begun"))
        wait_until((tmp_path / "begun").exists)
        waits = start(two.function(len, "abc"))
        wait_until(lambda: len(gangs(batch)) == 2)

        async def retire(dask_scheduler: Any) -> str:
            """Begin to retire the worker that does not run the task."""
            (address,) = [
                address
                for address, worker in dask_scheduler.workers.items()
                if all("daskbatch_slot" in str(task.key) for task in worker.processing)
            ]
            asyncio.get_running_loop().create_task(dask_scheduler.retire_workers([address]))
            return str(address)

        retired = batch.client.run_on_scheduler(retire)
        assert retired in cluster.scheduler_info["workers"]
        wait_until(lambda: retired not in workers_of(batch.client))
        (tmp_path / "end").touch()
        assert runs.get(timeout=TIMEOUT_SECONDS) == "end"
        assert waits.state == "waiting"
        # One slot is no room for it, and is not held by it.
        assert start(batch.function(len, "a")).get(timeout=TIMEOUT_SECONDS) == 1
        scale(cluster, 3)  # the cluster counts the retired one
        assert waits.get(timeout=TIMEOUT_SECONDS) == 3
        no_slot_is_held(batch)


@pytest.mark.parametrize("saturation", [1.0, "inf"])
def test_gangs_beside_tasks_of_dask(saturation: Any, tmp_path: Path) -> None:
    """With `inf`, Dask sends all tasks to the workers at once, and keeps no queue itself."""
    with (
        dask.config.set({"distributed.scheduler.worker-saturation": saturation}),
        in_process() as cluster,
        Batch(cluster) as batch,
        Client(cluster.scheduler_address, set_as_default=False) as client,
    ):
        two = batch.options(cores=2, isolation="thread")
        log = tmp_path / "log"
        log.touch()

        def note(what: str) -> str:
            with log.open("a") as file:
                file.write(f"+{what}\n")
                file.flush()
                time.sleep(0.005)
                file.write(f"-{what}\n")
            return what

        plain = client.map(note, [f"plain{n}" for n in range(60)], pure=False)
        tasks = [two.function(note, f"gang{n}") for n in range(6)]
        tasks += [batch.options(isolation="thread").function(note, f"task{n}") for n in range(12)]
        batch.compile(tasks, name="mixed").run(timeout=TIMEOUT_SECONDS)
        assert client.gather(plain) == [f"plain{n}" for n in range(60)]
        running: dict[str, int] = {}
        for line in log.read_text().splitlines():
            if line[0] == "-":
                del running[line[1:]]
                continue
            running[line[1:]] = 2 if line.startswith("+gang") else 1
            assert sum(running.values()) <= 2, running
        no_slot_is_held(batch)


def test_workers_of_an_elastic_cluster_join_while_gangs_wait() -> None:
    with in_process(n_workers=1) as cluster, Batch(cluster) as batch:
        tasks = [
            start(batch.options(cores=cores, isolation="thread").function(pow, cores, 2))
            for cores in (2, 3)
        ]
        wait_until(lambda: len(gangs(batch)) == 2)
        for workers in (2, 3):
            scale(cluster, workers)
            task = tasks.pop(0)
            assert task.get(timeout=TIMEOUT_SECONDS) == workers**2
        scale(cluster, 1)
        wait_until(lambda: len(workers_of(batch.client)) == 1)
        assert start(batch.function(len, "a")).get(timeout=TIMEOUT_SECONDS) == 1
        no_slot_is_held(batch)
