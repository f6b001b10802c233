"""Parallel jobs while workers and ranks are killed: the rest goes on, and nothing is left."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import psutil
import pytest
from distributed import Worker
from support.processes import is_running, shared_memory_of
from support.waiting import read_pid, wait_until, wait_until_running

from daskbatch import Batch, ProcessFailed, TaskCancelled, WorkerLost
from daskbatch.batch.task import Task

#: A program of MPI. Each rank appends its process to a file, and stays until a file exists.
PROGRAM = """
import os, sys, time
from pathlib import Path
from mpi4py import MPI

comm = MPI.COMM_WORLD
place, go = sys.argv[1:]
comm.Barrier()
with open(f"{place}.{comm.rank}", "a") as file:
    file.write(f"{os.getpid()}\\n")
while not os.path.exists(go):
    time.sleep(0.02)
comm.Barrier()
"""


def job(batch: Batch, place: Path, go: Path, **options: object) -> Task:
    return batch.job(sys.executable, "-c", PROGRAM, place, go, num_procs=2, **options)  # type: ignore[arg-type]


def ranks(place: Path, run: int = 1) -> list[int]:
    """Return the processes of the ranks of the `run`-th run of a job, once they have started."""
    files = [Path(f"{place}.{rank}") for rank in (0, 1)]

    def lines() -> list[list[str]]:
        return [file.read_text().split() if file.exists() else [] for file in files]

    wait_until(lambda: all(len(each) >= run for each in lines()), "the ranks did not start")
    return [int(each[run - 1]) for each in lines()]


def assert_none_left(files: set[Path]) -> None:
    wait_until(lambda: not any(file.exists() for file in files), f"some of {files} are left")


def worker_of(pid: int) -> int:
    """Return the worker that has started a rank: itself, or by a launcher."""
    ancestors = psutil.Process(pid).parents()
    for process in ancestors:
        if any("mpiexec" in word for word in process.cmdline()[:1]):
            return process.ppid()
    return ancestors[0].pid


@pytest.mark.slow
@pytest.mark.parametrize("may_run_again", [True, False])
def test_the_worker_of_a_job_is_killed(tmp_path: Path, may_run_again: bool) -> None:
    place, go = tmp_path / "ranks", tmp_path / "go"
    with Batch(num_workers=2) as batch:
        reads = None if may_run_again else batch.read(place)
        task = job(batch, place, go, reads=reads, writes=batch.write(place))
        task.start()
        first = ranks(place)
        files = shared_memory_of(first[0])
        assert files
        wait_until_running(task)
        os.kill(worker_of(first[0]), signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, first)), "ranks still run")
        if may_run_again:
            second = ranks(place, run=2)
            files |= shared_memory_of(second[0])
            go.touch()
            task.wait(timeout=120)
            assert task.get() == 0
            wait_until(lambda: not any(map(is_running, second)))
        else:
            with pytest.raises(WorkerLost):
                task.get(timeout=120)
        after = batch.job("true", num_procs=2)
        after.run(timeout=120)
        assert after.get() == 0
    assert_none_left(files)


@pytest.mark.slow
def test_the_client_of_a_job_is_killed(tmp_path: Path) -> None:
    place, go = tmp_path / "ranks", tmp_path / "go"
    program = (
        "import sys; from daskbatch import Batch\n"
        "batch = Batch(num_workers=2)\n"
        "batch.job(sys.executable, '-c', *sys.argv[1:], num_procs=2).run()"
    )
    command = [sys.executable, "-c", program, PROGRAM, str(place), str(go)]
    client = psutil.Popen(command)
    try:
        pids = ranks(place)
        files = shared_memory_of(pids[0])
    finally:
        client.kill()
        client.wait()
    wait_until(lambda: not any(map(is_running, pids)), "ranks still run")
    assert_none_left(files)


def held(dask_worker: Worker) -> tuple[int, int]:
    me = psutil.Process()
    return me.num_fds(), len(me.children(recursive=True))


@pytest.mark.slow
def test_nothing_piles_up_over_faults_of_jobs(tmp_path: Path) -> None:
    def one_round(number: int) -> None:
        failing = batch.job("sh", "-c", "exit $DASKBATCH_RANK", num_procs=2)
        missing = batch.job("no-such-program", num_procs=2)
        batch.compile([failing, missing]).run(timeout=120)
        for task in (failing, missing):
            with pytest.raises(ProcessFailed):
                task.get()
        place = tmp_path / str(number)
        killed = job(batch, place, tmp_path / "none")
        killed.start()
        pids = ranks(place)
        files.update(shared_memory_of(pids[0]))
        os.kill(pids[1], signal.SIGKILL)
        with pytest.raises(ProcessFailed, match="rank 1 of 2: .* was ended by SIGKILL"):
            killed.get(timeout=120)
        stay = batch.job(
            "sh", "-c", 'echo $$ > "$0.$DASKBATCH_RANK"; sleep 600', f"{place}-stay", num_procs=2
        )
        stay.start()
        for rank in (0, 1):
            read_pid(Path(f"{place}-stay.{rank}"))
        wait_until_running(stay)
        stay.cancel()
        stay.wait(timeout=120)
        with pytest.raises(TaskCancelled):
            stay.get()

    files: set[Path] = set()
    with Batch(num_workers=2) as batch:
        one_round(-1)
        at_first = batch.client.run(held)
        for number in range(5):
            one_round(number)
        wait_until(
            lambda: all(
                now <= then + 3
                for worker, some in batch.client.run(held).items()
                for now, then in zip(some, at_first[worker], strict=True)
            ),
            "files or processes pile up",
        )
    assert_none_left(files)
