"""A DDict that is used from many sides while its workers are killed: a few runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from shared_faults import run_many


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("replicas", "numbers"), [(2, [0, 1, 2]), (1, [0, 1, 2])])
def test_what_was_acknowledged_is_kept_or_told_as_lost(
    replicas: int, numbers: list[int], tmp_path: Path
) -> None:
    tally = run_many(numbers, replicas, tmp_path)
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.counts["killed"] == replicas * len(numbers)
