"""The examples of dictionaries and queues run unchanged, and print the expected output."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import EXAMPLES

PRINTED = {
    "ddict_matrix_powers": "powers in the dictionary: 1001\nthe last one is right: True",
    "fibonacci": (
        "the first: 0 1 1 2 3 5 8 13 21 34 55 89\n"
        "the last: 173402521172797813159685037284371942044301\n"
        "the same through files: True"
    ),
    "heat_equation": (
        "rank 0 of 2: 59 rows, at most 100.0 degrees\n"
        "rank 1 of 2: 59 rows, at most 1.6 degrees\n"
        "as without MPI: True"
    ),
    "producer_consumer": (
        "6 consumers on 2 slots took 300 items\n"
        "each item once: True\n"
        "each producer's items in order: True"
    ),
}


def test_all_examples_are_listed() -> None:
    listed = (EXAMPLES / "README.md").read_text("utf-8")
    for path in EXAMPLES.iterdir():
        if path.suffix in (".py", ".yml"):
            assert f"`{path.name}`" in listed


@pytest.mark.parametrize("name", PRINTED)
def test_an_example_prints_what_it_found(name: str, tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == PRINTED[name]
    assert run.stderr == ""


def test_the_shuffle_has_a_lost_output_made_again(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", EXAMPLES / "execute_shuffle.py", "--files", "60"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        "60 files, 6 map tasks, 6 reduce tasks",
        "made again: map 0",
        "the most frequent word: self",
        "as counted one by one: True",
    ]
    assert run.stderr == ""
