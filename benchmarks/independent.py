"""Times independent no-ops: create them, compile, run, fetch all results.

Compared with `client.map` and `gather`, with Dask's defaults and with ``worker-saturation: inf``,
and with `ProcessPoolExecutor.map` with a chunksize of 1; each on two workers.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import dask
from common import WORKERS, Table, raw_dask, seconds

from daskbatch import Batch

SIZES = (1_000, 5_000, 10_000)


def noop(number: int) -> int:
    return number


def by_batch(batch: Batch, count: int) -> None:
    tasks = [batch.function(noop, number) for number in range(count)]
    batch.compile(tasks).run()
    assert [task.result.get() for task in tasks] == list(range(count))


def rates_of_dask() -> dict[int, float]:
    with raw_dask() as client:

        def run(count: int) -> Callable[[], None]:
            def map_and_gather() -> None:
                futures = client.map(noop, range(count), pure=False)
                assert client.gather(futures) == list(range(count))

            return map_and_gather

        run(100)()
        return {count: count / seconds(run(count), 2) for count in SIZES}


def main() -> None:
    default = rates_of_dask()
    with dask.config.set({"distributed.scheduler.worker-saturation": "inf"}):
        unbounded = rates_of_dask()
    with ProcessPoolExecutor(WORKERS) as pool:
        list(pool.map(noop, range(100)))
        of_pool = {
            count: count / seconds(lambda n=count: list(pool.map(noop, range(n))), 3)
            for count in SIZES
        }
    with Batch(num_workers=WORKERS) as batch:
        by_batch(batch, 100)
        ours = {count: count / seconds(lambda n=count: by_batch(batch, n), 9) for count in SIZES}

    table = Table("independent no-ops: our rate over theirs")
    for count in SIZES:
        last = count == SIZES[-1]
        table.row(
            f"{count} against client.map", ours[count] / default[count], least=50 if last else None
        )
        table.row(
            f"{count} against client.map, worker-saturation inf",
            ours[count] / unbounded[count],
            least=50 if last else None,
        )
        table.row(
            f"{count} against ProcessPoolExecutor.map",
            ours[count] / of_pool[count],
            least=1.5 if last else None,
        )
    table.row("our rate", ours[SIZES[-1]], "/s")
    table.end()


if __name__ == "__main__":
    main()
