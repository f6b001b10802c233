"""Compares jobs of executables with ``mpiexec -n 2`` by hand."""

from __future__ import annotations

import statistics
import subprocess
import sys

from common import Table, seconds

from daskbatch import Batch
from daskbatch.worker.mpi.launcher import find_launcher

RANKS = 2
REPEAT = 30

#: A program that starts MPI and exchanges one number: the shortest that is of use.
PROGRAM = "from mpi4py import MPI; assert MPI.COMM_WORLD.allreduce(1) == 2"


def by_batch(batch: Batch, command: list[str]) -> None:
    job = batch.job(*command, num_procs=RANKS)
    job.run()
    assert job.get() == 0


def by_hand(launcher: list[str], command: list[str]) -> None:
    subprocess.run([*launcher, "-n", str(RANKS), *command], check=True)


def main() -> None:
    table = Table("a job of an executable on 2 ranks: our time over that of mpiexec -n 2")
    launcher = list(find_launcher().words)
    sleep = ["sleep", "1"]
    mpi = [sys.executable, "-c", PROGRAM]
    with Batch(num_workers=RANKS) as batch:
        for what, command, repeat in (("mpi4py", mpi, REPEAT), ("sleep 1", sleep, 3)):
            by_batch(batch, command)
            by_hand(launcher, command)
            # In turns, so that a change of the machine's load affects both.
            ours, theirs = [], []
            for _ in range(repeat):
                ours.append(seconds(lambda c=command: by_batch(batch, c)))
                theirs.append(seconds(lambda c=command: by_hand(launcher, c)))
            lower, ratio, upper = (
                a / b
                for a, b in zip(
                    statistics.quantiles(ours), statistics.quantiles(theirs), strict=True
                )
            )
            table.row(f"{what}, lower quartiles of {repeat}", lower, "×")
            table.row(f"{what}, upper quartiles of {repeat}", upper, "×")
            table.row_at_most(f"{what}, medians of {repeat}", ratio, "×", most=1.15)
    table.end()


if __name__ == "__main__":
    main()
