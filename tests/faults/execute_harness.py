"""Executes random jobs while workers are killed, and checks the results.

``PYTHONPATH=tests python -m faults.execute_harness --seeds 0-49`` does so for many seeds. A seed
determines the jobs and the times of the kills: runs of one seed are similar, but not equal.

For each job, the harness checks: its results are right, or it raises the exception of the user's
function; it yields each task once; it does not hang; and after it has ended, no thread and no
task of it remains.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
from distributed import LocalCluster
from support.jobs import Barrier, Prefers, after, large
from support.scaling import scale
from support.waiting import wait_until

from daskbatch import Batch, WorkerLost
from daskbatch.execute import DependenciesFailed, ExecutionContext, Job, RmiTask, Task

#: A job must end within this time.
JOB_TIMEOUT_SECONDS = 90.0

#: How long a job waits for a worker that may execute its tasks, as Dask's configuration has it.
UNMET_TIMEOUT = "20s"

#: The numbers of workers of the clusters: of an embedded one, and of a local one of Dask.
EMBEDDED, LOCAL = 3, 2

#: After a cluster has had no worker for this time, the harness adds one, as an operator does: its
#: nannies do not restart a worker that is killed while it starts.
EMPTY_CLUSTER_SECONDS = 15.0


# -- functions of the tasks ----------------------------------------------------------------------


def work(seconds: float, value: Any) -> Any:
    """Run for some time, partly in Python code, and return the value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        time.sleep(0.002)
    return value


def put_output(directory: Path, number: int, seconds: float) -> int:
    """Write an output file atomically, as a map task does."""
    value = work(seconds, number * number)
    partial = directory / f"{number}.{os.getpid()}.{time.monotonic_ns()}"
    partial.write_text(str(value))
    partial.rename(directory / str(number))
    return int(value)


def add_outputs(directory: Path, numbers: Sequence[int], lose: int | None, seconds: float) -> int:
    """Add outputs up. The first call deletes the output `lose`, on purpose."""
    work(seconds, None)
    if lose is not None:
        with contextlib.suppress(FileExistsError):
            (directory / "lost").mkdir()
            (directory / str(lose)).unlink(missing_ok=True)
    missing = [number for number in numbers if not (directory / str(number)).exists()]
    if missing:
        raise DependenciesFailed({None: missing})
    return sum(int((directory / str(number)).read_text()) for number in numbers)


def fail_after(seconds: float, number: int) -> None:
    work(seconds, None)
    raise ValueError(number)


# -- jobs -------------------------------------------------------------------------------


@dataclass
class Example:
    """A job, with its right results by task id, or the exception that it must raise."""

    job: Job
    right: dict[Any, Any]
    error: type[Exception] | None = None
    how: dict[str, Any] = field(default_factory=dict)


def independent(ctx: ExecutionContext, chance: random.Random, _: Path) -> Example:
    count = chance.choice([20, 200, 1000])
    seconds = 0.5 / count
    tasks = [RmiTask(ctx, n, work, (chance.uniform(0, 2 * seconds), n)) for n in range(count)]
    return Example(Job(ctx, tasks), {n: n for n in range(count)})


def long_ones(ctx: ExecutionContext, chance: random.Random, _: Path) -> Example:
    tasks = [RmiTask(ctx, n, work, (chance.uniform(0.05, 0.3), n)) for n in range(12)]
    return Example(Job(ctx, tasks), {n: n for n in range(12)})


def stages(ctx: ExecutionContext, chance: random.Random, _: Path) -> Example:
    tasks: list[Task] = []
    before: list[Task] = []
    right: dict[Any, Any] = {}
    for stage in range(3):
        group: list[Task] = [
            RmiTask(ctx, (stage, n), work, (chance.uniform(0, 0.05), (stage, n))) for n in range(8)
        ]
        right.update({task.id: task.id for task in group})
        if before:
            barrier = Barrier(ctx, (stage, -1))
            after([barrier], before)
            after(group, [barrier])
            tasks.append(barrier)
        tasks += group
        before = group
    return Example(Job(ctx, tasks), right)


