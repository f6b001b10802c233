"""Times chains: each task needs the one before, by its result or by what it reads and writes.

Compared with a chain of `client.submit`, and with a `ProcessPoolExecutor` that is given one call
after another, each once the result of the one before has arrived.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor

from common import WORKERS, Table, raw_dask, seconds
from distributed import Client

from daskbatch import Batch

SIZES = (100, 1_000, 3_000)


def increment(number: int) -> int:
    return number + 1


def by_argument(batch: Batch, count: int) -> None:
    tasks = [batch.function(increment, 0)]
    for _ in range(count - 1):
        tasks.append(batch.function(increment, tasks[-1].result))
    batch.compile(tasks).run()
    assert tasks[-1].result.get() == count


def by_file(batch: Batch, count: int) -> None:
    read, write = batch.read("/a/file"), batch.write("/a/file")
    tasks = [
        batch.function(increment, number, reads=[read], writes=[write]) for number in range(count)
    ]
    batch.compile(tasks).run()
    assert tasks[-1].result.get() == count


def by_dask(client: Client, count: int) -> None:
    future = client.submit(increment, 0, pure=False)
    futures = [future]
    for _ in range(count - 1):
        futures.append(client.submit(increment, futures[-1], pure=False))
    assert futures[-1].result() == count


def by_pool(pool: ProcessPoolExecutor, count: int) -> None:
    number = 0
    for _ in range(count):
        number = pool.submit(increment, number).result()
    assert number == count


def main() -> None:
    with raw_dask() as client:
        by_dask(client, 10)
        of_dask = {count: count / seconds(lambda n=count: by_dask(client, n)) for count in SIZES}
    with ProcessPoolExecutor(WORKERS) as pool:
        by_pool(pool, 10)
        of_pool = {count: count / seconds(lambda n=count: by_pool(pool, n), 3) for count in SIZES}
    with Batch(num_workers=WORKERS) as batch:
        by_argument(batch, 10)
        arguments = {
            count: count / seconds(lambda n=count: by_argument(batch, n), 5) for count in SIZES
        }
        files = {count: count / seconds(lambda n=count: by_file(batch, n), 5) for count in SIZES}

    table = Table("chains: our rate over theirs")
    for count in SIZES:
        asked = count == 1_000
        table.row(
            f"{count} by argument, against client.submit",
            arguments[count] / of_dask[count],
            least=60 if asked else None,
        )
        table.row(
            f"{count} by argument, against ProcessPoolExecutor.submit",
            arguments[count] / of_pool[count],
            least=1 if asked else None,
        )
        # Times on a shared machine vary by some per cent; "no slower" allows for that.
        table.row(
            f"{count} by one file, against by argument",
            files[count] / arguments[count],
            least=0.95 if asked else None,
        )
    table.end()


if __name__ == "__main__":
    main()
