"""Random jobs of callables end correctly while processes are killed: the seeds of each run."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.rank_harness import run_seeds
from support.ranks import needs_ranks


@needs_ranks
@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("seed", "kills"), [(2, 2)])
def test_no_job_sees_another_one_and_nothing_is_left(seed: int, kills: int, tmp_path: Path) -> None:
    tally = run_seeds([seed], tmp_path, count=10, kills=kills)
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.counts["value"] > 0
