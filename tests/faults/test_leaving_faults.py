"""A program goes on while workers join, leave, die and freeze at random: a few runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.leaving_harness import run_many


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [False, True])
def test_nothing_is_lost_or_done_twice(kills: bool, tmp_path: Path) -> None:
    tally = run_many([3 if kills else 2], kills, tmp_path)
    assert not tally.violations, "\n".join(tally.violations)
