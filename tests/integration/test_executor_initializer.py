"""Initializers of a `BatchPoolExecutor`: every call sees what they have set."""

from __future__ import annotations

import gc
import os
import textwrap
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.waiting import wait_until

from daskbatch import Batch, BatchPoolExecutor, SerializationError

SECONDS = 60

PROGRAM = """
    table = None

    class Reader:
        def read(self, index):
            return table[index]

    def set_up(values):
        global table
        table = values

    def look(index):
        return table[index]

    def length():
        return len(table)

    def extend(value):
        global table
        table = [*table, value]

    def apply(function, *args):
        return function(*args)
"""


@pytest.fixture
def main() -> Any:
    """A `__main__` module that workers do not have."""
    module = ModuleType("__main__")
    exec(textwrap.dedent(PROGRAM), vars(module))
    module.__dict__["last"] = eval("lambda: table[-1]", vars(module))
    return module


@pytest.fixture
def address(batch: Batch) -> str:
    """The address of the cluster that the tests share."""
    return str(batch.client.scheduler.address)


class Noted:
    """Writes to files when it is unpickled and when it is deleted."""

    def __init__(self, loaded: Path, gone: Path, content: bytes = b"") -> None:
        self.all = loaded, gone, content
        self.is_copy = False

    def __reduce__(self) -> Any:
        return load_noted, self.all

    def __del__(self) -> None:
        if self.is_copy:
            self.all[1].touch()


def load_noted(loaded: Path, gone: Path, content: bytes) -> Noted:
    with loaded.open("a") as file:
        file.write(f"{os.getpid()}\n")
    noted = Noted(loaded, gone, content)
    noted.is_copy = True
    return noted


# -- what they set --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"timeout": SECONDS}], ids=["thread", "child"])
def test_every_function_sees_what_it_has_set(main: Any, options: dict[str, Any]) -> None:
    # Whichever comes first.
    with BatchPoolExecutor(
        max_workers=1, initializer=main.set_up, initargs=([5, 6, 7],)
    ) as executor:
        some = executor.options(**options)
        assert list(some.map(main.look, range(3), chunksize=2)) == [5, 6, 7]
        assert some.submit(main.length).result(SECONDS) == 3
        assert some.submit(main.last).result(SECONDS) == 7
        assert some.submit(partial(main.look, 1)).result(SECONDS) == 6
        assert some.submit(main.Reader().read, 0).result(SECONDS) == 5
        assert some.submit(main.apply, main.look, 2).result(SECONDS) == 7
        assert list(some.map(main.look, range(3))) == [5, 6, 7]
        reader = some.submit(main.Reader)
        assert some.submit(main.apply, main.Reader.read, reader, 1).result(SECONDS) == 6
        # And what calls set.
        some.submit(main.extend, 8).result(SECONDS)
        assert list(some.map(main.look, [3, 3], chunksize=2)) == [8, 8]
        assert some.submit(main.last).result(SECONDS) == 8


def test_executors_on_the_same_workers_do_not_see_each_others(main: Any, address: str) -> None:
    def make(value: int) -> BatchPoolExecutor:
        return BatchPoolExecutor(cluster=address, initializer=main.set_up, initargs=([value],))

    with make(1) as one, make(2) as two:
        for _ in range(3):
            for executor, value in ((one, 1), (two, 2)):
                assert set(executor.map(main.look, [0] * 10)) == {value}
                assert executor.submit(main.last).result(SECONDS) == value
                assert executor.submit(main.Reader().read, 0).result(SECONDS) == value


# -- how their arguments get there ------------------------------------------------------------


def shared_keys(batch: Batch) -> list[str]:
    """Return the keys of the buffers on the cluster."""

    def find(dask_scheduler: Any) -> list[str]:
        return [
            key for key in map(str, dask_scheduler.tasks) if key.startswith("daskbatch_buffer-")
        ]

    found: list[str] = batch.client.run_on_scheduler(find)
    return found


def test_large_arguments_are_sent_once(batch: Batch, address: str, tmp_path: Path) -> None:
    loaded, gone = tmp_path / "loaded", tmp_path / "gone"
    before = shared_keys(batch)
    noted = Noted(loaded, gone, os.urandom(1 << 20))
    with BatchPoolExecutor(cluster=address, initializer=keep.append, initargs=(noted,)) as executor:
        keys = set()
        for function in (abs, int, float, str):
            executor.submit(function, 1).result(SECONDS)
            keys.update(set(shared_keys(batch)).difference(before))
            # Nothing but what the executor holds is there between two calls.
            assert len(set(shared_keys(batch)).difference(before)) == 1
        assert len(keys) == 1
        list(executor.map(time.sleep, [0.001] * 100, chunksize=5))
    by_process = loaded.read_text().split()
    assert len(by_process) == len(set(by_process)) <= 2
    wait_until(lambda: set(shared_keys(batch)) <= set(before))


def test_children_are_sent_them_once(main: Any, tmp_path: Path) -> None:
    loaded = tmp_path / "loaded"
    noted = Noted(loaded, tmp_path / "gone", os.urandom(1 << 20))
    with BatchPoolExecutor(max_workers=1, initializer=main.set_up, initargs=([noted],)) as executor:
        some = executor.options(isolation="process")
        for _ in range(3):
            assert some.submit(main.length).result(SECONDS) == 1
            assert list(some.map(pow, [2, 3], [2, 2])) == [4, 9]
    by_process = loaded.read_text().split()
    assert len(by_process) == len(set(by_process))


keep: list[Any] = []


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_nothing_is_left_of_an_executor_that_has_ended(
    main: Any, batch: Batch, address: str, tmp_path: Path, isolation: str
) -> None:
    gone = tmp_path / "gone"
    noted = Noted(tmp_path / "loaded", gone)
    with BatchPoolExecutor(
        cluster=address, initializer=main.set_up, initargs=([noted],)
    ) as executor:
        assert executor.options(isolation=isolation).submit(main.length).result(SECONDS) == 1
        assert not gone.exists()
        pid = int((tmp_path / "loaded").read_text())

    def let_go() -> bool:
        batch.client.run(gc.collect)
        return gone.exists() or not Path(f"/proc/{pid}").exists()

    wait_until(let_go)


# -- when they fail ---------------------------------------------------------------------------


@pytest.mark.parametrize("chunksize", [1, 3])
def test_one_that_fails_breaks_the_executor(address: str, chunksize: int) -> None:
    with BatchPoolExecutor(cluster=address, initializer=int, initargs=("no",)) as executor:
        with pytest.raises(BrokenExecutor, match="initializer failed"):
            list(executor.map(abs, range(10), chunksize=chunksize))
        with pytest.raises(BrokenExecutor, match="initializer failed"):
            executor.submit(abs, 1)


def test_one_that_cannot_be_sent_fails_the_calls(address: str) -> None:
    lock = threading.Lock()
    with BatchPoolExecutor(cluster=address, initializer=lambda: lock) as executor:
        future = executor.submit(abs, 1)
        assert isinstance(future.exception(SECONDS), SerializationError)


@pytest.fixture(autouse=True)
def nothing_kept() -> Iterator[None]:
    yield
    keep.clear()
