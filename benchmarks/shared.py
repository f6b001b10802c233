"""Compares `DDict` and `Queue` with the shared objects of Dask and of the standard library."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import numpy as np
from common import WORKERS, Table, raw_dask, workers_of
from distributed import Client, Future, Variable, get_client

from daskbatch import Batch, DDict

SIZES = 1_000, 10_000, 100_000
#: How often to repeat calls that take about a millisecond.
FEW = 500
SMALL = bytes(100)
MEGABYTES = 100
RUNS = 5

#: Starts other processes anew, and does not fork: this process has threads.
SPAWN = multiprocessing.get_context("spawn")


class Store:
    """A dictionary as a bare Dask actor, as a user would write it without a DDict."""

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}

    def put(self, key: Any, value: Any) -> None:
        self.values[key] = value

    def get(self, key: Any) -> Any:
        return self.values[key]


def best(function: Callable[[], float], times: int = RUNS) -> float:
    return min(function() for _ in range(times))


def runs(count: int) -> int:
    """Return how often to repeat a run with `count` values: a long run varies less, so once."""
    return 3 if count < SIZES[-1] else 1


def took(function: Callable[[], Any]) -> float:
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def other_than(client: Client, worker: str) -> str:
    return next(each for each in workers_of(client) if each != worker)


# -- small values, one by one: seconds for each -------------------------------------------

Times = tuple[float, float]


def mapping_times(mapping: Any, count: int) -> Times:
    """Return the seconds that a put and a get take."""
    puts = gets = float("inf")
    for _ in range(runs(count)):
        began = time.perf_counter()
        for key in range(count):
            mapping[key] = SMALL
        middle = time.perf_counter()
        for key in range(count):
            assert mapping[key] == SMALL
        puts = min(puts, (middle - began) / count)
        gets = min(gets, (time.perf_counter() - middle) / count)
    return puts, gets


def actor_times(actor: Any, count: int) -> Times:
    class Calls:
        def __setitem__(self, key: Any, value: Any) -> None:
            actor.put(key, value).result()

        def __getitem__(self, key: Any) -> Any:
            return actor.get(key).result()

    return mapping_times(Calls(), count)


def many_times(d: DDict, count: int) -> Times:
    values = dict.fromkeys(range(count), SMALL)
    put = best(lambda: took(lambda: d.put_many(values)))
    get = best(lambda: took(lambda: d.get_many(values)))
    return put / count, get / count


def small_values(table: Table, batch: Batch, client: Client) -> None:
    d = batch.ddict(shards=1)
    (home,) = d.workers_for([0])
    elsewhere = other_than(batch.client, home)
    actor_home = next(iter(workers_of(client)))
    actor = client.submit(Store, actor=True, workers=actor_home).result()

    def in_task(where: str, count: int) -> Times:
        task = batch.options(workers=where).function(mapping_times, d, count)
        task.start()
        return task.get()  # type: ignore[no-any-return]

    def in_dask_task() -> Times:
        where = other_than(client, actor_home)
        return client.submit(actor_times, actor, FEW, workers=where, pure=False).result()  # type: ignore[no-any-return]

    with (
        SPAWN.Manager() as manager,
        ProcessPoolExecutor(1, mp_context=SPAWN) as pool,
    ):
        shared = manager.dict()
        compare(
            table,
            "client",
            mapping_times(d, SIZES[1]),
            actor_times(actor, FEW),
            mapping_times(shared, SIZES[1]),
        )
        compare(
            table,
            "task",
            in_task(elsewhere, SIZES[1]),
            in_dask_task(),
            pool.submit(mapping_times, shared, SIZES[1]).result(),
        )
    for name, each in zip(("put", "get"), in_task(home, SIZES[1]), strict=True):
        table.row(f"{name} from a task on the worker that keeps it", each * 1e6, "µs")

    for count in SIZES:
        d.clear()
        puts, gets = mapping_times(d, count)
        table.row(f"{count} keys: a put from a client", puts * 1e6, "µs")
        table.row(f"{count} keys: a get from a client", gets * 1e6, "µs")
        d.clear()
        all_puts, all_gets = many_times(d, count)
        least = 10 if count == SIZES[1] else None
        table.row(f"{count} keys: put_many, per key, vs one by one", puts / all_puts, least=least)
        table.row(f"{count} keys: get_many, per key, vs one by one", gets / all_gets, least=least)
    d.close()


def compare(table: Table, who: str, ours: Times, actors: Times, managers: Times) -> None:
    for name, our, actor, manager in zip(("put", "get"), ours, actors, managers, strict=True):
        table.row(f"{name} of 100 bytes from a {who}", our * 1e6, "µs")
        table.row("  vs a bare actor's call", actor / our, least=5)
        table.row("  vs Manager().dict()", manager / our)


# -- a large array: seconds ---------------------------------------------------------------


def get_time(d: DDict) -> float:
    return best(lambda: took(lambda: d["array"]))


def gather_time(name: str) -> float:
    client = get_client()
    future = Variable(name).get()  # Dask would gather a future that is an argument
    return best(lambda: took(lambda: client.gather(future, direct=True)))


def large_values(table: Table, batch: Batch, client: Client) -> None:
    array = np.random.default_rng(0).random(MEGABYTES * 10**6 // 8)
    d = batch.ddict(shards=1)
    d["array"] = array
    (home,) = d.workers_for(["array"])
    elsewhere = other_than(batch.client, home)
    their_home = next(iter(workers_of(client)))

    def scatter() -> Future:
        return client.scatter(array, workers=[their_home], direct=True, hash=False)

    future = scatter()
    puts, scatters, gets, gathers = ([float("inf")] for _ in range(4))
    # Both run in turn, so that other work of the machine slows both down.
    for _ in range(RUNS):
        puts.append(took(lambda: d.__setitem__("array", array)))
        scatters.append(took(scatter))
        gets.append(took(lambda: d["array"]))
        gathers.append(took(lambda: client.gather(future, direct=True)))
    for name, ours, theirs in (
        ("put from a client, vs scatter(direct=True)", min(puts), min(scatters)),
        ("get from a client, vs gather(direct=True)", min(gets), min(gathers)),
    ):
        table.row(f"{MEGABYTES} MB: {name}", theirs / ours, least=0.6)
        table.row("  a second", MEGABYTES / ours, "MB")

    task = batch.options(workers=elsewhere).function(get_time, d)
    task.start()
    ours = task.get()
    where = other_than(client, their_home)
    variable = Variable("array", client)
    variable.set(future)
    theirs = client.submit(gather_time, "array", workers=where, pure=False).result()
    what = f"{MEGABYTES} MB: get from another worker, vs gather(direct=True)"
    table.row(what, theirs / ours, least=0.6)
    table.row("  a second", MEGABYTES / ours, "MB")
    variable.delete()
    assert np.array_equal(d["array"], array)
    d.close()


# -- memory: how many copies of the value there are ---------------------------------------


def memory(name: str) -> int:
    """Return a size that the system records of this process, VmRSS or VmHWM, in bytes."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)


