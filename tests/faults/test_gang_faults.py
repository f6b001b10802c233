"""Random gangs and functions never use a slot twice, and all of them end, while workers die."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.gang_harness import run_seeds


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(("shape", "seeds"), [("2x2", [4])])
def test_no_slot_is_used_twice_and_all_end(shape: str, seeds: list[int], tmp_path: Path) -> None:
    tally = run_seeds(seeds, shape, tmp_path)
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.counts["done"] > 0
