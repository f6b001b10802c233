"""A Batch goes on after each fault, and nothing piles up: threads, files, processes."""

from __future__ import annotations

import os
import signal
import sys
import time

import psutil
import pytest
from distributed import Worker
from support.waiting import spin, wait_until, wait_until_running

from daskbatch import Batch, TaskCancelled, TaskCrashed, TaskTimeout
from daskbatch.batch.task import Task

ROUNDS = 8


def cancel_running(task: Task) -> None:
    wait_until_running(task)
    assert task.cancel() is True


def one_round(batch: Batch) -> None:
    isolated = batch.options(isolation="process")
    crashing = isolated.function(os._exit, 3)
    leaving = batch.function(sys.exit, 4)
    late = batch.function(time.sleep, 60, timeout=0.05)
    slow = batch.process("sleep", "60", timeout=0.05)
    batch.compile([crashing, leaving, late, slow]).run(timeout=60)
    for task in (crashing, leaving):
        with pytest.raises(TaskCrashed):
            task.get()
    for task in (late, slow):
        with pytest.raises(TaskTimeout):
            task.get()
    for task in (batch.function(spin), isolated.function(spin), batch.process("sleep", "60")):
        task.start()
        cancel_running(task)
        task.wait(timeout=60)
        with pytest.raises(TaskCancelled):
            task.get()
    after = batch.function(len, "abc")
    after.run(timeout=60)
    assert after.get() == 3


def held(dask_worker: Worker | None = None) -> tuple[int, int, int]:
    me = psutil.Process()
    return me.num_fds(), me.num_threads(), len(me.children(recursive=True))


def all_held(batch: Batch) -> list[tuple[int, int, int]]:
    return [held(), *batch.client.run(held).values()]


@pytest.mark.slow
def test_nothing_piles_up_over_faults_of_tasks() -> None:
    with Batch(num_workers=1) as batch:
        for _ in range(3):
            one_round(batch)
        before = all_held(batch)
        for _ in range(ROUNDS):
            one_round(batch)
        # Files and threads of Dask itself come and go by a few.
        wait_until(
            lambda: all(
                now <= then + 3
                for some, others in zip(all_held(batch), before, strict=True)
                for now, then in zip(some, others, strict=True)
            )
        )
        batch.close()
        batch.join(timeout=60)


@pytest.mark.slow
def test_nothing_piles_up_over_deaths_of_workers() -> None:
    others = set(psutil.Process().children())
    with Batch(num_workers=1) as batch:
        (host,) = [
            each
            for each in psutil.Process().children()
            if each not in others and "daskbatch.cluster.embedded" in " ".join(each.cmdline())
        ]

        def die() -> None:
            (pid,) = batch.client.run(os.getpid).values()
            os.kill(pid, signal.SIGKILL)
            after = batch.options(isolation="process").function(len, "abc")
            after.run(timeout=60)
            assert after.get() == 3
            wait_until(lambda: batch.num_workers == 1)

        for _ in range(2):
            die()
        before = held()[:2], host.num_fds(), len(host.children(recursive=True))
        for _ in range(6):
            die()
        wait_until(
            lambda: (
                held()[1] <= before[0][1] + 2
                and held()[0] <= before[0][0] + 3
                and host.num_fds() <= before[1] + 4
                and len(host.children(recursive=True)) <= before[2]
            )
        )
