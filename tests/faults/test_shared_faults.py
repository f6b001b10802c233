"""A `DDict` keeps its promises while many use it and its workers are killed: a few runs."""

from __future__ import annotations

import itertools
import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from distributed.core import Status
from faults.shared_harness import run_many
from support import ddicts
from support.waiting import wait_until

from daskbatch import Batch, DDict, ServiceLost
from daskbatch.shared import creation


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("replicas", "numbers"), [(2, [0]), (1, [0])])
def test_what_was_acknowledged_is_kept_or_told_as_lost(
    replicas: int, numbers: list[int], tmp_path: Path
) -> None:
    tally = run_many(numbers, replicas, tmp_path)
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.counts["killed"] == replicas * len(numbers)


def _members(dask_scheduler: Any) -> list[str]:
    """Return, on the scheduler, the workers that have the only shard."""
    (found,) = dask_scheduler.plugins["daskbatch-shared"]._objects.values()
    return [each.worker for each in found.layouts[0].replicas]


def await_copies(client: Client, gone: set[str]) -> list[str]:
    end = time.monotonic() + 60
    while True:
        found: list[str] = client.run_on_scheduler(_members)
        if len(found) == 2 and not gone & set(found):
            return found
        assert time.monotonic() < end, (found, gone)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_who_is_to_have_a_copy_may_die_too(pause: float) -> None:
    with Batch(num_workers=3) as batch:
        d = batch.ddict(shards=1, replicas=2)
        for number in range(60):
            d[number] = np.full(200_000, number)  # it takes a while to copy all that
        pids = batch.client.run(os.getpid)
        first, second = batch.client.run_on_scheduler(_members)
        (third,) = set(pids) - {first, second}
        os.kill(pids[second], signal.SIGKILL)
        time.sleep(pause)
        os.kill(pids[third], signal.SIGKILL)
        d["more"] = 1
        assert d.fetch_add("more") == 1
        assert first in await_copies(batch.client, {second, third})
        os.kill(pids[first], signal.SIGKILL)
        assert d["more"] == 2
        for number in range(60):
            assert np.array_equal(d[number], np.full(200_000, number))


@pytest.mark.slow
def test_the_worker_that_comes_in_the_place_of_another_has_the_copy() -> None:
    with Batch(num_workers=2) as batch:
        d = batch.ddict(shards=2, replicas=2)
        d.put_many({number: number for number in range(10)})
        for _ in range(2):
            pids = batch.client.run(os.getpid)
            first = batch.client.run_on_scheduler(_members)[0]
            os.kill(pids[first], signal.SIGKILL)
            await_copies(batch.client, {first})
            assert dict(d) == {number: number for number in range(10)}


def _pause(dask_worker: Any) -> None:
    dask_worker.memory_manager.memory_pause_fraction = False  # nothing else resumes it
    dask_worker.status = Status.paused


def _resume(dask_worker: Any) -> None:
    dask_worker.status = Status.running


def _statuses(dask_scheduler: Any) -> dict[str, Status]:
    return {each.address: each.status for each in dask_scheduler.workers.values()}


def test_a_worker_that_was_paused_has_the_copy_later() -> None:
    cluster = LocalCluster(
        n_workers=3, threads_per_worker=1, processes=False, dashboard_address=":0"
    )
    with cluster, Client(cluster) as client:
        d = DDict(client, shards=1, replicas=2)
        d["a"] = 1
        first, second = client.run_on_scheduler(_members)
        (third,) = set(client.run_on_scheduler(_statuses)) - {first, second}
        client.run(_pause, workers=[third])
        while client.run_on_scheduler(_statuses)[third] != Status.paused:
            time.sleep(0.01)
        (worker,) = (each for each in cluster.workers.values() if each.address == second)
        cluster.sync(worker.close)
        while len(client.run_on_scheduler(_members)) == 2:
            time.sleep(0.01)
        client.run(_resume, workers=[third])
        assert await_copies(client, {second}) == [first, third]
        assert d["a"] == 1


