"""Random jobs while workers are killed in the middle: some seeds of the harness."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.execute_harness import run_seed


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("seed", [2])
def test_jobs_are_right_whoever_dies(seed: int, tmp_path: Path) -> None:
    tally = run_seed(seed, tmp_path)
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.counts["killed"] > 0
