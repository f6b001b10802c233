"""Compares the client's peak memory for 100 000 no-ops with that of a plain Dask client.

Each client is a separate process, without its cluster, so that only the clients' memory counts.
Plain Dask has ``worker-saturation: inf``; without it, its run would take three minutes.
"""

from __future__ import annotations

import subprocess
import sys

import dask
from common import Table, own_cluster

SIZES = (10_000, 30_000, 100_000)

OURS = """
import resource, sys
from daskbatch import Batch
def noop(number): return number
batch = Batch(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
program = batch.compile([batch.function(noop, n) for n in range(int(sys.argv[2]))])
program.run()
assert program.get() == list(range(int(sys.argv[2])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, before)
"""

THEIRS = """
import resource, sys
from distributed import Client
def noop(number): return number
client = Client(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
futures = client.map(noop, range(int(sys.argv[2])), pure=False)
assert client.gather(futures) == list(range(int(sys.argv[2])))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, before)
"""


def peak(program: str, count: int) -> tuple[float, float]:
    """Return the peak in MB, and the part of it that the tasks added."""
    with own_cluster() as address:
        done = subprocess.run(
            [sys.executable, "-c", program, address, str(count)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
    most, before = map(int, done.stdout.split())
    return most / 1024, (most - before) / 1024


def main() -> None:
    dask.config.set({"distributed.scheduler.worker-saturation": "inf"})
    table = Table("peak memory of the client: ours over plain Dask's")
    for count in SIZES:
        (ours, our_part), (theirs, their_part) = peak(OURS, count), peak(THEIRS, count)
        table.row_at_most(
            f"{count} no-ops ({ours:.0f} and {theirs:.0f} MB)", ours / theirs, "×", 1.0
        )
        table.row(
            f"… of what comes with the tasks ({our_part:.0f} and {their_part:.0f} MB)",
            our_part / their_part,
        )
    table.end()


if __name__ == "__main__":
    main()
