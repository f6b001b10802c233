"""Random programs on a real cluster have the same outcome as a sequential run."""

from __future__ import annotations

import random
from pathlib import Path

import dask
import pytest
from support.programs import make_root, random_program, run_as_batch, run_sequentially

from daskbatch import Batch


@pytest.mark.parametrize(
    ("workers", "budget", "seeds"),
    [
        (1, "200ms", range(3)),
        (2, "200ms", range(20, 24)),
        (4, "20ms", range(50, 53)),
        # With so small a budget each block comes back after its first task or two.
        (2, "0ms", range(70, 73)),
        (3, "2ms", range(90, 93)),
    ],
)
def test_programs_end_as_their_sequential_run(
    workers: int, budget: str, seeds: range, tmp_path: Path
) -> None:
    with dask.config.set({"daskbatch.block-budget": budget}), Batch(num_workers=workers) as batch:
        for seed in seeds:
            rng = random.Random(seed)
            length = rng.choice([5, 20, 60, 150])
            steps = random_program(rng, length, seconds=rng.choice([0, 0, 0.002, 0.02]))
            expected = run_sequentially(make_root(tmp_path / f"{seed}-expected"), steps)
            found = run_as_batch(batch, make_root(tmp_path / f"{seed}-found"), steps)
            assert found == expected, f"seed {seed}"