def shuffle(ctx: ExecutionContext, chance: random.Random, directory: Path) -> Example:
    maps = [RmiTask(ctx, n, put_output, (directory, n, chance.uniform(0, 0.05))) for n in range(10)]
    barrier = Barrier(ctx, 10)
    reduces = []
    right: dict[Any, Any] = {n: n * n for n in range(10)}
    for n in range(11, 17):
        numbers = chance.sample(range(10), 6)
        seconds = chance.uniform(0, 0.1)
        lose = chance.choice([None, numbers[0]])
        reduces.append(RmiTask(ctx, n, add_outputs, (directory, numbers, lose, seconds)))
        right[n] = sum(each * each for each in numbers)
    after([barrier], maps)
    after(reduces, [barrier])
    return Example(Job(ctx, [*maps, barrier, *reduces]), right)


def local(ctx: ExecutionContext, chance: random.Random, _: Path) -> Example:
    names = [worker.name for worker in ctx.workers] or ["0"]
    tasks = [
        Prefers(
            ctx,
            n,
            work,
            (chance.uniform(0, 0.1), n),
            degrees={name: chance.choice([-1, 0, 1, 3]) for name in names[1:]},
        )
        for n in range(30)
    ]
    return Example(Job(ctx, tasks), {n: n for n in range(30)})


def large_results(ctx: ExecutionContext, chance: random.Random, _: Path) -> Example:
    sizes = [chance.choice([1000, 100_000, 3_000_000]) for _ in range(20)]
    tasks = [RmiTask(ctx, n, large, (size,)) for n, size in enumerate(sizes)]
    return Example(Job(ctx, tasks), {n: bytes(size) for n, size in enumerate(sizes)})


def failing(ctx: ExecutionContext, chance: random.Random, _: Path) -> Example:
    tasks: list[Task] = [RmiTask(ctx, n, work, (0.1, n)) for n in range(20)]
    tasks.insert(10, RmiTask(ctx, 99, fail_after, (chance.uniform(0, 0.1), 99), priority=9.5))
    return Example(Job(ctx, tasks), {n: n for n in range(20)}, ValueError, {"attempts": 2})


def through_futures(ctx: ExecutionContext, chance: random.Random, _: Path) -> Example:
    class Calling(Task):
        def execute(self, scheduler: Any, worker: Any) -> Any:
            return scheduler.call(worker, work, (0.05, self.id))

    return Example(Job(ctx, [Calling(ctx, n) for n in range(12)]), {n: n for n in range(12)})


EXAMPLES: list[Callable[[ExecutionContext, random.Random, Path], Example]] = [
    independent,
    long_ones,
    stages,
    shuffle,
    local,
    large_results,
    failing,
    through_futures,
]


# -- running them -----------------------------------------------------------------------


@dataclass
class Tally:
    """The violations that were found, and the numbers of events."""

    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Tally) -> None:
        self.violations += other.violations
        self.counts += other.counts

    def __str__(self) -> str:
        seen = ", ".join(f"{name} {count}" for name, count in sorted(self.counts.items()))
        return f"{seen}; violations: {len(self.violations)}"


def pids(ctx: ExecutionContext) -> list[int]:
    return list(ctx.batch.client.run(os.getpid, on_error="ignore").values())


def add_worker_if_empty(ctx: ExecutionContext, cluster: Any, over: threading.Event) -> None:
    """Add a worker to a cluster that has had none for a while, until the job is over."""
    empty_since = None
    while not over.wait(0.2):
        if ctx.worker_count:
            empty_since = None
        elif empty_since is None:
            empty_since = time.monotonic()
        elif time.monotonic() - empty_since > EMPTY_CLUSTER_SECONDS:
            scale(cluster, len(cluster.worker_spec) + 1)
            empty_since = None


