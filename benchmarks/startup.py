"""Times `Batch()` until its first result, compared with `Client(n_workers=2)`."""

from __future__ import annotations

import statistics
import subprocess
import sys

from common import Table

OURS = """
import time
from daskbatch import Batch
if __name__ == "__main__":
    began = time.perf_counter()
    batch = Batch(num_workers={workers})
    task = batch.function(abs, -1)
    task.run()
    assert task.get() == 1
    print(time.perf_counter() - began)
"""

THEIRS = """
import time
from distributed import Client
if __name__ == "__main__":
    began = time.perf_counter()
    client = Client(n_workers={workers}, threads_per_worker=1, dashboard_address="127.0.0.1:0")
    assert client.submit(abs, -1).result() == 1
    print(time.perf_counter() - began)
"""


def median(program: str, workers: int) -> float:
    times = []
    for _ in range(5):
        done = subprocess.run(
            [sys.executable, "-c", program.format(workers=workers)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=True,
        )
        times.append(float(done.stdout.split()[0]))
    return statistics.median(times)


def main() -> None:
    table = Table("from nothing to a first result: our time over that of Client(n_workers=…)")
    for workers in (1, 2, 4):
        ratio = median(OURS, workers) / median(THEIRS, workers)
        table.row_at_most(f"{workers} workers", ratio, "×", most=2.0)
    table.end()


if __name__ == "__main__":
    main()
