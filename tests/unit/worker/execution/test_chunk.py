"""Chunks, and initializers of processes, without a cluster."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from daskbatch import SerializationError, TaskCrashed
from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import unpack_error
from daskbatch.serialization.pickled_values import pack_values
from daskbatch.worker.execution.chunk import run_chunk
from daskbatch.worker.execution.initialized_function import (
    InitializedFunction,
    InitializerFailed,
    forget,
)
from daskbatch.worker.execution.interrupt import Stopped


def test_each_call_has_an_outcome_of_its_own() -> None:
    def call(number: int) -> Any:
        if number == 1:
            raise ValueError("one")
        if number == 2:
            sys.exit(5)
        return threading.Lock() if number == 3 else number

    chunk = run_chunk("'call'", call, [(number,) for number in range(5)])
    values = pickling.loads(pickling.dumps(chunk.values))
    assert [values.load(position) for position in range(5)] == [0, None, None, None, 4]
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


class Broken:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return sys.exit, (5,)


def test_values_are_loaded_one_by_one() -> None:
    class Local:
        def __init__(self, number: int) -> None:
            self.number = number

    values = [1, "text", [2], Broken(), Local(3), threading.Lock(), Local, Local(4), lambda: 5]
    packet, failed = pack_values(values)
    assert failed.keys() == {5}
    assert isinstance(failed[5], TypeError)
    packet = pickling.loads(pickling.dumps(packet))
    assert [packet.load(position) for position in range(3)] == [1, "text", [2]]
    with pytest.raises(SystemExit):
        packet.load(3)
    kind = packet.load(6)
    assert [(type(each), each.number) for each in map(packet.load, (4, 7))] == [
        (kind, 3),
        (kind, 4),
    ]
    assert packet.load(8)() == 5
    assert packet.load(5) is None


def test_what_values_have_in_common_is_sent_once() -> None:
    class Local:
        text = "x" * 10_000

    packet, failed = pack_values([Local() for _ in range(100)])
    assert not failed
    assert len(pickling.dumps(packet)) < 2 * 10_000


def test_a_class_that_cannot_be_sent_fails_its_own_values_only() -> None:
    class Local:
        lock = threading.Lock()

    class Other:
        pass

    packet, failed = pack_values([Local(), Other(), 1, Local()])
    assert failed.keys() == {0, 3}
    assert (type(packet.load(1)).__name__, packet.load(2)) == ("Other", 1)


def prepared(executor: str, initializer: Callable[..., Any], *initargs: Any) -> InitializedFunction:
    # Other threads, or this one, must see what it does.
    calls[executor] = partial(initializer, *initargs)
    return InitializedFunction(executor, pickling.dumps((call_it, (executor,))), abs)


calls: dict[str, Callable[[], Any]] = {}


def call_it(executor: str) -> None:
    calls[executor]()


@pytest.fixture(autouse=True)
def nothing_prepared() -> Iterator[None]:
    yield
    for executor in calls:
        forget(executor)
    calls.clear()


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

    slow = prepared("slow", initializer)
    slow.function = call
    threads = [threading.Thread(target=slow) for _ in range(3)]
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


def test_an_initializer_that_is_stopped_is_called_again() -> None:
    called: list[int] = []

    def initializer() -> None:
        called.append(1)
        if len(called) == 1:
            raise Stopped

    with pytest.raises(Stopped):
        prepared("stopped", initializer)(-1)
    assert prepared("stopped", initializer)(-1) == 1
    assert len(called) == 2
