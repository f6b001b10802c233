"""Checks that no array moves if tasks only come after its producer, and do not take it."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import WORKERS, Table, workers_of

from daskbatch import Batch


def produce(number: int) -> np.ndarray:
    return np.full(1_000_000, float(number))


def follow(number: int) -> int:
    return number


def received(dask_worker: Any) -> int:
    return sum(each["total"] for each in dask_worker.transfer_incoming_log)


def main() -> None:
    table = Table("arrays of 8 MB, each followed by order edges")
    with Batch(num_workers=WORKERS) as batch:
        # In the last case the successors must run on the other worker.
        first, second = workers_of(batch.client)
        for count, where in ((5, False), (20, False), (40, False), (20, True)):
            before = sum(batch.client.run(received).values())
            makers, followers = batch, batch
            if where:
                makers, followers = (
                    lambda **a: batch.options(workers=first, **a),
                    lambda **a: batch.options(workers=second, **a),
                )
            else:
                makers = followers = batch.options
            tasks = [
                makers(writes=[batch.write("/d", f"{n}")]).function(produce, n)
                for n in range(count)
            ] + [
                followers(
                    reads=[batch.read("/d", f"{n}")], writes=[batch.write("/d", f"{n}")]
                ).function(follow, n)
                for n in range(count)
            ]
            batch.compile(tasks).run()
            moved = sum(batch.client.run(received).values()) - before
            what = "on another worker" if where else "anywhere"
            table.row_at_most(
                f"{count} producers, followers {what}: kB moved", moved / 1000, "kB", most=100
            )
            assert tasks[1].get()[0] == 1.0, "the values are there when asked for"
    table.end()


if __name__ == "__main__":
    main()
