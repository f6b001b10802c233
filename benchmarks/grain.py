"""Times fine-grained graphs: what a task costs where tasks wait for tasks of other slots.

The patterns are four of Task Bench (Slaughter et al., SC20): in each step, a task takes values of
some tasks of the step before. METG(50 %) is the shortest task with which half of the slots' time
is spent in tasks. Compared with Dask's graph, with a `ProcessPoolExecutor` whose calls a loop
submits as soon as their inputs are there, and, where they are installed, with Ray and Parsl.

A task consumes a fixed amount of CPU time, and the overhead is the slots' time for each task
minus that.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import queue
import random
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from common import WORKERS, Table, raw_dask, seconds, workers_of
from dask.task_spec import Task as DaskTask
from dask.task_spec import TaskRef
from distributed import Client

from daskbatch import Batch, BatchPoolExecutor

WIDTH = 8
STEPS = 60

#: The CPU time of a task. Seconds.
KERNELS = (0.0002, 0.001, 0.005)

#: A graph: for each task the positions of those whose values it takes, which come before it.
Pattern = list[tuple[int, ...]]

#: Runs a pattern of tasks with a kernel of some seconds.
Run = Callable[[Pattern, float], None]

#: Starts a task system.
Start = Callable[[], AbstractContextManager[Run]]


def work(seconds_of_cpu: float, *inputs: int) -> int:
    """Consume CPU time; return how many tasks have led to this one, at most 1000."""
    end = time.thread_time() + seconds_of_cpu
    while time.thread_time() < end:
        pass
    return min(1000, 1 + sum(inputs))


def make_pattern(name: str, width: int = WIDTH, steps: int = STEPS) -> Pattern:
    rng = random.Random(f"{name} {width}")
    bits = int(math.log2(width))
    graph: Pattern = []
    before: list[int] = []
    for step in range(steps):
        now = []
        for x in range(min(width, 2**step) if name == "tree" else width):
            if name == "stencil":
                wanted = {x - 1, x, x + 1}
            elif name == "fft":
                reach = 1 << (step - 1) % bits if step else 0
                wanted = {x - reach, x, x + reach}
            elif name == "tree":
                wanted = {x // 2}
            else:
                wanted = {x, *(y for y in range(x - 2, x + 3) if rng.random() < 0.5)}
            now.append(len(graph))
            graph.append(tuple(before[y] for y in sorted(wanted) if 0 <= y < len(before)))
        before = now
    return graph


PATTERNS = ("stencil", "fft", "tree", "random")


def by_batch(batch: Batch) -> Run:
    def run(graph: Pattern, kernel: float) -> None:
        tasks: list[Any] = []
        for inputs in graph:
            tasks.append(batch.function(work, kernel, *(tasks[each].result for each in inputs)))
        batch.compile(tasks).run()
        assert tasks[-1].result.get() > 0

    return run


def by_dask(client: Client) -> Run:
    def run(graph: Pattern, kernel: float) -> None:
        nonce = random.getrandbits(60)
        keys = [f"work-{nonce:x}-{position}" for position in range(len(graph))]
        made = {
            key: DaskTask(key, work, kernel, *(TaskRef(keys[each]) for each in inputs))
            for key, inputs in zip(keys, graph, strict=True)
        }
        # All that no task takes: Dask would leave out what does not lead to a key that is needed.
        needed = set(range(len(graph))).difference(*graph)
        assert min(client.get(made, [keys[position] for position in sorted(needed)])) > 0

    return run


def by_pool(pool: ProcessPoolExecutor) -> Run:
    def run(graph: Pattern, kernel: float) -> None:
        after: list[list[int]] = [[] for _ in graph]
        missing = [len(inputs) for inputs in graph]
        for position, inputs in enumerate(graph):
            for each in inputs:
                after[each].append(position)
        done: queue.SimpleQueue[tuple[int, Future[int]]] = queue.SimpleQueue()
        values: list[int] = [0] * len(graph)

        def start(position: int) -> None:
            future = pool.submit(work, kernel, *(values[each] for each in graph[position]))
            future.add_done_callback(lambda result: done.put((position, result)))

        for position, count in enumerate(missing):
            if not count:
                start(position)
        for _ in graph:
            position, future = done.get()
            values[position] = future.result()
            for each in after[position]:
                missing[each] -= 1
                if not missing[each]:
                    start(each)

    return run


@contextmanager
def by_ray() -> Iterator[Run]:
    import ray

    ray.init(num_cpus=WORKERS, logging_level="ERROR")
    remote = ray.remote(work)

    def run(graph: Pattern, kernel: float) -> None:
        made: list[Any] = []
        for inputs in graph:
            made.append(remote.remote(kernel, *(made[each] for each in inputs)))
        ray.get(made)

    try:
        yield run
    finally:
        ray.shutdown()


@contextmanager
def by_parsl() -> Iterator[Run]:
    import parsl
    from parsl.executors import HighThroughputExecutor

    executor = HighThroughputExecutor(max_workers_per_node=WORKERS)
    parsl.load(parsl.Config(executors=[executor]))
    app = parsl.python_app(work)

    def run(graph: Pattern, kernel: float) -> None:
        made: list[Any] = []
        for inputs in graph:
            made.append(app(kernel, *(made[each] for each in inputs)))
        for each in made:
            each.result()

    try:
        yield run
    finally:
        parsl.dfk().cleanup()
        parsl.clear()


@contextmanager
def ours() -> Iterator[Run]:
    with Batch(num_workers=WORKERS) as batch:
        yield by_batch(batch)


@contextmanager
def dasks() -> Iterator[Run]:
    with raw_dask() as client:
        yield by_dask(client)


@contextmanager
def pools() -> Iterator[Run]:
    with ProcessPoolExecutor(WORKERS) as pool:
        yield by_pool(pool)


def task_systems() -> dict[str, Start]:
    """Return what is compared. Each starts alone: an idle cluster takes processor time, too."""
    found: dict[str, Start] = {
        "daskbatch": ours,
        "Dask graph": dasks,
        "process pool by hand": pools,
    }
    if importlib.util.find_spec("ray"):
        found["Ray"] = by_ray
    if importlib.util.find_spec("parsl"):
        found["Parsl"] = by_parsl
    return found


@contextmanager
def started(start: Start) -> Iterator[Run]:
    """Start a task system; its processes and functions are loaded."""
    with start() as run:
        run(make_pattern("stencil", steps=6), 0.0001)
        yield run


def overhead(run: Run, graph: Pattern, kernel: float, repeat: int = 3) -> float:
    """Return the microseconds of a slot that a task costs besides its own."""
    took = seconds(lambda: run(graph, kernel), repeat)
    return (took * WORKERS / len(graph) - kernel) * 1e6


def metg(run: Run, graph: Pattern) -> float:
    """Return the microseconds of the shortest task with which the efficiency is 50 %."""
    low, high = 0.00005, 0.02
    while high / low > 1.2:
        middle = math.sqrt(low * high)
        if overhead(run, graph, middle, 3) < middle * 1e6:
            high = middle
        else:
            low = middle
    return high * 1e6


def identity(value: int) -> int:
    return value


def single_call(executor: Any, count: int = 200) -> float:
    """Return the microseconds from `submit` to the result, one call after another."""
    for number in range(20):
        executor.submit(identity, number).result()
    times = []
    for number in range(count):
        began = time.perf_counter()
        assert executor.submit(identity, number).result() == number
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def single_call_of_dask(client: Client, count: int = 100) -> float:
    times = []
    for number in range(count):
        began = time.perf_counter()
        assert client.submit(identity, number, pure=False).result() == number
        times.append(time.perf_counter() - began)
    return statistics.median(times) * 1e6


def alternating_chain(batch: Batch, count: int = 400) -> float:
    """Return the microseconds of a hop of a chain whose tasks are pinned to workers by turns."""
    workers = sorted(workers_of(batch.client))[:2]
    factories = [batch.options(workers=[each]) for each in workers]

    def run() -> None:
        last = factories[0].function(identity, 7)
        tasks = [last]
        for number in range(1, count):
            last = factories[number % len(factories)].function(identity, last.result)
            tasks.append(last)
        batch.compile(tasks).run()
        assert last.result.get() == 7

    run()
    return seconds(run, 3) / count * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--no-metg", action="store_true", help="leave out METG(50 %%)")
    parser.add_argument("--patterns", nargs="*", default=PATTERNS)
    arguments = parser.parse_args()
    table = Table(f"fine grain, {WORKERS} slots: microseconds of overhead for each task")
    systems = task_systems()
    for name in arguments.patterns:
        graph = make_pattern(name)
        found: dict[float, dict[str, float]] = {kernel: {} for kernel in KERNELS}
        for who, start in systems.items():
            with started(start) as run:
                for kernel in KERNELS:
                    found[kernel][who] = overhead(run, graph, kernel)
        for kernel, values in found.items():
            what = f"{name}, {len(graph)} tasks of {kernel * 1e3:g} ms"
            asked = kernel == 0.001
            for who, value in values.items():
                if who == "daskbatch" and asked:
                    table.row_at_most(f"{what}: {who}", value, "us", 400)
                else:
                    table.row(f"{what}: {who}", value, "us")
            ratio = values["Dask graph"] / max(values["daskbatch"], 1.0)
            table.row(f"{what}: Dask over daskbatch", ratio, least=8 if asked else None)
    if not arguments.no_metg:
        graph = make_pattern("stencil")
        grains: dict[str, float] = {}
        for who, start in systems.items():
            with started(start) as run:
                grains[who] = metg(run, graph)
            table.row(f"METG(50 %) of the stencil: {who}", grains[who], "us")
        ratio = grains["daskbatch"] / grains["process pool by hand"]
        table.row_at_most("METG(50 %), daskbatch over the pool by hand", ratio, "×", 2)
    with ProcessPoolExecutor(WORKERS) as pool:
        table.row("submit().result(): process pool", single_call(pool), "us")
    with raw_dask() as client:
        by_client = single_call_of_dask(client)
        table.row("submit().result(): Dask", by_client, "us")
    with BatchPoolExecutor(max_workers=WORKERS) as executor:
        by_executor = single_call(executor)
        table.row_at_most("submit().result(): daskbatch", by_executor, "us", 1000)
    table.row("submit().result(): Dask over daskbatch", by_client / by_executor, least=10)
    with Batch(num_workers=WORKERS) as batch:
        hop = alternating_chain(batch)
        table.row_at_most("a chain on alternating workers, each hop", hop, "us", 150)
    table.end()


if __name__ == "__main__":
    main()
