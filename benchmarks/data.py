"""Measures how fast large values move: beside Dask, a process pool and, where installed, Ray.

For Ray, set RAY_PYTHON to an interpreter that has Ray, NumPy and pandas. The programs with frames
run where pandas is installed. Arguments: parts of the names of the programs to run, or of
"isolated", "linear", "edges" and "shared".

Each system runs alone, since an idle cluster takes processor time, too: it is started, runs all
programs some times, and ends. This is done in rounds, so that another load of the machine slows all
of them down. The figures are medians; behind them is the ratio of the fastest runs.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from common import WORKERS, Table, raw_dask, seconds
from data_programs import LARGE, PROGRAMS, run_chain, run_once
from distributed import Client, wait

from daskbatch import Batch, Task

Times = dict[str, list[float]]

REPEAT = int(os.environ.get("REPEAT", "3"))
ROUNDS = int(os.environ.get("ROUNDS", "2"))

#: For each program, the most that the time may be, divided by that of each other system.
MOST: dict[str, dict[str, float]] = {
    "20 hops of 80 MB": {"Dask": 2.0, "Ray": 0.8},
    "8 arrays of 80 MB into one task": {"Dask": 1.2, "Ray": 1.5},
    "200 arguments of 1 MB by map": {"Dask": 1.0, "pool": 1.2, "Ray": 1.2},
    "200 results of 1 MB by map": {"Dask": 1.0, "pool": 1.2, "Ray": 1.2},
    "200 arguments and results of 1 MB": {"Dask": 1.0, "pool": 1.2, "Ray": 1.2},
    "40 frames of one task, grouped in another": {"Dask": 1.0},
    "20 dicts of 300 000 items of one task, counted in another": {"Dask": 1.0},
    "40 frames of 40 tasks, grouped": {"Dask": 1.0},
    "20 dicts of 20 tasks, counted": {"Dask": 1.0},
    "80 MB to the client": {"Dask": 0.5, "Ray": 1.2},
    "80 MB as an argument": {"Dask": 0.5, "Ray": 1.2},
}


#: How long the chains are whose times are compared; by the MB of their arrays, how often each chain
#: is run in new memory of one cluster; and the number of clusters.
HOPS, LINEAR_REPEAT, LINEAR_ROUNDS = (5, 10, 20, 40), {1: 10, 10: 4, 100: 1}, 3

#: The programs that Dask runs once. It sends a dictionary between workers as one frame for each
#: value (`distributed.protocol.serialize`, `iterate_collection`): 300 000 of them take five seconds
#: on each side.
DASK_RUNS_ONCE = ["20 dicts of 20 tasks, counted"]


class InBatch:
    """daskbatch: calls are collected, and started as a program when one of them is needed."""

    def __init__(self, batch: Batch, **options: Any) -> None:
        self._batch = batch
        self._factory = batch.options(**options)
        self._made: list[Task] = []

    def submit(self, function: Callable[..., Any], *args: Any) -> Any:
        self._made.append(self._factory.function(function, *args))
        return self._made[-1]

    def _start(self) -> None:
        made, self._made = self._made, []
        self._batch.compile(made).start()

    def get(self, reference: Any) -> Any:
        if self._made:
            self._start()
        return reference.get()

    def wait(self, reference: Any) -> None:
        self._start()
        reference.wait()

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        tasks = [self.submit(function, item) for item in items]
        self._start()
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


class InRay:
    """Ray, in a process of another interpreter."""

    def __init__(self, python: str) -> None:
        script = Path(__file__).with_name("data_ray.py")
        self._process = subprocess.Popen(
            [python, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run_once(self, name: str) -> float:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(name, file=self._process.stdin, flush=True)
        while True:
            line = self._process.stdout.readline()
            if not line:
                raise SystemExit("Ray has ended")
            try:
                return float(line)
            except ValueError:
                print("  Ray:", line.rstrip())

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def ratio(own: Sequence[float], other: Sequence[float]) -> tuple[float, str]:
    """Return the ratio of the medians of times; and a text with that of the fastest runs."""
    return statistics.median(own) / statistics.median(other), f"{min(own) / min(other):.2f}"


def times_of(run: Callable[[], float], repeat: int = REPEAT) -> list[float]:
    """Return the times of some runs, after one that does not count; of one run if `repeat` is 0."""
    first = run()
    return [run() for _ in range(repeat)] or [first]


def timed(function: Callable[[], Any]) -> Callable[[], float]:
    return lambda: seconds(function)


#: Starts a system; what it yields returns the time of a run of a program.
Start = Callable[[], AbstractContextManager[Callable[[str], float]]]


@contextmanager
def in_batch(**options: Any) -> Iterator[Callable[[str], float]]:
    with Batch(num_workers=WORKERS) as batch:
        yield partial(run_once, InBatch(batch, **options))


@contextmanager
def in_dask() -> Iterator[Callable[[str], float]]:
    with raw_dask() as client:
        yield partial(run_once, InDask(client))


@contextmanager
def in_pool() -> Iterator[Callable[[str], float]]:
    # Not forked: this process has threads, once a Batch has been used.
    with ProcessPoolExecutor(WORKERS, get_context("forkserver")) as pool:
        list(pool.map(abs, range(2 * WORKERS)))
        yield partial(run_once, InPool(pool))


@contextmanager
def in_ray() -> Iterator[Callable[[str], float]]:
    ray = InRay(os.environ["RAY_PYTHON"])
    try:
        yield ray.run_once
    finally:
        ray.close()


def systems(isolated: bool) -> dict[str, Start]:
    """Return what is compared."""
    found: dict[str, Start] = {"daskbatch": in_batch, "Dask": in_dask, "pool": in_pool}
    if isolated:
        found["isolated"] = partial(in_batch, isolation="process")
    if os.environ.get("RAY_PYTHON"):
        found["Ray"] = in_ray
    return found


def measure(names: Sequence[str], starts: Mapping[str, Start]) -> dict[str, Times]:
    """Return, for each program, the times of each system."""
    times: dict[str, Times] = {name: {} for name in names}
    for number in range(ROUNDS):
        for who, start in starts.items():
            with start() as run:
                for name in names:
                    once = is_slow(who, name)
                    if number and once:
                        continue
                    found = times_of(partial(run, name), 0 if once else REPEAT)
                    times[name].setdefault(who, []).extend(found)
    return times


def is_slow(who: str, name: str) -> bool:
    """Return whether a system runs a program once, since it takes long."""
    if who == "Dask":
        return name in DASK_RUNS_ONCE
    return who == "pool" and "pool" not in MOST[name]


def compare(table: Table, name: str, times: Times) -> None:
    """Print the ratios of a program's times."""
    most = MOST[name]
    own = times["daskbatch"]
    print(f"  {name}: {statistics.median(own) * 1e3:.1f} ms")
    for other, found in times.items():
        if other == "daskbatch":
            continue
        if other == "isolated":
            value, fastest = ratio(found, own)
            table.row_at_most(f"    isolated, of threads ({fastest})", value, "×", most=1.2)
            continue
        value, fastest = ratio(own, found)
        what = f"    of {other}: {statistics.median(found) * 1e3:.1f} ms ({fastest})"
        if other in most:
            table.row_at_most(what, value, "×", most=most[other])
        else:
            table.row(what, value)


