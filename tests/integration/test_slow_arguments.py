"""The outcome of a task is reported before its large arguments are freed, which may take long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from daskbatch import Batch


class Lasting:
    """An object that is not gone before a file is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Lasting, (self.path,)

    def __del__(self) -> None:
        end = time.monotonic() + 60
        while not self.path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        self.path.with_suffix(".gone").touch()


def make(path: Path) -> list[Any]:
    return [Lasting(path), *(bytes(90) + str(number).encode() for number in range(120_000))]


def count_with(items: list[Any], path: Path) -> int:
    """Return how many items there are; the first one lasts until there is a file."""
    items[0].path = path
    return len(items)


@pytest.fixture(params=["thread", "process"])
def batch(shared_batch: Batch, request: pytest.FixtureRequest) -> Any:
    return shared_batch.options(isolation=request.param)


@pytest.mark.parametrize("number", range(3))
def test_an_outcome_is_there_before_the_arguments_are_gone(
    batch: Any, tmp_path: Path, number: int
) -> None:
    (tmp_path / "made").touch()  # the object that the first task makes does not last
    made = batch.function(make, tmp_path / "made")
    made.run(timeout=60)
    counted = batch.function(count_with, made, tmp_path / "go")
    try:
        counted.run(timeout=30)
        assert counted.get() == 120_001
        assert not (tmp_path / "go.gone").exists()
    finally:
        (tmp_path / "go").touch()
