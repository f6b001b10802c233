"""Parallel jobs under the launcher of Open MPI, where it is installed (Debian's openmpi-bin)."""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from support.processes import is_running
from support.waiting import read_pid, wait_until

from daskbatch import Batch, ProcessFailed, ProcessTemplate, TaskTimeout
from daskbatch.worker.mpi.launcher import Kind, kind_of_version


def find_open_mpi() -> str | None:
    for name in ("mpiexec.openmpi", "mpiexec", "mpirun", "orterun"):
        path = shutil.which(name)
        if path is not None:
            answer = subprocess.run(
                [path, "--version"], capture_output=True, text=True, timeout=60, check=False
            )
            if kind_of_version(answer.stdout) is Kind.OPEN_MPI:
                return path
    return None


@pytest.fixture(scope="module")
def batch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Batch]:
    """A Batch whose workers find Open MPI first."""
    found = find_open_mpi()
    if found is None:
        pytest.skip("Open MPI is not installed: its mpiexec is not on the PATH")
    directory = tmp_path_factory.mktemp("open-mpi")
    (directory / "mpiexec").symlink_to(found)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
        with Batch(num_workers=2) as made:
            yield made


#: For mpi4py, whose wheels work with several MPIs: the library of Open MPI.
LIBRARY = ctypes.util.find_library("mpi") or ""
VARIABLES = {"MPI4PY_LIBMPI": LIBRARY, "MPI4PY_MPIABI": "openmpi"}

needs_mpi4py = pytest.mark.skipif(
    importlib.util.find_spec("mpi4py") is None or not LIBRARY,
    reason="mpi4py or the library of Open MPI is not installed",
)


def sessions() -> set[Path]:
    """Return the directories that launchers have made."""
    return set(Path("/tmp").glob(f"ompi.{socket.gethostname()}.{os.geteuid()}/pid.*"))


def test_output_and_codes_by_rank(batch: Batch) -> None:
    script = "echo $OMPI_COMM_WORLD_RANK $DASKBATCH_RANK $DASKBATCH_SIZE; exit $DASKBATCH_RANK"
    task = batch.job("sh", "-c", script, num_procs=2)
    task.run(timeout=120)
    with pytest.raises(ProcessFailed, match="rank 1 of 2: sh ended with exit code 1"):
        task.get()
    assert [task.stdout.rank(rank) for rank in (0, 1)] == ["0 0 2", "1 1 2"]


def test_several_executables(batch: Batch) -> None:
    parts = [(1, ProcessTemplate("sh", ("-c", f"echo {n}; exit {n}"))) for n in (0, 4)]
    task = batch.job(parts, check=False)
    task.run(timeout=120)
    assert task.get() == [0, 4]
    assert task.stdout.get() == "0\n4"


def test_the_input_of_the_first_rank(batch: Batch) -> None:
    task = batch.job("cat", num_procs=2, stdin="text")
    task.run(timeout=120)
    assert (task.stdout.rank(0), task.stdout.rank(1)) == ("text", "")


@needs_mpi4py
def test_a_program_of_mpi(batch: Batch) -> None:
    code = "from mpi4py import MPI; c = MPI.COMM_WORLD; print(c.allreduce(c.rank + 1))"
    task = batch.job("env", sys.executable, "-c", code, num_procs=2, env=VARIABLES)
    task.run(timeout=120)
    assert (task.get(), task.stdout.get()) == (0, "3\n3")


def total(x: int, comm: Any) -> tuple[int, int]:
    return comm.allreduce(x + comm.rank), os.getpid()


@needs_mpi4py
def test_callables(batch: Batch) -> None:
    command = (
        f"{find_open_mpi()} --allow-run-as-root --host localhost:{{num_procs}} -n {{num_procs}}"
    )
    with dask.config.set({"daskbatch.mpi-launcher": command}):
        first, second = (
            batch.options(env=VARIABLES).job(total, number, num_procs=2) for number in (1, 2)
        )
        first.run(timeout=120)
        second.run(timeout=120)
        assert [value for value, _ in first.get()] == [3, 3]
        assert [value for value, _ in second.get()] == [5, 5]
        assert [pid for _, pid in first.get()] == [pid for _, pid in second.get()]


def test_ends(batch: Batch, tmp_path: Path) -> None:
    before = sessions()
    script = 'echo $$ > "$0.$DASKBATCH_RANK"; sleep 600'

    def pids(place: str) -> list[int]:
        return [read_pid(tmp_path / f"{place}.{rank}") for rank in (0, 1)]

    late = batch.job("sh", "-c", script, tmp_path / "late", num_procs=2, timeout=3)
    late.run(timeout=120)
    with pytest.raises(TaskTimeout):
        late.get()
    killed = batch.job("sh", "-c", script, tmp_path / "killed", num_procs=2)
    killed.start()
    os.kill(pids("killed")[1], signal.SIGKILL)
    with pytest.raises(ProcessFailed, match="rank 1 of 2: sh was ended by SIGKILL"):
        killed.get(timeout=120)
    orphaned = batch.job("sh", "-c", script, tmp_path / "orphaned", num_procs=2)
    orphaned.start()
    pids("orphaned")
    (session,) = sessions() - before
    os.kill(int(session.name.removeprefix("pid.")), signal.SIGKILL)
    with pytest.raises(ProcessFailed, match="the launcher .* was ended by SIGKILL"):
        orphaned.get(timeout=120)
    assert not session.exists()
    both = pids("late") + pids("killed") + pids("orphaned")
    wait_until(lambda: not any(map(is_running, both)), "ranks still run")
