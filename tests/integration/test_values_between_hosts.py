"""A large value travels once to a host, although several workers there need it.

The hosts are network namespaces. The workers of the second one have process numbers of their own,
so they can map the memory of each other, and not that of the first host.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.hosts import Hosts, hosts
from support.paths import PROJECT
from support.processes import end_all

MEGABYTES = 16

PROGRAM = """
import json, sys
import numpy as np
from daskbatch import Batch

address, first = sys.argv[1:]
COUNT = 2_000_000  # numbers: 16 MB


def make(number):
    return np.full(COUNT, float(number))


def total(*arrays):
    arrays[0][0] += 1  # its own copy
    return float(sum(array.sum() for array in arrays))


with Batch(address) as batch:
    batch.client.wait_for_workers(3, timeout=60)
    client = batch.client
    workers = list(client.sync(client.scheduler.identity, n_workers=-1)["workers"])
    others = [each for each in workers if first not in each]
    assert len(others) == 2

    def run(numbers):
        made = [batch.options(workers=[first]).function(make, n) for n in numbers]
        batch.compile(made).run(check=True)
        # Both ask for all of it at about the same moment.
        asked = [batch.options(workers=[each]).function(total, *made) for each in others * 3]
        batch.compile(asked).run(check=True, timeout=60)
        return [task.get() for task in asked], made

    def memory(dask_worker):
        # What this worker has made or received, and did not map.
        from daskbatch.memory.arena import own_arena
        arena = own_arena()
        return 0 if arena is None else arena._end

    found = {"small": run([1])[0]}
    kept = run([2, 3])
    found["two"] = kept[0]
    given = np.full(COUNT, 5.0)
    asked = [batch.options(workers=[each]).function(total, given) for each in workers * 2]
    batch.compile(asked).run(check=True, timeout=60)
    found["given"] = [task.get() for task in asked]
    found["sent"] = sum(
        each["total"]
        for each in batch.client.run(lambda dask_worker: list(dask_worker.transfer_outgoing_log))[
            next(each for each in workers if first in each)
        ]
    )
print(json.dumps(found))
"""


def received_bytes(made: Hosts, host: int) -> int:
    """Return how many bytes a host has received from others."""
    path = "/sys/class/net/e0/statistics/rx_bytes"
    command = made.command(host, "cat", path)
    return int(subprocess.run(command, check=True, capture_output=True).stdout)


@contextlib.contextmanager
def running(programs: list[list[str]], log: Path) -> Iterator[None]:
    started: list[subprocess.Popen[bytes]] = []
    with log.open("wb") as file:
        try:
            for program in programs:
                started.append(subprocess.Popen(program, stdout=file, stderr=file, cwd="/"))
            yield
        finally:
            end_all(started)


def test_a_value_travels_once_to_a_host(tmp_path: Path) -> None:
    with hosts(2) as made:
        separate = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]
        if subprocess.run([*separate, "true"], check=False).returncode:
            pytest.skip("process numbers of their own are not allowed here")
        address = f"tcp://{made.addresses[0]}:8786"
        python = f"PYTHONPATH={PROJECT}", sys.executable, "-m"
        worker = (
            *("env", *python, "distributed.cli.dask_worker", address, "--no-nanny"),
            *("--nthreads", "1", "--no-dashboard", "--local-directory", str(tmp_path)),
        )
        both = " ".join(worker) + f" --host {made.addresses[1]}"
        programs = [
            made.command(
                *(0, "env", *python, "distributed.cli.dask_scheduler", "--no-dashboard"),
                *("--host", made.addresses[0], "--port", "8786"),
            ),
            made.command(0, *worker, "--host", made.addresses[0]),
            made.command(1, *separate, "sh", "-c", f"{both} & {both} & wait"),
        ]
        with running(programs, tmp_path / "log"):
            done = subprocess.run(
                made.command(
                    *(0, "env", f"PYTHONPATH={PROJECT}", sys.executable, "-c", PROGRAM),
                    *(address, made.addresses[0]),
                ),
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, done.stderr + (tmp_path / "log").read_text()
            found = json.loads(done.stdout)
            arrived = received_bytes(made, 1)
        count = 2_000_000
        assert found["small"] == [count + 1.0] * 6
        assert found["two"] == [count * 5 + 1.0] * 6
        assert found["given"] == [count * 5 + 1.0] * 6
        # Four arrays of 16 MB for two workers: each has arrived once.
        assert 64_000_000 <= arrived < 76_000_000
