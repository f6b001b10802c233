"""`why` of tasks that no worker begins, or that cannot be started any longer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import LocalCluster
from distributed.core import Status
from support.cluster_info import workers_of
from support.definitions import same
from support.waiting import wait_for_file, wait_until, wait_until_running

from daskbatch import Batch, BatchWarning


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    settings = {
        "daskbatch.unmet-timeout": None,
        "daskbatch.stall-timeout": "50ms",
        "distributed.worker.memory.pause": False,  # else Dask ends the pause that the test begins
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=1, processes=False, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
    ):
        yield cluster


def test_a_paused_worker_and_the_warning_of_it(cluster: LocalCluster) -> None:
    (worker,) = cluster.workers.values()
    with Batch(cluster) as batch:
        batch.function(same, 0).run(timeout=60)
        worker.status = Status.paused
        (address,) = workers_of(batch.client)
        wait_until(lambda: workers_of(batch.client)[address]["status"] == "paused")
        task = batch.function(same, 1)
        behind = batch.function(same, task)
        task.start()
        behind.start()
        reason = "waits for a worker: the only one is paused: its memory is almost full."
        assert task.why() == f"'same' (1) {reason}"
        assert behind.why() == f"'same' waits for 'same' (1) (it takes its result), which {reason}"
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the wait ends at once with it
            with pytest.raises(BatchWarning) as found:
                behind.wait(timeout=60)
        assert str(found.value) == (
            f"no task has run for 0.05 s: 'same' (1) {reason} 1 other task waits as well."
        )
        worker.status = Status.running
        assert behind.get(timeout=60) == 1


def test_no_worker() -> None:
    with (
        dask.config.set({"daskbatch.unmet-timeout": None}),
        LocalCluster(n_workers=0, processes=False, dashboard_address="127.0.0.1:0") as cluster,
        Batch(cluster) as batch,
    ):
        task = batch.function(same, 1)
        task.start()
        job = batch.job(same, 1, num_procs=2)
        job.start()
        for each in (task, job):
            assert each.why() == "'same' (1) waits for a worker: the cluster has none."
            each.cancel()
        assert job.why() == "'same' (1) was cancelled."


def test_slots_requests_and_gangs(cluster: LocalCluster, tmp_path: Path) -> None:
    with Batch(cluster) as batch:
        holder = batch.function(wait_for_file, tmp_path / "go")
        holder.start()
        wait_until_running(holder)
        job = batch.job(same, 1, num_procs=1)
        job.start()
        wait_until(lambda: "running tasks have the others" in job.why())
        assert "waits for a slot:" in job.why()
        asks = batch.options(resources={"GPU": 2}).function(same, 1)
        # A cluster that may grow does not refuse it.
        asks.start()
        said = "asks for the resources {'GPU': 2.0}; the largest worker has {'GPU': 0}."
        assert asks.why() == f"'same' (1) {said}"
        many = [batch.function(same, n) for n in range(3)]
        for each in many:
            each.start()
        assert "1 are taken" in many[2].why()
        program = batch.compile([batch.function(same, 1)])
        never = batch.function(same, 2)
        assert never.why() == "'same' (2) has not been started: call start()."
        for each in (job, asks):
            each.cancel()
        (tmp_path / "go").touch()
        for each in many:
            each.wait(timeout=60, check=True)
    closed = "has not been started, and never will be: its Batch has been closed."
    assert never.why() == f"'same' (2) {closed}"
    assert program.why() == f"0 of 1 tasks of 'same' are over; 'same' (1) {closed}"
    assert many[0].why() == "'same' (0) is done."