def begin_peak() -> int:
    """Reset the peak of memory use; return the present use, in bytes."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory("VmRSS")


def peak() -> int:
    return memory("VmHWM")


def in_fresh_process(address: str, name: str, put: bool) -> float:
    """Put or get an array; return the memory added meanwhile, in copies of the array."""
    d = DDict(address, shards=1, name=name)
    small = np.zeros(10**5)
    d["small"] = small
    assert d["small"].size == small.size
    array = np.random.default_rng(0).random(MEGABYTES * 10**6 // 8) if put else None
    before = begin_peak()
    if put:
        d["array"] = array
    else:
        array = d["array"]
    assert array is not None
    return (peak() - before) / array.nbytes


def copies(table: Table, batch: Batch) -> None:
    client = batch.client
    address, name = client.scheduler.address, "copies"
    d = DDict(address, shards=1, name=name)
    (home,) = d.workers_for(["array"])
    for put in (True, False):
        (before,) = client.run(begin_peak, workers=[home]).values()
        with ProcessPoolExecutor(1, mp_context=SPAWN) as pool:
            caller = pool.submit(in_fresh_process, address, name, put).result()
        (after,) = client.run(peak, workers=[home]).values()
        keeper = (after - before) / (MEGABYTES * 10**6)
        # A Python process always does other things, too: some of the memory is theirs.
        what, most = ("put", 1.1) if put else ("get", 2.1)
        table.row_at_most(f"{what}: memory of the caller, besides", caller, "values", most)
        most = 3.2 - most
        table.row_at_most(f"{what}: memory of its worker, besides", keeper, "values", most)
    d.close()


# -- queues: seconds for a put and a get --------------------------------------------------


def queue_time(queue: Any, count: int) -> float:
    def run() -> None:
        for _ in range(count):
            queue.put(SMALL)
        for _ in range(count):
            assert queue.get() == SMALL

    return best(lambda: took(run), runs(count)) / count


def produce(queue: Any, count: int) -> None:
    for _ in range(count):
        queue.put(SMALL)


def consume(queue: Any, count: int) -> int:
    return sum(queue.get() == SMALL for _ in range(count))


def passing_time(start: Callable[[Iterable[Any]], Any], count: int) -> float:
    """Return the seconds per item from a producer to a consumer, on two workers."""
    return took(lambda: start((produce, consume))) / count


def queues(table: Table, batch: Batch, client: Client) -> None:
    queue, theirs = batch.queue(), distributed.Queue(client=client)
    their_time = queue_time(theirs, FEW)
    ours = {count: queue_time(queue, count) for count in SIZES}
    with SPAWN.Manager() as manager:
        managers = queue_time(manager.Queue(), SIZES[1])
    for count, our in ours.items():
        table.row(f"{count} items: a put and a get from a client", our * 1e6, "µs")
        table.row("  vs distributed.Queue", their_time / our, least=3)
        table.row("  vs Manager().Queue()", managers / our)

    def pass_ours(functions: Iterable[Any]) -> None:
        tasks = [batch.function(function, queue, SIZES[1]) for function in functions]
        for task in tasks:
            task.start()
        assert tasks[-1].get() == SIZES[1]

    def pass_theirs(functions: Iterable[Any]) -> None:
        calls = [client.submit(function, theirs, FEW, pure=False) for function in functions]
        assert calls[-1].result() == FEW

    our = passing_time(pass_ours, SIZES[1])
    table.row("an item from a task to another", our * 1e6, "µs")
    table.row("  vs distributed.Queue", passing_time(pass_theirs, FEW) / our, least=3)
    queue.close()


def main() -> None:
    table = Table(f"A dictionary and a queue; {WORKERS} workers each")
    with Batch(num_workers=WORKERS) as batch, raw_dask() as client:
        small_values(table, batch, client)
        large_values(table, batch, client)
        copies(table, batch)
        queues(table, batch, client)
    table.end()


if __name__ == "__main__":
    main()