def time_chains(hops: int, megabytes: int, repeat: int) -> tuple[list[float], float]:
    """Return the times of chains in new memory of one cluster, and of one in memory used before."""
    count = megabytes * 125_000
    with Batch(num_workers=WORKERS) as batch:
        system = InBatch(batch)
        for _ in range(3):
            run_chain(system, hops, 1_000)
        # As long as the references are kept, the next chain needs other memory.
        kept, new = [], []
        for _ in range(repeat):
            begin = time.perf_counter()
            kept.append(run_chain(system, hops, count))
            new.append(time.perf_counter() - begin)
        kept.clear()
        return new, seconds(partial(run_chain, system, hops, count))


def linear(table: Table) -> None:
    """Print the time of each hop and byte, by the number of hops and of bytes.

    In memory that nothing has used before; and, for comparison, in a run after that, which finds
    as much of its memory mapped as a worker keeps.
    """
    times: dict[tuple[int, int], list[float]] = {}
    again: dict[tuple[int, int], list[float]] = {}
    for _ in range(LINEAR_ROUNDS):
        for megabytes, repeat in LINEAR_REPEAT.items():
            for hops in HOPS:
                new, after = time_chains(hops, megabytes, repeat)
                times.setdefault((megabytes, hops), []).extend(new)
                again.setdefault((megabytes, hops), []).append(after)
    for megabytes in LINEAR_REPEAT:
        each = {hops: min(times[megabytes, hops]) for hops in HOPS}
        for hops, fastest in each.items():
            print(
                f"  {hops} hops of {megabytes} MB: {fastest / (hops + 1) * 1e3:.2f} ms each, "
                f"again {min(again[megabytes, hops]) / (hops + 1) * 1e3:.2f}"
            )
        slope = (each[40] - each[20]) / (each[20] - each[10])
        table.row_at_most(f"  {megabytes} MB: 20 more hops, of 10 more", slope / 2, "×", 1.3)
        per_byte = (each[40] - each[5]) / 35 / megabytes
        print(f"  for each hop and MB: {per_byte * 1e3:.3f} ms")


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


