"""Whole programs write nothing to stderr at their end, however it comes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.dask_log import without_what_dask_says

#: The Batch and the cluster end with the interpreter.
NOTHING_CLOSED = """
from distributed import LocalCluster
from daskbatch import Batch

if __name__ == "__main__":
    cluster = LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0")
    batch = Batch(cluster)
    batch.compile([batch.function(abs, -i) for i in range(100)]).run(60)
    batch.ddict()[1] = 2
    batch.queue().put(1)
    print("done")
"""

#: The Dask client of the Batch is closed first, while news of a cancelled task is on the way.
CLIENT_CLOSED_FIRST = """
from distributed import Client, LocalCluster
from daskbatch import Batch

if __name__ == "__main__":
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as cluster, Client(cluster) as client:
        batch = Batch(client)
        batch.compile([batch.function(abs, -i) for i in range(100)]).run(60)
        task = batch.function(abs, -1)
        task.start()
        task.cancel()
    print("done")
"""

#: The worker closes while it has a block whose thread has not begun it.
NOT_BEGUN = """
import threading
from distributed import Client, LocalCluster
from daskbatch import Batch, ServiceLost

occupied, leave = threading.Event(), threading.Event()

class Leave:
    # The worker calls it after it has cancelled its keys.
    def teardown(self, worker):
        leave.set()

if __name__ == "__main__":
    with LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0"
    ) as cluster, Client(cluster) as client:
        batch = Batch(client)
        batch.function(abs, -1).run(60)
        worker = cluster.workers[0]
        # An open block may still wait in the only thread for its next task. It gives way.
        worker.executor.submit(lambda: (occupied.set(), leave.wait()))
        task = batch.function(abs, -1)
        assert occupied.wait(60)
        task.start()
        while not worker.state.executing:
            threading.Event().wait(0.01)
        worker.plugins["leave"] = Leave()
        client.close()
    try:
        task.get(60)
    except ServiceLost:
        print("done")
"""

#: The scheduler is killed while a task runs.
SCHEDULER_KILLED = """
import os, subprocess, sys, time
from daskbatch import Batch, ServiceLost

def start(program, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_" + program, *arguments, "--no-dashboard"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

if __name__ == "__main__":
    file = "scheduler.json"
    scheduler = start("scheduler", "--port", "0", "--scheduler-file", file)
    worker = start("worker", "--scheduler-file", file, "--nthreads", "1", "--no-nanny")
    try:
        batch = Batch(file)
        batch.function(abs, -1).run(60)
        batch.ddict()[1] = 2
        task = batch.function(time.sleep, 60)
        task.start()
        scheduler.kill()
        try:
            task.get(60)
        except ServiceLost:
            print("done")
        batch.terminate()
    finally:
        for process in (scheduler, worker):
            process.kill()
            process.wait()
"""


@pytest.mark.parametrize(
    "program",
    [NOTHING_CLOSED, CLIENT_CLOSED_FIRST, NOT_BEGUN, SCHEDULER_KILLED],
    ids=["nothing closed", "client closed first", "not begun", "scheduler killed"],
)
def test_stderr_is_empty(program: str, tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(program)
    paths = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, str(script)],
        capture_output=True,
        text=True,
        timeout=180,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths},
    )
    said = without_what_dask_says(done.stderr)
    assert (done.returncode, done.stdout, said) == (0, "done\n", "")
