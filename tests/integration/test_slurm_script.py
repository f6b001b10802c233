"""The job script among the examples runs a program on all nodes of a job of SLURM."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.paths import EXAMPLES
from support.slurm import slurm

PROGRAM = """
import os, time
from pathlib import Path
from daskbatch import Batch

def write(number):
    time.sleep(0.2)
    Path(f"part.{number}").write_text(str(number))
    return os.environ["SLURMD_NODENAME"]

def add():
    return sum(int(Path(f"part.{number}").read_text()) for number in range(20))

with Batch() as batch:
    parts = [batch.function(write, n, writes=[batch.write(f"part.{n}")]) for n in range(20)]
    total = batch.function(add, reads=[batch.read(f"part.{n}") for n in range(20)])
    batch.compile([*parts, total]).run(timeout=120)
    print("total", total.get(), "nodes", *sorted({part.get() for part in parts}))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with slurm(tmp_path_factory.mktemp("slurm") / "home"):
        yield


@pytest.mark.usefixtures("cluster")
def test_the_job_script_runs_a_program_on_all_nodes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM, "utf-8")
    environment = {
        **os.environ,
        "PYTHON": sys.executable,
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "INTERFACE": "lo",
        "SCRATCH_DIRECTORY": str(tmp_path),
    }
    command = ["sbatch", "--wait", "--output=output", EXAMPLES / "slurm_job.sh", "program.py"]
    run = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    output = (tmp_path / "output").read_text("utf-8")
    logs = [path.read_text("utf-8")[-4000:] for path in tmp_path.glob("daskbatch-*/*.log")]
    assert run.returncode == 0, (run.stderr, output, *logs)
    assert output.strip() == "total 190 nodes n1 n2"
