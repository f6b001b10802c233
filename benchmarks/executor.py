"""Compares `BatchPoolExecutor` with Dask's own executor and a process pool of the same size."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ProcessPoolExecutor

import psutil
from common import WORKERS, Table, raw_dask, seconds

from daskbatch import BatchPoolExecutor

MANY, FEW = 10_000, 500
THREADS = 4


def noop(value: int) -> int:
    return value


def map_all(executor: Executor, count: int, **settings: int) -> float:
    """Return the seconds that a map takes for each call."""

    def run() -> None:
        values: Iterable[int] = list(range(count))
        assert list(executor.map(noop, values, **settings)) == values

    return seconds(run, repeat=3) / count


def submit_all(executor: Executor, count: int) -> float:
    """Return the seconds that a loop of single calls takes for each call."""

    def run() -> None:
        futures = [executor.submit(noop, value) for value in range(count)]
        assert [future.result() for future in futures] == list(range(count))

    return seconds(run, repeat=3) / count


def round_trip(call: Callable[[int], int]) -> float:
    """Return the seconds that a single call takes, with no others before or after it."""
    values = iter(range(10**6))
    return seconds(lambda: call(next(values)), repeat=200)


def submit_from_threads(executor: Executor) -> int:
    """Return how many results of calls by four threads are right."""
    right = []

    def run(number: int) -> None:
        futures = [executor.submit(divmod, value, number + 2) for value in range(MANY // THREADS)]
        right.extend(
            future.result() == divmod(value, number + 2) for value, future in enumerate(futures)
        )

    threads = [threading.Thread(target=run, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(right)


def million(executor: Executor) -> tuple[float, float]:
    """Map over a generator of a million values; return calls per second, and MB of growth."""
    process = psutil.Process()
    before = most = process.memory_info().rss
    total = 0

    def run() -> None:
        nonlocal most, total
        numbers = (value for value in range(10**6))
        for value in executor.map(noop, numbers, buffersize=10_000):  # type: ignore[call-arg]
            total += value
            if value % 10_000 == 0:
                most = max(most, process.memory_info().rss)

    took = seconds(run)
    assert total == sum(range(10**6))
    return 10**6 / took, (most - before) / 2**20


def main() -> None:
    table = Table(f"An executor; {WORKERS} workers each")
    with BatchPoolExecutor(max_workers=WORKERS) as ours:
        with ProcessPoolExecutor(WORKERS) as pool:
            list(pool.map(noop, range(10)))
            list(ours.map(noop, range(10)))
            for count in (100, 1_000, MANY):
                least = 1.0 if count == MANY else None
                ratio = map_all(pool, count) / map_all(ours, count)
                table.row(f"map of {count} no-ops, vs ProcessPoolExecutor", ratio, least=least)
            ratio = map_all(pool, MANY, chunksize=100) / map_all(ours, MANY, chunksize=100)
            table.row(f"the same of {MANY} with chunksize=100 in both", ratio)
            for count in (100, 1_000, MANY):
                least = 1.0 if count == MANY else None
                ratio = submit_all(pool, count) / submit_all(ours, count)
                table.row(f"{count} submits, vs ProcessPoolExecutor", ratio, least=least)
        with raw_dask() as client:
            theirs = client.get_executor(pure=False)
            list(theirs.map(noop, list(range(10))))
            ratio = map_all(theirs, FEW) / map_all(ours, MANY)
            table.row(f"map of {MANY} no-ops, vs Client.get_executor()", ratio, least=50)
            ratio = submit_all(theirs, FEW) / submit_all(ours, MANY)
            table.row(f"{MANY} submits, vs Client.get_executor()", ratio, least=25)
            alone = round_trip(lambda value: int(ours.submit(noop, value).result()))
            dask = round_trip(lambda value: int(client.submit(noop, value, pure=False).result()))
            what = "a call alone takes, of what client.submit().result() takes"
            table.row_at_most(what, alone / dask, "×", most=1.0)
        table.row(f"right results of {THREADS} threads", submit_from_threads(ours), "", least=MANY)
        rate, growth = million(ours)
        table.row("a million of a generator, a second", rate, "calls")
        table.row_at_most("and the client's memory grows by", growth, "MiB", most=100)
    table.end()


if __name__ == "__main__":
    main()
