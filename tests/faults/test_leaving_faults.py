"""A program goes on while workers join, leave, die and freeze at random: a few runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from faults.leaving_harness import run_many
from faults.links import run_on_hosts


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("kills", [False, True])
def test_nothing_is_lost_or_done_twice(kills: bool, tmp_path: Path) -> None:
    tally = run_many([3 if kills else 2], kills, tmp_path)
    assert not tally.violations, "\n".join(tally.violations)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_links_are_cut_as_well() -> None:
    """Two workers do not reach each other, or a link is broken for a moment: nothing fails."""
    why, failed = run_on_hosts([3], kills=False)
    if why:
        pytest.skip(f"links cannot be cut here: {why}")
    assert not failed
