"""The items of a queue on its worker: who has an item, and whether there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.caught import Caught, blocked

from daskbatch.shared.data.codec import Value
from daskbatch.shared.data.messages import Request
from daskbatch.shared.rpc.answer import ResultToConfirm
from daskbatch.shared.store.operations import QUEUE_GET, QUEUE_PUT, Operation
from daskbatch.shared.store.queue_state import QueueState
from daskbatch.shared.store.spill import SpillStore


@pytest.fixture
def queue(tmp_path: Path) -> QueueState:
    return QueueState("Queue", SpillStore(1 << 20, tmp_path / "store"), maxsize=1)


def ask(queue: QueueState, operation: Operation, *arguments: Value, wait: float = 0.0) -> Any:
    return queue(Request(operation.name, b"", 0, wait, arguments), lambda: False)


def taken(queue: QueueState, value: Value) -> ResultToConfirm:
    found = ask(queue, QUEUE_GET)
    assert isinstance(found, ResultToConfirm)
    assert found.result == value
    return found


def test_an_item_that_is_handed_out_leaves_room_at_once(queue: QueueState) -> None:
    assert ask(queue, QUEUE_PUT, b"a")
    assert not ask(queue, QUEUE_PUT, b"b")
    answer = taken(queue, b"a")
    # The consumer may have told another client that there is room, before it has confirmed.
    assert ask(queue, QUEUE_PUT, b"b")
    answer.settle(True)
    taken(queue, b"b").settle(True)
    assert ask(queue, QUEUE_GET) is None


def test_who_waits_for_room_has_it_when_an_item_is_handed_out(queue: QueueState) -> None:
    assert ask(queue, QUEUE_PUT, b"a")
    putter = Caught(lambda: ask(queue, QUEUE_PUT, b"b", wait=30.0))
    blocked(putter)
    answer = taken(queue, b"a")
    assert putter.result() is True
    answer.settle(True)


def test_an_item_that_comes_back_is_the_first_though_there_is_no_room(queue: QueueState) -> None:
    assert ask(queue, QUEUE_PUT, b"a")
    gone = taken(queue, b"a")
    assert ask(queue, QUEUE_PUT, b"b")
    gone.settle(False)
    assert not ask(queue, QUEUE_PUT, b"c")
    taken(queue, b"a").settle(True)
    assert not ask(queue, QUEUE_PUT, b"c")
    taken(queue, b"b").settle(True)
    assert ask(queue, QUEUE_PUT, b"c")
