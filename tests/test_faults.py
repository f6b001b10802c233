"""Random programs while workers, children and executables are killed: the recorded seeds."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults import run_seeds


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("workers", "seeds"),
    [
        (2, [1, 2, 5, 9, 300]),
        (2, [12, 15, 17, 101, 106]),
        (3, [0, 3, 11, 18, 19]),
        (4, [44, 84, 107, 113, 192]),
    ],
)
def test_nothing_is_corrupted(workers: int, seeds: list[int], tmp_path: Path) -> None:
    tally = run_seeds(seeds, workers, tmp_path)
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.counts["killed worker"] > 0
