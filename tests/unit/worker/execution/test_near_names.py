"""For a path at which there is nothing, an existing path of a similar name is found."""

from __future__ import annotations

from pathlib import Path

import pytest

from daskbatch.worker.execution import near_names
from daskbatch.worker.execution.near_names import suggestion


@pytest.fixture(autouse=True)
def _files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data set/ä").mkdir(parents=True)
    (tmp_path / "data set/ä/one.csv").touch()
    (tmp_path / "top.txt").touch()
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("data set/ä/on.csv", "data set/ä/one.csv"),
        ("dataset/ä/one.csv", "data set/ä/one.csv"),
        ("dataset/ä/oe.csv", "data set/ä/one.csv"),
        ("topp.txt", "top.txt"),
        ("data_set", "data set"),
    ],
)
def test_one_is_near(path: str, meant: str, tmp_path: Path) -> None:
    assert suggestion(path) == f"; did you mean {meant}?"
    assert suggestion(str(tmp_path / path)) == f"; did you mean {tmp_path / meant}?"


@pytest.mark.parametrize(
    "path",
    [
        "top.txt",  # it exists
        "quite/different",
        "data set/ä/two.parquet",
        "top.txt/below",
        "",
        "/",
        "a\0b",
        "x/y/z/u/v",
        "data set/ä/" + "n" * 300,
    ],
)
def test_none_is_near(path: str) -> None:
    assert suggestion(path) == ""


def test_large_directories_are_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(near_names, "_MAX_COMPARED_NAMES", 1)
    assert suggestion("topp.txt") == ""
    assert suggestion("data set/ä/on.csv") != ""