def edges(table: Table) -> None:
    """Compare order edges with keys that a user makes by hand, which carry no value."""
    with raw_dask() as client:
        by_hand = {each: times_of(timed(partial(markers, client, each))) for each in (2, 10)}
    with Batch(num_workers=WORKERS) as batch:
        for each, markers_took in by_hand.items():
            before = sum(batch.client.run(received).values())
            order_edges(batch, each)
            moved = sum(batch.client.run(received).values()) - before
            table.row_at_most(f"order edges of {each} producers: moved", moved / 1e6, "MB", 0.1)
            took = times_of(timed(partial(order_edges, batch, each)))
            value, fastest = ratio(took, markers_took)
            what = f"  time, of hand-made markers ({fastest})"
            table.row_at_most(what, value, "×", most=1.0)


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

    def is_wanted(part: str) -> bool:
        return not wanted or part in wanted

    table = Table("the time of daskbatch, divided by that of others (and of the fastest runs)")
    for name, times in measure(names, systems(is_wanted("isolated"))).items():
        compare(table, name, times)
    if is_wanted("linear"):
        linear(table)
    if is_wanted("edges"):
        edges(table)
    if is_wanted("shared"):
        shared_values(table)
    table.end()


def shared_values(table: Table) -> None:
    """Compare dictionaries and queues with Dask's scatter and gather, and with a Manager's."""
    values = {size: np.ones(size // 8) for size in (1_000_000, 100_000_000)}
    with raw_dask() as client:
        by_dask = {size: scatter_and_gather(client, value) for size, value in values.items()}
    with get_context("forkserver").Manager() as manager:
        by_manager = {
            size: (sum(put_and_get(manager.dict(), value)), through_queue(manager.Queue(), value))
            for size, value in values.items()
        }
    with Batch(num_workers=WORKERS) as batch:
        shared, queue = batch.ddict(), batch.queue()
        for size, value in values.items():
            scatter, gather = by_dask[size]
            put, get = put_and_get(shared, value)
            what = f"DDict, {size // 10**6} MB"
            least = (1.5, 3.0) if size > 10**7 else (None, None)
            table.row(f"{what}: rate of put, of scatter", scatter / put, least=least[0])
            table.row(f"{what}: rate of get, of gather", gather / get, least=least[1])
            of_dict, of_queue = by_manager[size]
            table.row("  put and get, of a Manager's", of_dict / (put + get))
            took = through_queue(queue, value)
            what = f"Queue, {size // 10**6} MB: rate, of scatter and gather"
            table.row(what, (scatter + gather) / took)
            table.row("  of a Manager's", of_queue / took)


if __name__ == "__main__":
    main()
