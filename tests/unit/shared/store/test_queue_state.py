"""What stands in a queue, as its worker sees it: who has an item, and where there is room."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.caught import Caught, blocked

from daskbatch.shared.data.codec import Value
from daskbatch.shared.rpc.answer import Answer
from daskbatch.shared.store.queue_state import QueueState
from daskbatch.shared.store.spill import SpillStore


@pytest.fixture
def line(tmp_path: Path) -> QueueState:
    return QueueState("Queue", SpillStore(1 << 20, tmp_path / "vault"), maxsize=1)


def ask(line: QueueState, operation: str, *arguments: Value, wait: float = 0.0) -> Any:
    return line((operation, b"", 0, wait, arguments), lambda: False)


def taken(line: QueueState, value: Value) -> Answer:
    found = ask(line, "get")
    assert isinstance(found, Answer)
    assert found.result == value
    return found


def test_an_item_that_is_handed_out_leaves_room_at_once(line: QueueState) -> None:
    assert ask(line, "put", b"a")
    assert not ask(line, "put", b"b")
    answer = taken(line, b"a")
    # Whoever has it may have said so to another one who puts, before it is known here.
    assert ask(line, "put", b"b")
    answer.settle(True)
    taken(line, b"b").settle(True)
    assert ask(line, "get") is None


def test_who_waits_for_room_has_it_when_an_item_is_handed_out(line: QueueState) -> None:
    assert ask(line, "put", b"a")
    putter = Caught(lambda: ask(line, "put", b"b", wait=30.0))
    blocked(putter)
    answer = taken(line, b"a")
    assert putter.result() is True
    answer.settle(True)


def test_an_item_that_comes_back_is_the_first_though_there_is_no_room(line: QueueState) -> None:
    assert ask(line, "put", b"a")
    gone = taken(line, b"a")
    assert ask(line, "put", b"b")
    gone.settle(False)
    assert not ask(line, "put", b"c")
    taken(line, b"a").settle(True)
    assert not ask(line, "put", b"c")
    taken(line, b"b").settle(True)
    assert ask(line, "put", b"c")
