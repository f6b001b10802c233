"""Two workers do not reach each other; both are alive, and the scheduler reaches both.

Dask would repeat its attempts for ever. The limit of one attempt is so long here that a program
that waits for one does not end in time.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from support.host_cluster import host_cluster
from support.hosts import hosts

SETTINGS = {
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "300s",
    "DASK_DISTRIBUTED__COMM__TIMEOUTS__TCP": "300s",
}

#: The first worker has fetched a value from the second one before the link is cut, and the second
#: one has fetched none.
PROGRAM = """
import sys, time
from daskbatch import Batch

def make(number):
    return number.to_bytes(4, "little") * 100_000

def first(value):
    assert value == value[:4] * 100_000
    return int.from_bytes(value[:4], "little")

with Batch(sys.argv[1]) as batch:
    while batch.num_workers < 2:
        time.sleep(0.05)
    workers = sorted(batch.client.sync(batch.client.scheduler.identity, n_workers=-1)["workers"])
    at = [batch.options(workers=worker) for worker in workers]
    values = [at[1].function(make, number) for number in range(3)] + [at[0].function(make, 3)]
    batch.compile(values).run(60)
    # Submitted after the workers of the values have them.
    fetched = at[0].function(first, values[0])
    fetched.run(60)
    future = batch.client.submit(make, 4, workers=workers[1:], pure=False)
    future.result()
    print("made", flush=True)
    sys.stdin.readline()
    tasks = [at[0].function(first, values[1]), at[1].function(first, values[3])]
    batch.compile(tasks).run(60)
    again = at[0].function(first, values[2])
    again.run(60)
    of_future = at[0].function(first, future)
    of_future.run(60)
    print([task.get() for task in (fetched, *tasks, again, of_future)], flush=True)
"""


def test_values_come_by_way_of_the_scheduler(tmp_path: Path) -> None:
    path = os.pathsep.join(filter(None, sys.path))
    settings = {**SETTINGS, "PYTHONPATH": path}
    with hosts(4) as made, host_cluster(made, 2, tmp_path, settings) as cluster:
        for host in (1, 2):
            cluster.start_worker(host)
        program = subprocess.Popen(
            made.command(3, sys.executable, "-c", PROGRAM, cluster.scheduler_address),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "made\n"
            made.cut_between(1, 2)
            said, _ = program.communicate("cut\n", timeout=240)
        finally:
            program.kill()
            program.wait()
    assert said == "[0, 1, 3, 2, 4]\n"
