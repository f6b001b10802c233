"""Compares warm jobs of a callable on 2 ranks with executorlib's block allocation.

executorlib runs in an interpreter of its own, which the environment variable EXECUTORLIB_PYTHON
names; by default in this one. Where executorlib is not installed, only our times are shown. Both
run in turn, in the same run of this program.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

from common import WORKERS, Table

from daskbatch import Batch

JOBS = 200
ROUNDS = 3
RANKS = 2

#: What executorlib's interpreter runs: the time of jobs that are started at once, and of jobs that
#: are started one after another.
_EXECUTORLIB = """
import time
from executorlib import SingleNodeExecutor

def total(number):
    from mpi4py import MPI
    return MPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.rank + number)

if __name__ == "__main__":
    with SingleNodeExecutor(
        block_allocation=True, max_workers=1, resource_dict={{"cores": {ranks}}}
    ) as executor:
        for _ in range(10):
            executor.submit(total, 1).result()
        began = time.perf_counter()
        futures = [executor.submit(total, number) for number in range({jobs})]
        for future in futures:
            future.result()
        middle = time.perf_counter()
        for number in range({jobs}):
            executor.submit(total, number).result()
        print(middle - began, time.perf_counter() - middle)
"""


def total(number: int) -> int:
    from mpi4py import MPI

    return int(MPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.rank + number))


def by_batch(batch: Batch) -> tuple[float, float]:
    """Return the seconds of jobs in one program, and of jobs of which each waits for the last."""
    warm = batch.compile([batch.job(total, 1, num_procs=RANKS) for _ in range(10)])
    warm.run()
    began = time.perf_counter()
    program = batch.compile([batch.job(total, number, num_procs=RANKS) for number in range(JOBS)])
    program.run()
    assert program.get() == [[2 * number + 1] * RANKS for number in range(JOBS)]
    middle = time.perf_counter()
    for number in range(JOBS):
        job = batch.job(total, number, num_procs=RANKS)
        job.run()
        assert job.get() == [2 * number + 1] * RANKS
    return middle - began, time.perf_counter() - middle


def by_executorlib(python: str) -> tuple[float, float]:
    """Return the same for executorlib."""
    environment = dict(os.environ)
    environment["PATH"] = f"{os.path.dirname(python)}{os.pathsep}{environment.get('PATH', '')}"
    program = _EXECUTORLIB.format(jobs=JOBS, ranks=RANKS)
    # executorlib's children must find the function in a file.
    path = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"executorlib-{os.getpid()}.py")
    with open(path, "w", encoding="utf-8") as file:
        file.write(program)
    try:
        done = subprocess.run(
            [python, path], env=environment, capture_output=True, text=True, check=True
        )
    finally:
        os.unlink(path)
    at_once, in_turn = map(float, done.stdout.split())
    return at_once, in_turn


def has_executorlib(python: str) -> bool:
    """Return whether an interpreter can import executorlib and mpi4py."""
    command = [python, "-c", "import executorlib, mpi4py"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def main() -> None:
    table = Table(f"warm jobs of a callable on {RANKS} ranks, {JOBS} jobs")
    python = os.environ.get("EXECUTORLIB_PYTHON", sys.executable)
    compare = has_executorlib(python)
    ours, theirs = [], []
    with Batch(num_workers=WORKERS) as batch:
        for _ in range(ROUNDS):
            ours.append(by_batch(batch))
            if compare:
                theirs.append(by_executorlib(python))
    for position, how in enumerate(("started at once", "each waits for the one before")):
        mine = statistics.median(each[position] for each in ours)
        table.row(f"{how}: milliseconds a job", mine / JOBS * 1000, "ms")
        if compare:
            other = statistics.median(each[position] for each in theirs)
            table.row(f"{how}: our rate over executorlib's", other / mine, least=1.0)
    if not compare:
        print(f"  executorlib is not installed for {python}: see EXECUTORLIB_PYTHON")
    table.end()


if __name__ == "__main__":
    main()
