"""Random programs end correctly while processes are killed: the seeds that are run each time."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.engine_harness import run_seeds


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("workers", "seeds"),
    [
        (2, [1]),
        (2, [10_003]),
        (2, [12_001]),
        (2, [13_001]),
        (2, [20_008]),
        (3, [19]),
        (4, [44]),
    ],
)
def test_nothing_is_corrupted(workers: int, seeds: list[int], tmp_path: Path) -> None:
    # What is killed depends on the moments: a child or an executable is preferred, if there is one.
    # A short program may be over before: another one follows then.
    for attempt in range(8):
        others = [seed + attempt for seed in seeds]
        tally = run_seeds(others, workers, tmp_path / str(attempt))
        assert not tally.violations, "\n".join(tally.violations)
        if sum(tally.counts[f"killed {kind}"] for kind in ("worker", "child", "executable")):
            return
    pytest.fail(f"nothing was killed: {tally}")
