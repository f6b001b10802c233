"""`cpus_per_job` is read as a number of cores, and limits the threads of libraries."""

from __future__ import annotations

import pytest

from daskbatch import SpecError
from daskbatch.describe.gang import count_cores, thread_limits


@pytest.mark.parametrize(
    ("given", "cpus", "threads"),
    [
        (2, 2.0, "2"),
        (1.5, 1.5, "1"),
        ("0.25", 0.25, "1"),
        ("500m", 0.5, "1"),
        ("2500m", 2.5, "2"),
        (" 4 ", 4.0, "4"),
        (".5", 0.5, "1"),
    ],
)
def test_numbers_of_cores(given: float | str, cpus: float, threads: str) -> None:
    assert count_cores(given, "cpus_per_job=") == cpus
    assert set(thread_limits(cpus).values()) == {threads}
    assert len(thread_limits(cpus)) == 5


@pytest.mark.parametrize("wrong", [0, -1, "0", "two", "1k", "", True, None, [1], float("nan")])
def test_what_is_none(wrong: object) -> None:
    with pytest.raises(SpecError, match="cpus_per_job"):
        count_cores(wrong, "cpus_per_job=")  # type: ignore[arg-type]
