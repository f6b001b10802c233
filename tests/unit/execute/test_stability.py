"""When the number of workers is stable: the rule of `bndl.execute`, at given times."""

from __future__ import annotations

import pytest

from daskbatch.execute.workers.stability import is_stable


@pytest.mark.parametrize(
    ("connected", "now", "stable"),
    [
        ([], 0.0, True),
        ([float("-inf")] * 3, 0.0, True),  # connected before the first check
        ([0.0], 4.9, False),  # one worker, which has just connected
        ([0.0], 5.0, True),
        ([0.0, 1.0], 3.0, False),  # several workers: after the last, twice the largest gap
        ([0.0, 1.0], 3.1, True),
        ([0.0, 3.0, 4.0], 9.9, False),
        ([0.0, 3.0, 4.0], 10.1, True),
        ([0.0, 0.0], 0.1, True),
        ([0.0, 59.0], 60.0, False),  # the first is too long ago to count
        ([0.0, 59.0], 64.0, True),
    ],
)
def test_the_rule(connected: list[float], now: float, stable: bool) -> None:
    assert is_stable(connected, now, connect_timeout=5, stable_timeout=60) is stable
