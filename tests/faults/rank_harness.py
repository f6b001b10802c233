"""Runs random jobs of callables while ranks, launchers and workers are killed, and checks the rest.

``PYTHONPATH=tests python -m faults.rank_harness --seeds 0-49`` does so for many seeds. A seed
determines the jobs and the faults: runs of one seed are similar, but not equal.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from daskbatch import Batch, TaskCancelled, TaskCrashed, TaskTimeout, WorkerLost
from daskbatch.batch.task import Task

#: A job must be over after this time.
_LIMIT_SECONDS = 120.0

#: Names, in the environment, everything that a run has started.
_RUN = "DASKBATCH_RANK_FAULTS"

WORKERS = 2

#: What the ranks of a job do, and how often.
KINDS = {
    "value": 8,
    "array": 2,
    "unreceived": 2,
    "raise": 2,
    "exit": 1,
    "killed": 2,
    "late": 1,
    "cancelled": 2,
    "nested": 1,
}


class Expected(Exception):
    """What a rank raises on purpose."""


def act(kind: str, number: int, directory: str, array: Any = None, batch: Any = None) -> Any:
    """Run on each rank: do what the kind of the job says."""
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    pid = Path(directory, f"busy-{os.getpid()}")
    # Two jobs in the same rank at a time, or one after a job that was ended, would find the file.
    pid.touch(exist_ok=False)
    last = comm.rank == comm.size - 1
    if kind == "raise" and last:
        pid.unlink()
        raise Expected(number)
    if kind == "exit" and last:
        os._exit(5)
    if kind == "killed" and last:
        os.kill(os.getpid(), signal.SIGKILL)
    if kind in ("raise", "exit", "killed"):
        comm.barrier()
    if kind in ("late", "cancelled"):
        Path(directory, f"runs-{number}").touch()
        time.sleep(1000)
    if kind == "unreceived" and comm.size > 1 and comm.rank == 0:
        comm.isend("stale", 1, tag=1)
    total = comm.allreduce(number)
    if kind == "value" and comm.size > 1:
        # What an earlier job has sent, and nobody has received, would be received here.
        if comm.rank == 0:
            comm.send(number, 1, tag=1)
        elif comm.rank == 1:
            assert comm.recv(source=0, tag=1) == number
    if kind == "array":
        array += comm.rank
        total = float(array.sum())
    if kind == "nested":
        task = batch.function(pow, number, 2)
        task.start()
        total = task.get(timeout=_LIMIT_SECONDS)
    pid.unlink()
    return total


@dataclass
class Tally:
    """What has happened in all runs."""

    counts: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)


class Run:
    """The jobs of one seed, on one Batch."""

    def __init__(self, seed: int, batch: Batch, directory: Path, tally: Tally, kills: int) -> None:
        self._random = random.Random(seed)
        self._seed = seed
        self._batch = batch
        self._directory = directory
        self._tally = tally
        self._kills = kills

    def __call__(self, count: int) -> None:
        """Run as many jobs, in waves that are started together."""
        for wave in range(count // 5):
            jobs = [self._job(5 * wave + n) for n in range(5)]
            with self._killing():
                for _, _, task in jobs:
                    task.start()
                for kind, number, task in jobs:
                    if kind == "cancelled":
                        self._cancel(task, number)
                for kind, number, task in jobs:
                    self._check(kind, number, task)

    def _job(self, number: int) -> tuple[str, int, Task]:
        kind = self._random.choices(list(KINDS), list(KINDS.values()))[0]
        ranks = self._random.choice([1, 2, 2])
        isolation = self._random.choice([None, None, None, "fresh"])
        arguments: dict[str, Any] = {}
        if kind == "array":
            import numpy as np

            arguments["array"] = np.ones(1 << 16)
        if kind == "nested":
            arguments["batch"] = self._batch
        options = self._batch.options(
            isolation=isolation, timeout=3.0 if kind == "late" else None, name=f"{kind}-{number}"
        )
        task = options.job(act, kind, number, str(self._directory), num_procs=ranks, **arguments)
        return kind, number, task

    def _cancel(self, task: Task, number: int) -> None:
        if self._random.random() < 0.7:
            deadline = time.monotonic() + _LIMIT_SECONDS
            path = self._directory / f"runs-{number}"
            while not path.exists() and task.state not in ("failed", "done"):
                if time.monotonic() > deadline:
                    self._violation(f"{task.name} does not run")
                    break
                time.sleep(0.01)
        task.cancel()

    def _check(self, kind: str, number: int, task: Task) -> None:
        try:
            value = task.get(timeout=_LIMIT_SECONDS)
            found = "value"
        except Exception as error:
            value, found = error, type(error).__name__
        self._tally.counts[found] += 1
        allowed = {
            "raise": {Expected.__name__},
            "exit": {TaskCrashed.__name__},
            "killed": {TaskCrashed.__name__},
            "late": {TaskTimeout.__name__},
            "cancelled": {TaskCancelled.__name__},
        }.get(kind, {"value"})
        if self._kills:
            # A kill from outside may hit any job.
            allowed = allowed | {TaskCrashed.__name__, WorkerLost.__name__, "ProcessFailed"}
        if found not in allowed:
            self._violation(f"{task.name} ended with {found}: {value}")
        if found == "value":
            size = len(value)
            expected = {
                "array": [float((1 << 16) * (1 + rank)) for rank in range(size)],
                "nested": [number**2] * size,
            }.get(kind, [number * size] * size)
            if value != expected:
                self._violation(f"{task.name} returned {value}, not {expected}")

    def _violation(self, what: str) -> None:
        self._tally.violations.append(f"seed {self._seed}: {what}")

    @contextlib.contextmanager
    def _killing(self) -> Any:
        over = threading.Event()
        thread = threading.Thread(target=self._kill, args=(over,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _kill(self, over: threading.Event) -> None:
        """Kill some processes that belong to ranks, and now and then a worker."""
        for _ in range(self._kills):
            if over.wait(self._random.uniform(0.0, 1.5)):
                return
            if self._random.random() < 0.2:
                workers = self._batch.client.run(os.getpid)
                if workers:
                    self._tally.counts["killed worker"] += 1
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._random.choice(sorted(workers.values())), signal.SIGKILL)
                continue
            victims = [each for each in _carriers() if _is_victim(each)]
            if victims:
                victim = self._random.choice(sorted(victims, key=lambda each: each.pid))
                with contextlib.suppress(psutil.Error):
                    victim.kill()
                    self._tally.counts["killed"] += 1


def _carriers() -> list[psutil.Process]:
    """Return all processes of this run."""
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if each.pid != os.getpid() and each.environ().get(_RUN) == os.environ[_RUN]:
                found.append(each)
    return found


def _is_victim(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        words = " ".join(process.cmdline())
        # Launchers, supervisors and ranks.
        return "mpiexec" in words or "rank_main" in words
    return False


def run_seeds(seeds: Iterable[int], directory: Path, count: int = 20, kills: int = 2) -> Tally:
    """Run random jobs for each seed; return what has happened.

    Parameters
    ----------
    seeds : iterable of int
        The seeds.
    directory : Path
        An empty directory for the files of the jobs.
    count : int
        How many jobs there are for each seed.
    kills : int
        How many processes are killed at most while five jobs run.
    """
    tally = Tally()
    for seed in seeds:
        os.environ[_RUN] = f"{os.getpid()}-{seed}"
        files = directory / str(seed)
        files.mkdir()
        try:
            with Batch(num_workers=WORKERS) as batch:
                Run(seed, batch, files, tally, kills)(count)
        finally:
            deadline = time.monotonic() + _LIMIT_SECONDS
            while (remaining := _carriers()) and time.monotonic() < deadline:
                time.sleep(0.05)
            if remaining:
                tally.violations.append(f"seed {seed}: these processes are left: {remaining}")
            del os.environ[_RUN]
    return tally


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", default="0-9")
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--kills", type=int, default=2)
    given = parser.parse_args()
    first, _, last = given.seeds.partition("-")
    faulthandler.dump_traceback_later(3600, exit=True)
    failed = 0
    for seed in range(int(first), int(last or first) + 1):
        with tempfile.TemporaryDirectory() as directory:
            tally = run_seeds([seed], Path(directory), given.jobs, given.kills)
        failed += bool(tally.violations)
        print(seed, dict(tally.counts), *tally.violations, sep="\n  ", flush=True)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
