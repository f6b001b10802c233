"""`tail` and `follow` return what tasks write, while they write it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.waiting import file_appears, wait_until, wait_until_running

from daskbatch import Batch, LifecycleError, SpecError
from daskbatch.batch.task import Task


def talk(go: Path) -> None:
    print("first\nsecond")
    print("to stderr", file=sys.stderr)
    assert file_appears(go)
    print("\u00e9 last")


def talk_by_descriptor(go: Path) -> None:
    subprocess.run(["echo", "first"], stdout=sys.stdout, check=True)
    print("second")
    assert file_appears(go)
    subprocess.run(["printf", "\u00e9 last"], stdout=sys.stdout, check=True)


SHELL = "echo first; echo second; while [ ! -e '{go}' ]; do sleep 0.02; done; printf '\u00e9 last'"


def in_thread(batch: Batch, go: Path) -> Task:
    return batch.function(talk, go)


def in_child(batch: Batch, go: Path) -> Task:
    return batch.options(isolation="process").function(talk, go)


def by_descriptor(batch: Batch, go: Path) -> Task:
    return batch.function(talk_by_descriptor, go)


def executable(batch: Batch, go: Path) -> Task:
    return batch.process("sh", "-c", SHELL.format(go=go))


KINDS = [in_thread, in_child, by_descriptor, executable]


@pytest.mark.parametrize("kind", KINDS)
def test_lines_are_there_before_the_task_is_over(
    batch: Batch, tmp_path: Path, kind: Callable[[Batch, Path], Task]
) -> None:
    go = tmp_path / "go \u00fc"
    task = kind(batch, go)
    assert task.stdout.tail() == []
    task.start()
    wait_until(lambda: task.stdout.tail() == ["first", "second"])
    assert task.state == "running"
    assert task.stdout.tail(1) == ["second"]
    lines = task.stdout.follow()
    assert [next(lines), next(lines)] == ["first", "second"]
    assert task.state == "running"
    go.touch()
    assert list(lines) == ["\u00e9 last"]
    assert task.stdout.get() == "first\nsecond\n\u00e9 last"
    assert task.stdout.tail(2) == ["second", "\u00e9 last"]
    assert list(task.stdout.follow()) == task.stdout.get().split("\n")


def test_stderr_is_followed_as_well(batch: Batch, tmp_path: Path) -> None:
    task = batch.function(talk, tmp_path / "go")
    task.start()
    lines = task.stderr.follow()
    assert next(lines) == "to stderr"
    (tmp_path / "go").touch()
    assert list(lines) == []


def fail_first(marker: Path, go: Path) -> None:
    if not marker.exists():
        print("lost attempt")
        assert file_appears(go)
        marker.touch()
        raise ValueError
    print("good attempt")


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_the_lines_of_the_next_attempt_follow(batch: Batch, tmp_path: Path, isolation: str) -> None:
    options = batch.options(isolation=isolation, retries=1)
    task = options.function(fail_first, tmp_path / "marker", tmp_path / "go")
    task.start()
    lines = task.stdout.follow()
    assert next(lines) == "lost attempt"
    (tmp_path / "go").touch()
    assert list(lines) == ["good attempt"]


def write_much(count: int, go: Path) -> None:
    print("begin")
    assert file_appears(go)
    for number in range(count):
        print(f"{number:099}")


def test_beyond_the_limit_the_last_lines_are_there(tmp_path: Path) -> None:
    import dask

    with dask.config.set({"daskbatch.output-limit": 20_000}), Batch(num_workers=1) as batch:
        for isolation in ("thread", "process"):
            go = tmp_path / isolation
            task = batch.options(isolation=isolation).function(write_much, 5000, go)
            task.start()
            lines = task.stdout.follow()
            assert next(lines) == "begin"
            go.touch()
            rest = list(lines)
            assert rest[-1] == f"{4999:099}"
            numbers = [int(line) for line in rest if line.isdigit()]
            assert numbers == sorted(set(numbers))
            assert task.stdout.tail(1) == [f"{4999:099}"]


def test_a_compiled_task_has_the_lines_of_its_members(batch: Batch) -> None:
    tasks = [batch.function(print, f"{number}a\n{number}b") for number in range(4)]
    program = batch.compile(tasks)
    with pytest.raises(LifecycleError):
        next(program.stdout.follow())
    program.start()
    lines = list(program.stdout.follow())
    assert sorted(lines) == sorted(f"{number}{letter}" for number in range(4) for letter in "ab")
    assert program.stdout.tail(3) == ["2b", "3a", "3b"]


def test_a_cancelled_task_ends_the_lines(batch: Batch, tmp_path: Path) -> None:
    task = batch.function(talk, tmp_path / "never")
    task.start()
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.extend(task.stdout.follow()))
    thread.start()
    wait_until(lambda: len(found) >= 0 and task.stdout.tail() != [])
    task.cancel()
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.parametrize("count", [0, -1, "two", True, 1.5])
def test_what_is_wrong_is_refused(batch: Batch, count: Any) -> None:
    task = batch.function(len, "four")
    with pytest.raises(SpecError, match="positive number"):
        task.stdout.tail(count)
    with pytest.raises(SpecError, match="result"):
        task.result.tail()
    with pytest.raises(SpecError, match="result"):
        task.result.follow()
    with pytest.raises(LifecycleError):
        task.stdout.follow()


RANKS = "echo r$DASKBATCH_RANK; while [ ! -e '{go}' ]; do sleep 0.02; done; echo end$DASKBATCH_RANK"


def test_the_lines_of_ranks_come_as_they_arrive(batch: Batch, tmp_path: Path) -> None:
    pytest.importorskip("mpi4py")
    go = tmp_path / "go"
    task = batch.job("sh", "-c", RANKS.format(go=go), num_procs=2)
    task.start()
    wait_until_running(task)
    lines = task.stdout.follow()
    assert {next(lines), next(lines)} == {"r0", "r1"}
    assert task.state == "running"
    go.touch()
    assert sorted(lines) == ["end0", "end1"]
    assert task.stdout.get() == "r0\nend0\nr1\nend1"
