"""Compares jobs of `daskbatch.execute` with the same programs by `Batch.compile`, on two workers.

The programs: 10 000 tasks without dependencies; and 100 tasks, a barrier, and 100 tasks. Each run
creates the tasks, executes them and reads all results. A job must reach at least a fifth of the
rate of `Batch.compile`. The benchmark also measures how the CPU time of a job with a barrier grows
with the number of its tasks: with n * m dependencies it would grow with the square.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

from common import WORKERS, Table, seconds

from daskbatch import Batch
from daskbatch.execute import ExecutionContext, Job, RmiTask, Task

COUNT = 10_000
STAGE = 100


def noop(number: int) -> int:
    return number


class Barrier(Task):
    """A task without work: a task that depends on it depends on all tasks before it."""

    def execute(self, scheduler: Any, worker: Any) -> None:
        self.set_executing(worker)
        self.mark_done()


def independent_by_batch(batch: Batch) -> None:
    tasks = [batch.function(noop, number) for number in range(COUNT)]
    batch.compile(tasks).run()
    assert [task.result.get() for task in tasks] == list(range(COUNT))


def independent_by_job(ctx: ExecutionContext) -> None:
    tasks = [RmiTask(ctx, number, noop, (number,)) for number in range(COUNT)]
    assert [task.result() for task in ctx.execute(Job(ctx, tasks))] == list(range(COUNT))


def stages_by_batch(batch: Batch) -> None:
    first = [batch.function(noop, n, writes=[batch.write(f"first-{n}")]) for n in range(STAGE)]
    reads = [batch.read(f"first-{n}") for n in range(STAGE)]
    barrier = batch.function(noop, 0, reads=reads, writes=[batch.write("all")])
    second = [batch.function(noop, n, reads=[batch.read("all")]) for n in range(STAGE)]
    batch.compile([*first, barrier, *second]).run()
    assert [task.result.get() for task in second] == list(range(STAGE))


def stages_by_job(ctx: ExecutionContext, size: int = STAGE) -> None:
    first = [RmiTask(ctx, n, noop, (n,)) for n in range(size)]
    barrier = Barrier(ctx, size)
    second = [RmiTask(ctx, size + 1 + n, noop, (n,)) for n in range(size)]
    barrier.dependencies.update(first)
    barrier.dependents.update(second)
    found = [task.result() for task in ctx.execute(Job(ctx, [*first, barrier, *second]))]
    assert found[size + 1 :] == list(range(size))


def in_turns(first: Callable[[], None], second: Callable[[], None], repeat: int) -> float:
    """Return the ratio of the times of two functions.

    They run in turns, so that other load on the machine slows both down alike.
    """
    first()
    second()
    return statistics.median(seconds(first) / seconds(second) for _ in range(repeat))


def cpu_seconds(function: Callable[[], Any], repeat: int = 5) -> float:
    """Return the least CPU time of this process that a call of a function takes."""
    times = []
    for _ in range(repeat):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return min(times)


def main() -> None:
    with Batch(num_workers=WORKERS) as batch, ExecutionContext(batch) as ctx:
        table = Table("jobs: our rate over that of Batch.compile")
        table.row(
            f"{COUNT} tasks without dependencies",
            in_turns(lambda: independent_by_batch(batch), lambda: independent_by_job(ctx), 9),
            least=0.2,
        )
        table.row(
            f"{STAGE} x {STAGE} tasks with a barrier",
            in_turns(lambda: stages_by_batch(batch), lambda: stages_by_job(ctx), 15),
            least=0.2,
        )
        few, many = (cpu_seconds(lambda n=size: stages_by_job(ctx, n)) for size in (500, 4000))  # type: ignore[misc]
        table.row_at_most("CPU of 4000 x 4000 over that of 500 x 500", many / few, "×", 16.0)
        rate = COUNT / seconds(lambda: independent_by_job(ctx), 3)
        table.row("our rate", rate, "/s")
        table.end()


if __name__ == "__main__":
    main()
