"""The cases by which the original of the layer was tested, as far as they need real workers.

Those of its scheduler are in `test_execute`.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from support.jobs import (
    Barrier,
    after,
    identity,
    pair,
    read_of_processes,
    three_stages,
    where,
    write_for_process,
)
from support.waiting import wait_until

from daskbatch import Batch
from daskbatch.execute import ExecutionContext, Job, RmiTask, Task


def shuffle(ctx: ExecutionContext, directory: Path, maps: list[Task], first: int) -> list[Task]:
    """A barrier after the maps, and two tasks that each need the outputs of all maps."""
    barrier = Barrier(ctx, first)
    reduces: list[Task] = [
        RmiTask(ctx, first + n, read_of_processes, (directory, list(range(10)))) for n in (1, 2)
    ]
    after([barrier], maps)
    after(reduces, [barrier])
    return [barrier, *reduces]


def test_results_that_a_killed_worker_had_are_made_again(tmp_path: Path) -> None:
    """A shuffle is counted, a worker is killed, it is counted again; and all once more."""
    with Batch(num_workers=2) as batch, ExecutionContext(batch) as ctx:
        maps: list[Task] = [RmiTask(ctx, n, write_for_process, (tmp_path, n)) for n in range(10)]
        for turn in range(3):
            if turn:
                # Kill a worker that has outputs: the maps are done, but what they made is gone.
                pid, _, _ = (tmp_path / "0").read_text().split()
                os.kill(int(pid), signal.SIGKILL)
                wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists())
            for task in maps:
                task.dependents = set()  # the barrier of the job before is not a task of this job
            rest = shuffle(ctx, tmp_path, maps, 100 * (turn + 1))
            found = list(ctx.execute(Job(ctx, [*maps, *rest]), attempts=2))
            assert found == [*maps, *rest]
            assert [task.result() for task in rest[1:]] == [45, 45]
            assert maps[0].attempts > turn


def test_many_workers() -> None:
    """The mean of 1 to 99 on eight workers, which also share one process."""
    with (
        LocalCluster(
            n_workers=8, threads_per_worker=1, processes=False, dashboard_address=":0"
        ) as cluster,
        ExecutionContext(cluster) as ctx,
    ):
        assert ctx.await_workers(8, connect_timeout=60) == 8
        tasks: list[Task] = [RmiTask(ctx, n, identity, (n,)) for n in range(1, 100)]
        found = [task.result() for task in ctx.execute(Job(ctx, tasks))]
        assert sum(found) / len(found) == 50
        for worker in ctx.workers:
            (task,) = ctx.execute(Job(ctx, [RmiTask(ctx, 0, where)]), workers=[worker])
            assert task.result() == worker.name


@pytest.mark.parametrize("size", [1, 2, 3, 5, 9])
def test_groups_with_a_barrier_between_them(shared_batch: Batch, size: int) -> None:
    with ExecutionContext(shared_batch) as ctx:
        job = three_stages(ctx, pair, size)
        found: list[Any] = list(ctx.execute(job))
        assert found == job.tasks
        assert [task.result() for task in found if task.group != "barrier"] == [
            (stage, number) for stage in range(3) for number in range(size)
        ]
        assert {task.attempts for task in found} == {1}


def test_dependencies_of_each_on_each(shared_batch: Batch) -> None:
    """100 × 100 dependencies without a barrier: the scheduler tracks them all."""
    with ExecutionContext(shared_batch) as ctx:
        first: list[Task] = [RmiTask(ctx, n, identity, (n,)) for n in range(100)]
        second: list[Task] = [RmiTask(ctx, 100 + n, identity, (n,)) for n in range(100)]
        after(second, first)
        tasks = [*second, *first]
        assert len(list(ctx.execute(Job(ctx, tasks)))) == 200
        assert max(t.started_on for t in first) <= min(t.stopped_on for t in second)  # type: ignore[type-var]
