"""Declared files that are not there are noticed, though nothing is looked for twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from support.payloads import call, spec

from daskbatch.worker.execution.block import DeclaredFiles
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.declared_files import (
    INPUT,
    OUTPUT,
    missing_inputs,
    missing_outputs,
)


def write(path: Path) -> None:
    path.write_text("text")


def remove(path: Path) -> None:
    path.unlink()


def read(path: Path) -> None:
    """Read a file, if it is there."""


def noticed(path: Path, *steps: tuple[Callable[..., None], bool]) -> list[tuple[int, str]]:
    """Return the members, and the kinds, of what is noticed of functions that declare a file."""
    declared = {
        member: DeclaredFiles((str(path),), (str(path),))
        for member, (_, declares) in enumerate(steps)
        if declares
    }
    run = BlockRun(spec(*(call(function, path) for function, _ in steps), declared=declared), [])
    assert not any(run().statuses)
    return [(notice.member, notice.kind) for notice in run.take_notices()]


def test_a_chain_of_tasks_that_change_one_file(tmp_path: Path) -> None:
    path = tmp_path / "ü file"
    assert noticed(path, (write, True), (read, True), (write, True)) == [(0, INPUT)]


def test_a_file_that_a_declared_task_has_removed(tmp_path: Path) -> None:
    found = noticed(tmp_path / "file", (write, True), (remove, True), (read, True))
    assert found == [(0, INPUT), (1, OUTPUT), (2, INPUT), (2, OUTPUT)]


def test_a_file_that_a_task_between_has_removed(tmp_path: Path) -> None:
    found = noticed(tmp_path / "file", (write, True), (remove, False), (read, True))
    assert found == [(0, INPUT), (2, INPUT), (2, OUTPUT)]


def test_a_file_that_a_task_is_to_remove(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write(path)
    removing = DeclaredFiles((str(path),), (str(path),), (str(path),))
    reading = DeclaredFiles((str(path),))
    calls = call(remove, path), call(read, path)
    run = BlockRun(spec(*calls, declared={0: removing, 1: reading}), [])
    run()
    assert [(notice.member, notice.kind) for notice in run.take_notices()] == [(1, INPUT)]


def test_names_of_files_that_never_exist() -> None:
    """Nothing is missing where not even the first directory exists."""
    declared = DeclaredFiles(("/no such directory ü/a",), ("/no such directory ü/b",))
    assert missing_inputs(declared) == missing_outputs(declared) == ()


def test_a_first_directory_that_is_made_later(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is believed for a moment only that it does not exist."""
    now = [100.0]
    monkeypatch.setattr("daskbatch.worker.execution.declared_files.monotonic", lambda: now[0])
    first = tmp_path / "first"
    monkeypatch.setattr(
        "daskbatch.worker.execution.declared_files._first_directory", lambda path: str(first)
    )
    path = str(first / "file")
    assert missing_inputs(DeclaredFiles((path,))) == ()
    os.mkdir(first)
    now[0] += 1.0
    assert missing_inputs(DeclaredFiles((path,))) == (path,)
