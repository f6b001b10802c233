"""Relative paths mean the directory of the Batch, on workers that were started elsewhere, too."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import dask
import pytest
from distributed import Client
from support.outside import outside_cluster

from daskbatch import Batch, as_executor


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("elsewhere").resolve()


@pytest.fixture(scope="module")
def client(elsewhere: Path) -> Iterator[Client]:
    """A client of a worker with two threads that was started in another directory."""
    before = os.getcwd()
    os.chdir(elsewhere)
    try:
        with outside_cluster(1, 2) as cluster, Client(cluster, set_as_default=False) as client:
            os.chdir(before)
            yield client
    finally:
        os.chdir(before)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = (tmp_path / "the Batch's directory, mit ü").resolve()
    path.mkdir()
    monkeypatch.chdir(path)
    return path


@pytest.fixture
def batch(client: Client, here: Path) -> Iterator[Batch]:
    with Batch(client) as batch:
        yield batch


def write(name: str) -> str:
    Path(name).write_text("written", "utf-8")
    return os.getcwd()


def from_a_thread() -> str:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(os.getcwd()))
    thread.start()
    thread.join()
    return found[0]


def wander() -> str:
    os.chdir("/")
    return os.getcwd()


def from_a_task(batch: Batch) -> str:
    task = batch.function(os.getcwd)
    task.start()
    return str(task.get(60))


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_function_finds_relative_paths(batch: Batch, here: Path, isolation: str) -> None:
    task = batch.options(isolation=isolation).function(write, "made")
    task.run(60)
    assert task.get() == str(here)
    assert (here / "made").exists()


def test_an_executable_does(batch: Batch, here: Path) -> None:
    process = batch.process("pwd")
    process.run(60)
    assert process.stdout.get() == str(here)


def test_calls_nested_tasks_and_threads_of_tasks_do(batch: Batch, here: Path) -> None:
    program = batch.compile(
        [
            *(batch.function(os.getcwd) for _ in range(40)),
            batch.function(from_a_thread),
            batch.function(from_a_task, batch),
        ]
    )
    program.run(60)
    assert set(program.get()) == {str(here)}
    with as_executor(batch) as executor:
        assert {executor.submit(os.getcwd).result(60) for _ in range(10)} == {str(here)}


def test_a_task_that_changes_the_directory_changes_no_others(
    batch: Batch, here: Path, elsewhere: Path
) -> None:
    for function, directory in ((wander, "/"), (os.getcwd, str(here))):
        task = batch.function(function)
        task.run(60)
        assert task.get() == directory
    # Nor does it change that of plain Dask tasks, in either thread.
    futures = [batch.client.submit(os.getcwd, pure=False) for _ in range(10)]
    assert {future.result(60) for future in futures} == {str(elsewhere)}


def test_a_missing_directory_is_an_error_that_names_host_and_path(batch: Batch, here: Path) -> None:
    os.chdir("/")
    here.rename(here.with_name("moved"))
    tasks = [
        batch.function(os.getcwd),
        batch.options(isolation="process").function(os.getcwd),
        batch.process("pwd"),
    ]
    for task in tasks:
        task.start()
        with pytest.raises(FileNotFoundError, match=r"on the host \S+ does not exist") as caught:
            task.get(60)
        assert caught.value.filename == str(here)
    there = batch.options(cwd="/").function(os.getcwd)
    there.run(60)
    assert there.get() == "/"


def test_by_the_configuration_functions_run_where_their_worker_does(
    client: Client, here: Path, elsewhere: Path
) -> None:
    with dask.config.set({"daskbatch.working-directory": "worker"}), Batch(client) as batch:
        task = batch.function(os.getcwd)
        task.run(60)
        assert task.get() == str(elsewhere)
