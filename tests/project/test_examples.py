"""The examples run unchanged, end with what they have found, and leave the pictures they promise.

The examples that need a Batch of their own start a cluster; the others run on a cluster that the
tests share, as with ``DASKBATCH_CLUSTER=...``. `tests/integration/test_dropin.py` runs those of the
executor, `tests/integration/test_seed.py` the programs of the documents unchanged.
"""

from __future__ import annotations

import importlib.util
import os
import re
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import EXAMPLES

from daskbatch import Batch

POWERS = "power  largest element\n    {}  {}\n   10  0.265705\n  100  0.214609\n 1000  0.214609"

PRINTED = {
    "fibonacci": (
        "the first: 0 1 1 2 3 5 8 13 21 34 55 89\n"
        "the last: 173402521172797813159685037284371942044301\n"
        "the same through files: True"
    ),
    "heat_equation": (
        "rank 0 of 2: 59 rows, at most 100.0 degrees\n"
        "rank 1 of 2: 59 rows, at most 1.6 degrees\n"
        "as without MPI: True\n"
        "picture: heat_equation.png"
    ),
    "producer_consumer": (
        "6 consumers on 2 slots took 300 items\n"
        "each item once: True\n"
        "each producer's items in order: True"
    ),
    "seeds/ddict_matrix_powers": (
        POWERS.format("1", "1.000000")
        + "\npowers in the dictionary: 1001\nthe last one is right: True"
    ),
    "seeds/matrix_powers": POWERS.format("2", "0.500214"),
    "seeds/matrix_powers_lazy": POWERS.format("2", "0.500214"),
}


def run_example(directory: Path, *command: str, cluster: Batch | None = None) -> str:
    """Run an example in a directory; return what it printed, once it has succeeded in silence."""
    environment = {**os.environ, "TMPDIR": str(directory)}
    if cluster is not None:
        environment["DASKBATCH_CLUSTER"] = cluster.client.scheduler.address
    name, *arguments = command
    program = EXAMPLES / f"{name}.py"
    run = subprocess.run(
        [sys.executable, "-W", "error", program, *arguments],
        # The one with a template names it without a directory.
        cwd=program.parent if name.endswith("_lazy") else directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout.strip()


def size_of_picture(path: Path) -> tuple[int, int]:
    """Return width and height of a PNG."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return struct.unpack(">II", head[16:])


def test_all_examples_are_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    for path in EXAMPLES.rglob("*"):
        if path.suffix in (".py", ".yml", ".json", ".sh", ".sbatch"):
            assert f"`{path.relative_to(EXAMPLES).as_posix()}`" in listed


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_found(name: str, batch: Batch, tmp_path: Path) -> None:
    # Those two import a module beside them, which only a cluster of theirs finds.
    own = name.startswith("seeds/matrix")
    assert run_example(tmp_path, name, cluster=None if own else batch) == PRINTED[name]
    if name == "heat_equation":
        assert size_of_picture(tmp_path / "heat_equation.png") == (120, 120)


def test_the_shuffle_has_a_lost_output_made_again(tmp_path: Path) -> None:
    lines = run_example(tmp_path, "execute_shuffle", "--files", "60").splitlines()
    assert lines[:5] == [
        "60 files, 6 map tasks, 6 reduce tasks",
        "made again: map 0",
        "as counted one by one: True",
        "",
        "word        times",
    ]
    counts = [int(line.split()[1]) for line in lines[5:]]
    assert lines[5].split()[0] == "self"
    assert len(counts) == 10
    assert counts == sorted(counts, reverse=True)


def test_the_pandas_pipeline_draws_a_plot(batch: Batch, tmp_path: Path) -> None:
    for package in ("pandas", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install '.[examples]'")
    lines = run_example(tmp_path, "pandas_pipeline", cluster=batch).splitlines()
    assert lines[0].split() == ["Askim", "Bodø", "Cuxhaven", "Delft"]
    means = {int(line.split()[0]): [float(n) for n in line.split()[1:]] for line in lines[2:14]}
    assert list(means) == list(range(1, 13))
    assert all(low < high for low, high in zip(means[1], means[7], strict=True))
    assert lines[14].startswith("left out: {'Askim': 8")
    assert size_of_picture(tmp_path / "pandas_pipeline.png") == (768, 576)


def test_monte_carlo_leaves_out_the_part_that_always_fails(batch: Batch, tmp_path: Path) -> None:
    lines = run_example(tmp_path, "monte_carlo", cluster=batch).splitlines()
    parts = [line.split(maxsplit=3) for line in lines[1:13]]
    assert [part[2] for part in parts] == ["done"] * 8 + ["failed"] + ["done"] * 3
    assert parts[8][3] == "OSError: the license server does not answer"
    assert [int(parts[number][1]) >= 2 for number in (3, 5, 8)] == [True] * 3
    estimate = re.fullmatch(r"volume by 11 of 12 parts: (5\.\d+) ± 0\.0\d+", lines[13])
    assert estimate
    assert abs(float(estimate[1]) - 5.168) < 0.05
    assert lines[14] == "exactly: 5.168"


def test_the_tiles_are_one_picture(batch: Batch, tmp_path: Path) -> None:
    pytest.importorskip("PIL", reason="Pillow is not installed: pip install '.[dashboard]'")
    options = ("--tiles", "3", "--size", "32")
    lines = run_example(tmp_path, "image_tiles", *options, cluster=batch).splitlines()
    assert [line.split()[:2] for line in lines[1:4]] == [
        ["compute", "9"],
        ["sharpen", "9"],
        ["put_together", "1"],
    ]
    # Nine tiles, twelve pairs of neighbours that read each other, nine tiles for the picture.
    assert lines[4].startswith(f"{9 + 2 * 12 + 9} edges follow from the files")
    assert size_of_picture(tmp_path / "image_tiles.png") == (96, 96)


def test_a_workflow_has_the_edges_that_its_instance_lists(batch: Batch, tmp_path: Path) -> None:
    lines = run_example(tmp_path, "wfcommons_workflow", "--speed=1e6", cluster=batch).splitlines()
    assert sum(int(line.split()[1]) for line in lines[1:9]) == 97
    assert lines[9] == "218 edges follow from the files, 218 of them are listed"
    assert (tmp_path / "wfcommons_workflow.html").read_text("utf-8").startswith("<!doctype html>")