def run_example(
    ctx: ExecutionContext, cluster: Any, make: Any, seed: int, directory: Path, tally: Tally
) -> None:
    """Execute a job, kill workers meanwhile, and check the results."""
    chance = random.Random(f"{seed}-{make.__name__}")
    directory.mkdir(parents=True)
    what = f"seed {seed}, {make.__name__}"
    example = make(ctx, chance, directory)
    ordered = chance.random() < 0.5
    concurrency = chance.choice([1, 1, 2, 3])
    victims = pids(ctx)
    over = threading.Event()

    def kill() -> None:
        if over.wait(chance.uniform(0.0, 0.4)):
            return
        for _ in range(chance.choice([1, 1, 2])):
            with contextlib.suppress(ProcessLookupError):
                if victims:
                    os.kill(victims.pop(chance.randrange(len(victims))), signal.SIGKILL)
                    tally.counts["killed"] += 1

    helpers = [threading.Thread(target=kill)]
    if cluster is not None:
        helpers.append(threading.Thread(target=add_worker_if_empty, args=(ctx, cluster, over)))
    faulthandler.dump_traceback_later(JOB_TIMEOUT_SECONDS, exit=True)
    yielded: list[Task] = []
    error: BaseException | None = None
    for helper in helpers:
        helper.start()
    try:
        execution = ctx.execute(
            example.job, order_results=ordered, concurrency=concurrency, **example.how
        )
        for task in execution:
            yielded.append(task)
            if task.id in example.right and task.result() != example.right[task.id]:
                tally.violations.append(f"{what}: {task} returned {task.result()!r:.50}")
    except Exception as raised:
        error = raised
    finally:
        over.set()
        for helper in helpers:
            helper.join()
        faulthandler.cancel_dump_traceback_later()
    tally.counts[make.__name__] += 1
    tally.counts["executed again"] += sum(task.attempts > 1 for task in example.job.tasks)
    if len(set(yielded)) < len(yielded):
        tally.violations.append(f"{what}: a task was yielded twice")
    if error is None and example.error is not None:
        tally.violations.append(f"{what}: the exception of the user's function was not raised")
    if isinstance(error, WorkerLost) and ctx.worker_count < (
        EMBEDDED if cluster is None else LOCAL
    ):
        # The tasks were allowed on one worker only, and its nanny does not restart it. It may have
        # been lost in the example before.
        tally.counts["lost for good"] += 1
    elif error is not None and (example.error is None or type(error) is not example.error):
        tally.violations.append(f"{what}: {type(error).__name__}: {error}")
    if error is None and len(yielded) < len(example.job.tasks):
        tally.violations.append(f"{what}: {len(yielded)} tasks were yielded")
    if error is None and ordered and yielded != example.job.tasks:
        tally.violations.append(f"{what}: the tasks were not yielded in the order of the job")
    try:
        wait_until(
            lambda: not threads_of_jobs() and not ctx.batch._session.dispatcher.outcomes.unfinished
        )
    except AssertionError:
        tally.violations.append(f"{what}: threads or tasks remain: {threads_of_jobs()}")


def threads_of_jobs() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("daskbatch-job")]


@contextlib.contextmanager
def context(seed: int) -> Iterator[tuple[ExecutionContext, Any]]:
    """A context on an embedded cluster, or on one of workers with several threads; that cluster."""
    if seed % 2:
        with (
            LocalCluster(
                n_workers=LOCAL, threads_per_worker=2, dashboard_address=":0", silence_logs=50
            ) as cluster,
            ExecutionContext(cluster) as ctx,
        ):
            yield ctx, cluster
    else:
        with Batch(num_workers=EMBEDDED) as batch, ExecutionContext(batch) as ctx:
            yield ctx, None


def run_seed(seed: int, directory: Path) -> Tally:
    """Execute all examples of a seed on one cluster."""
    tally = Tally()
    remaining = list(EXAMPLES)
    while remaining:
        unmet = {"daskbatch.unmet-timeout": UNMET_TIMEOUT}
        with dask.config.set(unmet), context(seed) as (ctx, cluster):
            while remaining:
                make = remaining.pop(0)
                place = directory / f"{seed}-{make.__name__}"
                run_example(ctx, cluster, make, seed, place, tally)
                try:
                    # A nanny restarts a killed worker, but may fail to if the worker is
                    # killed while it starts. Then another cluster is needed.
                    wait_until(lambda: ctx.worker_count >= 2, seconds=15)
                except AssertionError:
                    tally.counts["another cluster"] += 1
                    break
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-4", help="such as 0-49, or 7,9")
    given = parser.parse_args()
    seeds: list[int] = []
    for each in given.seeds.split(","):
        first, _, last = each.partition("-")
        seeds += range(int(first), int(last or first) + 1)
    tally = Tally()
    for seed in seeds:
        began = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="faults-") as directory:
            found = run_seed(seed, Path(directory))
        tally.add(found)
        print(f"seed {seed}: {time.monotonic() - began:.1f} s, {found}", flush=True)
        for each in found.violations:
            print(f"  {each}", flush=True)
    print(f"seeds {given.seeds}: {tally}", flush=True)
    return bool(tally.violations)


if __name__ == "__main__":
    # Import this module, so that the workers import it too, and no function is sent by value.
    from faults import execute_harness

    sys.exit(execute_harness.main())
