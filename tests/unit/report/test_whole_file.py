"""A file is written as a whole, and an error names the file that was to be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from daskbatch.report.whole_file import write_whole


def test_it_replaces_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "page"
    write_whole(path, "old")
    write_whole(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["page"]


@pytest.mark.parametrize("name", ["none/page", "file/page"])
def test_an_error_names_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=name) as raised:
        write_whole(tmp_path / name, "text")
    assert raised.value.filename == str(tmp_path / name)
    assert ".daskbatch-" not in str(raised.value)


def test_a_directory_of_that_name_stays(tmp_path: Path) -> None:
    (tmp_path / "page").mkdir()
    with pytest.raises(IsADirectoryError, match="page"):
        write_whole(tmp_path / "page", "text")
    assert os.listdir(tmp_path) == ["page"]
