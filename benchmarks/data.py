"""Measures how fast large values move: beside Dask, a process pool and, where installed, Ray.

For Ray, set RAY_PYTHON to an interpreter that has Ray, NumPy and pandas. The programs with frames
run where pandas is installed. Arguments: parts of the names of the programs to run.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import Manager
from pathlib import Path
from typing import Any

import numpy as np
from common import WORKERS, Table, raw_dask, seconds
from data_programs import LARGE, PROGRAMS, chain, measure
from distributed import Client, wait

from daskbatch import Batch

REPEAT = int(os.environ.get("REPEAT", "3"))

#: For each program, the most that the time may be, divided by that of each other system.
MOST: dict[str, dict[str, float]] = {
    "20 hops of 80 MB": {"Dask": 2.0, "Ray": 0.8},
    "8 arrays of 80 MB into one task": {"Dask": 1.2, "Ray": 1.5},
    "200 arguments of 1 MB by map": {"Dask": 1.0, "pool": 1.2, "Ray": 1.2},
    "200 results of 1 MB by map": {"Dask": 1.0, "pool": 1.2, "Ray": 1.2},
    "200 arguments and results of 1 MB": {"Dask": 1.0, "pool": 1.2, "Ray": 1.2},
    "40 frames, grouped": {"Dask": 1.0},
    "20 dicts of 300 000 items, counted": {"Dask": 1.0},
    "80 MB to the client": {"Dask": 0.5, "Ray": 1.2},
    "80 MB as an argument": {"Dask": 0.5, "Ray": 1.2},
}


class InBatch:
    """daskbatch."""

    def __init__(self, batch: Batch, **options: Any) -> None:
        self._batch = batch.options(**options)

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        return self._batch.function(function, *args)

    def get(self, reference: Any) -> Any:
        return reference.get()

    def wait(self, reference: Any) -> None:
        reference.run()

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        tasks = [self._batch.function(function, item) for item in items]
        return [task.get() for task in tasks]


class InDask:
    """Plain Dask; large arguments are scattered, as its documentation says."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        args = tuple(
            self._client.scatter(each, hash=False) if isinstance(each, np.ndarray) else each
            for each in args
        )
        return self._client.submit(function, *args, pure=False)

    def get(self, reference: Any) -> Any:
        return reference.result()

    def wait(self, reference: Any) -> None:
        wait(reference)

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        if isinstance(items[0], np.ndarray):
            items = self._client.scatter(list(items), hash=False)
        values: list[Any] = self._client.gather(self._client.map(function, items, pure=False))
        return values


class InPool:
    """A process pool; it has no references, so values pass through the client."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        values = [each.result() if hasattr(each, "result") else each for each in args]
        return self._pool.submit(function, *values)

    def get(self, reference: Any) -> Any:
        return reference.result()

    def wait(self, reference: Any) -> None:
        pass

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        return list(self._pool.map(function, items))


def measured(title: str, system: Any, names: Sequence[str]) -> dict[str, float]:
    """Return the times of a system, and print them."""
    found = {}
    for name in names:
        found[name] = measure(system, name, REPEAT)
        print(f"  {title:<12}{name:<40}{found[name] * 1e3:>10.1f} ms", flush=True)
    return found


def with_ray(names: Sequence[str]) -> dict[str, float]:
    """Return the times of Ray; empty without it."""
    python = os.environ.get("RAY_PYTHON")
    if not python:
        return {}
    script = Path(__file__).with_name("data_ray.py")
    command = [python, str(script), json.dumps([list(names), REPEAT])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print("Ray failed:", done.stderr[-1000:])
        return {}
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


@contextmanager
def producers_and_followers(count: int, each: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield, for each follower, the numbers of the producers that it comes after."""
    yield [tuple((n + m) % count for m in range(each)) for n in range(count)]


