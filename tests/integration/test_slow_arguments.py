"""The outcome of a task is reported before its large arguments are freed, if these are plain."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from daskbatch import Batch

#: The items of a list that takes long to free.
COUNT = 120_000


class Lasting:
    """An object that is not gone before a file is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __del__(self) -> None:
        end = time.monotonic() + 60
        while not self.path.exists() and time.monotonic() < end:
            time.sleep(0.01)
        self.path.with_suffix(".gone").touch()


class Texts:
    """An object that takes long to free."""

    def __init__(self) -> None:
        self.texts = make()
        self.log: Any = None


def make() -> list[Any]:
    return [f"{number:90}" for number in range(COUNT)]


def count_with(items: list[Any], path: Path) -> int:
    """Return how many items there are; one in the middle, where nobody looks, lasts."""
    items[COUNT // 2] = Lasting(path)
    return len(items)


class LateWriter:
    """An object that writes a text to a file some time after it is not needed any longer."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def __del__(self) -> None:
        time.sleep(0.5)  # a reader that does not wait for it finds an empty file
        self.path.write_text("hello")


def keep_in_object(given: Texts, _: Any, path: Path) -> None:
    given.log = LateWriter(path)


def keep_at_end(texts: list[Any], _: Any, path: Path) -> None:
    texts.append([LateWriter(path)])


def keep_in_middle(texts: list[Any], _: Any, path: Path) -> None:
    texts[COUNT // 2] = LateWriter(path)


def keep_in_small_one(_: list[Any], given: Any, path: Path) -> None:
    given.append(LateWriter(path))


@pytest.fixture(params=["thread", "process"])
def batch(shared_batch: Batch, request: pytest.FixtureRequest) -> Any:
    return shared_batch.options(isolation=request.param)


@pytest.mark.parametrize("number", range(3))
def test_an_outcome_is_there_before_the_arguments_are_gone(
    batch: Any, tmp_path: Path, number: int
) -> None:
    made = batch.function(make)
    made.run(timeout=60)
    counted = batch.function(count_with, made, tmp_path / "go")
    try:
        counted.run(timeout=30)
        assert counted.get() == COUNT
        assert not (tmp_path / "go.gone").exists()
    finally:
        (tmp_path / "go").touch()


@pytest.mark.parametrize("keep", [keep_in_object, keep_at_end, keep_in_small_one])
def test_a_task_is_over_after_what_its_other_arguments_do_at_their_end(
    batch: Any, tmp_path: Path, keep: Any
) -> None:
    made = batch.function(Texts if keep is keep_in_object else make)
    kept = batch.function(keep, made, [], tmp_path / "log")
    made.run(timeout=60, check=True)
    kept.run(timeout=60, check=True)
    assert (tmp_path / "log").read_text() == "hello"


@pytest.mark.parametrize("keep", [keep_in_object, keep_at_end, keep_in_middle])
def test_who_reads_a_file_reads_all_that_an_earlier_task_has_written(
    shared_batch: Batch, tmp_path: Path, keep: Any
) -> None:
    path = tmp_path / "log"
    for isolation in ("thread", "process"):
        options = {"isolation": isolation}
        made = shared_batch.options(**options).function(Texts if keep is keep_in_object else make)
        write = [shared_batch.write(path)]
        kept = shared_batch.options(**options, writes=write).function(keep, made, [], path)
        read = shared_batch.options(**options, reads=[shared_batch.read(path)])
        readers = [read.function(path.read_text) for _ in range(3)]
        shared_batch.compile([made, kept, *readers]).run(timeout=60, check=True)
        assert [each.get() for each in readers] == ["hello"] * 3
        path.unlink()
