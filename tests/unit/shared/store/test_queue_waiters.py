"""A waiting caller of a queue that is gone passes its item, or its room, on to the next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.caught import Caught, blocked

from daskbatch.shared.data.messages import Request
from daskbatch.shared.rpc.answer import ResultToConfirm
from daskbatch.shared.store.operations import QUEUE_GET, QUEUE_PUT, Operation
from daskbatch.shared.store.queue_state import QueueState
from daskbatch.shared.store.spill import SpillStore

#: So long that a call which waits for all of it counts as hanging. Seconds.
LONG = 600.0


@pytest.fixture
def state(tmp_path: Path) -> QueueState:
    return QueueState("Queue", SpillStore(1 << 20, tmp_path / "store"), maxsize=1)


def ask(state: QueueState, operation: Operation, *arguments: Any) -> Any:
    return state(Request(operation.name, b"", 0, 0.0, arguments), lambda: False)


def waiting(state: QueueState, operation: Operation, *arguments: Any, gone: bool) -> Caught:
    """Make a request in a thread, and wait until it is likely to wait."""
    request = Request(operation.name, b"", 0, LONG, arguments)
    caught = Caught(state, request, lambda: gone)
    blocked(caught)
    return caught


def test_an_item_goes_to_the_next_getter(state: QueueState) -> None:
    first, second = waiting(state, QUEUE_GET, gone=True), waiting(state, QUEUE_GET, gone=False)
    assert ask(state, QUEUE_PUT, b"a")
    assert first.result() is None
    answer = second.result()
    assert isinstance(answer, ResultToConfirm)
    assert answer.result == b"a"
    state.close()


def test_room_goes_to_the_next_putter(state: QueueState) -> None:
    assert ask(state, QUEUE_PUT, b"a")
    first = waiting(state, QUEUE_PUT, b"b", gone=True)
    second = waiting(state, QUEUE_PUT, b"c", gone=False)
    assert isinstance(ask(state, QUEUE_GET), ResultToConfirm)
    assert first.result() is False
    assert second.result() is True
    state.close()