def produce(number: int) -> Any:
    return np.full(LARGE // 10, float(number))


def follow(*_: Any) -> int:
    return 1


def marker(_: Any) -> None:
    return None


def received(dask_worker: Any) -> int:
    return sum(each["total"] for each in dask_worker.transfer_incoming_log)


def order_edges(batch: Batch, each: int) -> None:
    makers = [batch.function(produce, n, writes=[batch.write(f"/d/{n}")]) for n in range(40)]
    with producers_and_followers(40, each) as before:
        tasks = [
            batch.function(follow, reads=[batch.read(f"/d/{n}") for n in numbers])
            for numbers in before
        ]
    batch.compile([*makers, *tasks]).run()
    assert all(task.get() == 1 for task in tasks)


def markers(client: Client, each: int) -> None:
    makers = [client.submit(produce, n, pure=False) for n in range(40)]
    marks = [client.submit(marker, maker, pure=False) for maker in makers]
    with producers_and_followers(40, each) as before:
        tasks = [
            client.submit(follow, *[marks[n] for n in numbers], pure=False) for numbers in before
        ]
    assert client.gather(tasks) == [1] * 40


def put_and_get(shared: Any, value: Any) -> tuple[float, float]:
    """Return the time to put a value in a dictionary, and to get it in this process."""
    puts, gets = [], []
    for _ in range(REPEAT + 1):
        began = time.perf_counter()
        shared["key"] = value
        puts.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert shared["key"][-1] == value[-1]
        gets.append(time.perf_counter() - began)
    return sorted(puts[1:])[REPEAT // 2], sorted(gets[1:])[REPEAT // 2]


def scatter_and_gather(client: Client, value: Any) -> tuple[float, float]:
    puts, gets = [], []
    for _ in range(REPEAT + 1):
        began = time.perf_counter()
        future = client.scatter(value, hash=False)
        wait(future)
        puts.append(time.perf_counter() - began)
        began = time.perf_counter()
        assert client.gather(future)[-1] == value[-1]
        gets.append(time.perf_counter() - began)
    return sorted(puts[1:])[REPEAT // 2], sorted(gets[1:])[REPEAT // 2]


def through_queue(queue: Any, value: Any) -> float:
    def once() -> None:
        queue.put(value)
        assert queue.get()[-1] == value[-1]

    once()
    return seconds(once, REPEAT)


def main() -> None:
    wanted = sys.argv[1:]
    names = [
        name
        for name in PROGRAMS
        if (not wanted or any(part in name for part in wanted))
        and ("frames" not in name or importlib.util.find_spec("pandas"))
    ]
    found: dict[str, dict[str, float]] = {}
    with raw_dask() as client:
        found["Dask"] = measured("Dask", InDask(client), names)
        edges: dict[int, float] = {}
        if not wanted or "edges" in wanted:
            edges = {each: seconds(partial(markers, client, each), REPEAT) for each in (2, 10)}
        scattered: dict[int, tuple[float, float]] = {}
        if not wanted or "shared" in wanted:
            for size in (1_000_000, 100_000_000):
                scattered[size] = scatter_and_gather(client, np.ones(size // 8))
    with ProcessPoolExecutor(WORKERS) as pool:
        found["pool"] = measured("pool", InPool(pool), names)
    found["Ray"] = with_ray(names) if names else {}
    with Batch(num_workers=WORKERS) as batch:
        own = measured("daskbatch", InBatch(batch), names)
        table = Table("the time of daskbatch, divided by that of others")
        for name in names:
            print(f"  {name}: {own[name] * 1e3:.1f} ms")
            for other, times in found.items():
                if name in times:
                    ratio = own[name] / times[name]
                    what = f"    of {other}: {times[name] * 1e3:.1f} ms"
                    if other in MOST[name]:
                        table.row_at_most(what, ratio, "×", most=MOST[name][other])
                    else:
                        table.row(what, ratio)
        if not wanted or "isolated" in wanted:
            isolated = InBatch(batch, isolation="process")
            for name in names:
                ratio = measure(isolated, name, REPEAT) / own[name]
                table.row_at_most(f"  isolated: {name}", ratio, "× thread", most=1.2)
        if not wanted or "linear" in wanted:
            for count, hops in ((LARGE // 8, (5, 10, 20, 40)), (LARGE // 80, (5, 10, 20, 40))):
                times = []
                for each in hops:
                    chain(InBatch(batch), each, count)
                    took = seconds(partial(chain, InBatch(batch), each, count), REPEAT)
                    times.append(took / (each + 1))
                    megabytes = 8 * count // 10**6
                    print(f"  {each} hops of {megabytes} MB: {times[-1] * 1e3:.1f} ms each")
                table.row_at_most(
                    "  40 hops against 5, for each hop", times[-1] / times[0], "×", 1.3
                )
        if not wanted or "edges" in wanted:
            for each, of_markers in edges.items():
                before = sum(batch.client.run(received).values())
                order_edges(batch, each)
                moved = sum(batch.client.run(received).values()) - before
                took = seconds(partial(order_edges, batch, each), REPEAT)
                table.row_at_most(f"order edges of {each} producers: moved", moved / 1e6, "MB", 0.1)
                table.row_at_most("  time, of hand-made markers", took / of_markers, "×", most=1.0)
        if not wanted or "shared" in wanted:
            shared, queue = batch.ddict(), batch.queue()
            with Manager() as manager:
                for size, (scatter, gather) in scattered.items():
                    value = np.ones(size // 8)
                    put, get = put_and_get(shared, value)
                    what = f"DDict, {size // 10**6} MB"
                    least = (1.5, 3.0) if size > 10**7 else (None, None)
                    table.row(f"{what}: rate of put, of scatter", scatter / put, least=least[0])
                    table.row(f"{what}: rate of get, of gather", gather / get, least=least[1])
                    of_manager = put_and_get(manager.dict(), value)
                    table.row("  put and get, of a Manager's", sum(of_manager) / (put + get))
                    took = through_queue(queue, value)
                    table.row(
                        f"Queue, {size // 10**6} MB: rate, of scatter and gather",
                        (scatter + gather) / took,
                    )
                    table.row("  of a Manager's", through_queue(manager.Queue(), value) / took)
    table.end()


if __name__ == "__main__":
    main()
