"""Chunks and the preparing of processes, without a cluster."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from daskbatch import SerializationError, TaskCrashed, pickling
from daskbatch.worker.chunk import run_chunk
from daskbatch.worker.interrupt import Stopped
from daskbatch.worker.outcome import unpack_error
from daskbatch.worker.prepare import InitializerFailed, Prepared


def test_each_call_has_an_outcome_of_its_own() -> None:
    def call(number: int) -> Any:
        if number == 1:
            raise ValueError("one")
        if number == 2:
            sys.exit(5)
        return threading.Lock() if number == 3 else number

    chunk = run_chunk("'call'", call, [(number,) for number in range(5)])
    assert pickling.loads(chunk.values) == [0, None, None, None, 4]
    errors = {position: unpack_error(data) for position, data in chunk.errors.items()}
    kinds = {1: ValueError, 2: TaskCrashed, 3: SerializationError}
    assert {position: type(error) for position, error in errors.items()} == kinds
    assert "def call" not in str(errors[1].__cause__)
    assert "raise ValueError" in str(errors[1].__cause__)
    assert "task 'call': its result, a lock, cannot be sent" in str(errors[3])
    assert "task 'call', call 2 of the 5 in its chunk:\nTraceback" in str(errors[1].__cause__)


def test_a_chunk_that_is_stopped_stops() -> None:
    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        run_chunk("'stop'", stop, [()])


def prepared(key: str, initializer: Callable[..., Any], *initargs: Any) -> Prepared:
    return Prepared(key, initializer, initargs, abs)


def test_an_initializer_is_called_once_for_each_executor() -> None:
    called: list[str] = []
    for key in ("first", "first", "second"):
        assert prepared(key, called.append, key)(-1) == 1
    assert called == ["first", "second"]


def test_many_threads_wait_for_the_initializer() -> None:
    began, go_on = threading.Event(), threading.Event()
    order: list[str] = []

    def initializer() -> None:
        began.set()
        go_on.wait(10)
        order.append("prepared")

    def call() -> None:
        order.append("called")

    threads = [threading.Thread(target=Prepared("slow", initializer, (), call)) for _ in range(3)]
    for thread in threads:
        thread.start()
    assert began.wait(10)
    assert order == []
    go_on.set()
    for thread in threads:
        thread.join(10)
    assert order == ["prepared", "called", "called", "called"]


def test_an_initializer_that_fails_fails_every_call() -> None:
    def fail() -> None:
        raise ValueError("not today")

    for _ in range(2):
        with pytest.raises(InitializerFailed, match="ValueError: not today") as caught:
            prepared("failing", fail)(-1)
        assert isinstance(caught.value.__cause__, ValueError)
