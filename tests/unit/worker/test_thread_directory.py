"""A thread enters the directory of a Batch, and other threads stay where they are."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from daskbatch.worker.execution import thread_directory


@pytest.fixture
def other(tmp_path: Path) -> str:
    path = tmp_path / "the other directory, mit ü"
    path.mkdir()
    return str(path)


@pytest.fixture(params=[True, False], ids=["for threads", "for the process"])
def in_thread(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., object]]:
    """Call functions in a new thread, on a system that has directories of threads or has none."""
    if request.param and sys.platform != "linux":
        pytest.skip("only Linux lets a thread have a working directory")
    monkeypatch.setattr(thread_directory, "_threads_have_directories", lambda: request.param)
    before = os.getcwd()
    with ThreadPoolExecutor(1) as pool:
        yield lambda function, *args: pool.submit(function, *args).result()
    assert os.getcwd() == before


def test_a_thread_enters_a_directory_and_returns(
    in_thread: Callable[..., object], other: str
) -> None:
    before = os.getcwd()
    assert in_thread(thread_directory.enter, other) is True
    assert in_thread(os.getcwd) == other
    in_thread(thread_directory.leave)
    assert in_thread(os.getcwd) == before


def test_the_error_of_a_missing_directory_names_host_and_path(
    in_thread: Callable[..., object], tmp_path: Path
) -> None:
    before = os.getcwd()
    with pytest.raises(FileNotFoundError, match=r"the host \S+ does not exist: '.*missing'"):
        in_thread(thread_directory.enter, str(tmp_path / "missing"))
    assert in_thread(os.getcwd) == before


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has working directories of threads")
def test_other_threads_do_not_move_and_started_ones_do(other: str) -> None:
    before, seen = os.getcwd(), []
    entered, done = threading.Event(), threading.Event()

    def keep_directory() -> None:
        entered.wait()
        seen.append(os.getcwd())
        done.wait()
        seen.append(os.getcwd())

    def enter_and_leave() -> threading.Thread:
        thread_directory.enter(other)
        started = threading.Thread(target=keep_directory)
        started.start()
        entered.set()
        while not seen:
            pass
        thread_directory.leave()
        return started

    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(enter_and_leave).result()
        assert os.getcwd() == before
        assert pool.submit(os.getcwd).result() == before
        # A thread that sees the directory which it has already does nothing.
        assert pool.submit(thread_directory.enter, before).result() is False
    done.set()
    started.join()
    assert seen == [other, other]


def test_where_threads_have_none_another_directory_is_an_error(
    monkeypatch: pytest.MonkeyPatch, other: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(thread_directory, "_threads_have_directories", lambda: False)
    before = os.getcwd()
    assert thread_directory.enter(other)
    assert thread_directory.enter(other)
    with pytest.raises(OSError, match=r"tasks run in .*isolation=.process"):
        thread_directory.enter(str(tmp_path))
    thread_directory.leave()
    assert os.getcwd() == other
    thread_directory.leave()
    assert os.getcwd() == before
    assert thread_directory.enter(str(tmp_path))
    thread_directory.leave()