@pytest.mark.slow
def test_what_was_taken_out_is_copied_too() -> None:
    """A copy must also have the large values of past answers."""
    with Batch(num_workers=3) as batch:
        d = batch.ddict(shards=1, replicas=2)
        for number in range(3):
            d[number] = np.full(100_000, number)
        assert d.pop(0).sum() == 0
        pids = batch.client.run(os.getpid)
        first, second = batch.client.run_on_scheduler(_members)
        os.kill(pids[second], signal.SIGKILL)
        _, third = await_copies(batch.client, {second})
        os.kill(pids[first], signal.SIGKILL)
        assert await_copies(batch.client, {first, second})[0] == third
        assert d.popitem()[0] in (1, 2)
        assert len(d) == 1


def write_near(d: DDict) -> None:
    for number in itertools.count():
        d["last"] = number
        d.fetch_add("count")
        d.setdefault(("some", number % 10), number)
        d.pop(("some", number % 10))
        d.update({("many", each): bytes(20_000) for each in range(3)})


@pytest.mark.timeout(180)
def test_tasks_that_are_stopped_beside_a_shard_leave_it_and_its_copy_alike() -> None:
    """Nor do they crash the worker: there are frames with large buffers in their tracebacks."""
    with Batch(num_workers=2) as batch:
        d = batch.ddict(shards=1, replicas=2)
        d["last"] = -1
        wait_until(lambda: d.stats()[0]["copies"] == 1)
        worker = d.stats()[0]["worker"]
        (pid,) = batch.client.run(os.getpid, workers=[worker]).values()
        for _ in range(25):
            before = d["last"]
            task = batch.options(workers=[worker]).function(write_near, d)
            task.start()
            wait_until(lambda before=before: d["last"] not in (before, 0, 1, 2))
            task.cancel()
            wait_until(lambda task=task: task.state == "cancelled")
        (stats,) = d.stats()
        assert (stats["worker"], stats["copies"]) == (worker, 1)
        there = dict(d.items())
        os.kill(pid, signal.SIGKILL)
        assert dict(d.items()) == there


def test_it_is_saved_though_a_worker_dies_meanwhile(tmp_path: Path) -> None:
    with Batch(num_workers=3) as batch:
        d = batch.ddict(shards=3, replicas=2)
        d[ddicts.Telling()] = "in the first shard"
        d.put_many({number: number for number in range(300)})
        victim = psutil.Process(batch.client.run(os.getpid)[d.stats()[2]["worker"]])

        def kill() -> None:
            victim.kill()
            victim.wait(30)

        # The first shard is being written, and the last one is not yet.
        ddicts.Telling.tell = kill
        d.save(tmp_path / "state")
        assert not victim.is_running()
        with DDict.load(tmp_path / "state", batch) as loaded:
            assert loaded == d
            assert len(loaded) == 301


def test_what_is_lost_is_not_saved(tmp_path: Path) -> None:
    with Batch(num_workers=2) as batch:
        d = batch.ddict(shards=2)
        d["a"] = 1
        d.save(tmp_path / "state")
        victim = psutil.Process(batch.client.run(os.getpid)[d.stats()[1]["worker"]])
        victim.kill()
        victim.wait(30)
        with pytest.raises(ServiceLost, match="lost"):
            d.save(tmp_path / "state")
        with DDict.load(tmp_path / "state", batch) as loaded:
            assert loaded == {"a": 1}


def test_an_object_is_made_on_another_worker_if_one_dies_in_that_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with Batch(num_workers=2) as batch:
        pids = batch.client.run(os.getpid)
        make = creation.make_actors

        def kill_and_make(client: Client, kind: type, specs: Any) -> Any:
            for _, worker in specs:
                if worker in pids and len(pids) == 2:
                    os.kill(pids.pop(worker), signal.SIGKILL)
            return make(client, kind, specs)

        monkeypatch.setattr(creation, "make_actors", kill_and_make)
        with batch.ddict(name="d") as d:
            assert len(pids) == 1
            d["key"] = "kept"
            assert d["key"] == "kept"
