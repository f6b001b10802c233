"""Requests that arrive twice, or late, since a link was broken: they take effect once, in order.

A client repeats a request on another connection, or through the scheduler, while the server has not
noticed yet that the first connection is broken. What the client has sent on that one arrives when
the link works again.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.caught import Caught, blocked

from daskbatch.shared.data.codec import encode_key, pack
from daskbatch.shared.data.messages import Request
from daskbatch.shared.rpc.answer import ResultToConfirm
from daskbatch.shared.store import operations, queue_state
from daskbatch.shared.store.operations import (
    QSIZE,
    QUEUE_GET,
    QUEUE_PUT,
    QUEUE_RECEIVED,
    TASK_DONE,
    Change,
    Operation,
)
from daskbatch.shared.store.queue_state import QueueState
from daskbatch.shared.store.shard import Shard
from daskbatch.shared.store.spill import SpillStore

#: The client of most tests.
CLIENT = b"client"


class OneBackup:
    """Sends changes to a backup without a network."""

    def __init__(self, backup: QueueState) -> None:
        self.backup = backup

    def send(self, changes: Sequence[Change], client_id: bytes, seq: int, reply: Any) -> None:
        self.backup.follow(changes, client_id, seq, reply)


def make(directory: Path, maxsize: int = 0, confirm_seconds: float = 60.0) -> QueueState:
    return QueueState("Queue", SpillStore(1 << 20, directory), maxsize, confirm_seconds)


@pytest.fixture
def queue(tmp_path: Path) -> QueueState:
    """A queue of three items."""
    made = make(tmp_path)
    fill(made)
    return made


def fill(queue: QueueState) -> None:
    for value in (b"0", b"1", b"2"):
        assert ask(queue, QUEUE_PUT, 0, value, by=b"")


def ask(
    queue: QueueState,
    operation: Operation,
    seq: int,
    *arguments: Any,
    by: bytes = CLIENT,
    wait: float = 0.0,
) -> Any:
    return queue(Request(operation.name, by, seq, wait, arguments), lambda: False)


def send(queue: QueueState, seq: int, by: bytes = CLIENT) -> ResultToConfirm:
    """Have the queue send an item, whose receipt is not confirmed yet."""
    answer = ask(queue, QUEUE_GET, seq, by=by)
    assert isinstance(answer, ResultToConfirm)
    return answer


def drain(queue: QueueState) -> list[Any]:
    """Take the remaining items as another client."""
    found = []
    while (answer := ask(queue, QUEUE_GET, 0, by=b"")) is not None:
        answer.settle(True)
        found.append(answer.result)
    return found


# -- get ----------------------------------------------------------------------------------


def test_a_get_that_is_repeated_while_the_first_one_is_being_answered(queue: QueueState) -> None:
    """The repeated get has the same item, and not the next one before it."""
    first = send(queue, 1)
    again = send(queue, 1)
    first.settle(False)  # only now the server notices that the first connection is broken
    again.settle(True)
    assert (first.result, again.result) == (b"0", b"0")
    assert drain(queue) == [b"1", b"2"]


def test_the_last_connection_decides_whether_an_item_returns(queue: QueueState) -> None:
    first, again = send(queue, 1), send(queue, 1)
    again.settle(False)
    first.settle(False)
    assert drain(queue) == [b"0", b"1", b"2"]


def test_a_confirmation_on_the_first_connection_counts(queue: QueueState) -> None:
    first, again = send(queue, 1), send(queue, 1)
    first.settle(True)
    again.settle(False)
    assert drain(queue) == [b"1", b"2"]


@pytest.mark.parametrize("operation", [QUEUE_GET, QUEUE_PUT, TASK_DONE])
def test_a_later_request_confirms_an_item(queue: QueueState, operation: Operation) -> None:
    """The confirmation is lost with the connection, and the client goes on with the item."""
    answer = send(queue, 1)
    arguments = [b"3"] if operation is QUEUE_PUT else []
    later = ask(queue, operation, 2, *arguments)
    answer.settle(False)
    if operation is QUEUE_GET:
        later.settle(False)
    assert drain(queue) == [b"1", b"2", *arguments]


@pytest.mark.parametrize("seq", [1, 2])
def test_a_get_that_arrives_late_takes_nothing(queue: QueueState, seq: int) -> None:
    for number in (1, 2):
        send(queue, number).settle(True)
    assert ask(queue, QUEUE_GET, seq) is None
    assert drain(queue) == [b"2"]


def test_a_get_that_found_nothing_takes_nothing_later(tmp_path: Path) -> None:
    queue = make(tmp_path)
    assert ask(queue, QUEUE_GET, 1) is None
    fill(queue)
    assert ask(queue, QUEUE_GET, 1) is None
    assert drain(queue) == [b"0", b"1", b"2"]


def test_only_the_last_of_two_waiting_gets_takes_an_item(tmp_path: Path) -> None:
    queue = make(tmp_path)
    first = Caught(lambda: ask(queue, QUEUE_GET, 1, wait=60.0))
    blocked(first)
    again = Caught(lambda: ask(queue, QUEUE_GET, 1, wait=60.0))
    blocked(first, again)
    fill(queue)
    assert first.result() is None
    again.result().settle(True)
    assert again.result().result == b"0"
    assert drain(queue) == [b"1", b"2"]


# -- put ----------------------------------------------------------------------------------


def test_a_put_that_was_refused_puts_nothing_later(tmp_path: Path) -> None:
    queue = make(tmp_path, maxsize=1)
    assert ask(queue, QUEUE_PUT, 1, b"a")
    assert not ask(queue, QUEUE_PUT, 2, b"b")
    assert drain(queue) == [b"a"]
    assert not ask(queue, QUEUE_PUT, 2, b"b")
    assert drain(queue) == []


def test_a_put_that_arrives_late_puts_nothing(queue: QueueState) -> None:
    assert ask(queue, QUEUE_PUT, 4, b"3")
    ask(queue, QUEUE_GET, 5).settle(True)
    ask(queue, QUEUE_PUT, 4, b"3")
    ask(queue, QUEUE_PUT, 3, b"old")
    assert drain(queue) == [b"1", b"2", b"3"]


def test_a_waiting_put_that_is_repeated_puts_once(tmp_path: Path) -> None:
    queue = make(tmp_path, maxsize=1)
    ask(queue, QUEUE_PUT, 1, b"a")
    first = Caught(lambda: ask(queue, QUEUE_PUT, 2, b"b", wait=60.0))
    blocked(first)
    again = Caught(lambda: ask(queue, QUEUE_PUT, 2, b"b", wait=60.0))
    blocked(first, again)
    send(queue, 0, b"").settle(True)
    assert again.result() is True
    assert not first.result()
    assert drain(queue) == [b"b"]


# -- by way of the scheduler --------------------------------------------------------------


def test_a_relayed_item_is_sent_again_until_it_is_confirmed(queue: QueueState) -> None:
    send(queue, 1).settle(None)
    again = send(queue, 1)
    again.settle(None)
    assert again.result == b"0"
    assert ask(queue, QUEUE_RECEIVED, 2) is True
    assert ask(queue, QUEUE_RECEIVED, 2) is True  # repeated
    assert ask(queue, QUEUE_GET, 1) is None
    assert drain(queue) == [b"1", b"2"]


def test_a_relayed_item_returns_if_nobody_confirms_it(tmp_path: Path) -> None:
    queue = make(tmp_path, confirm_seconds=-1.0)
    fill(queue)
    send(queue, 1).settle(None)
    assert drain(queue) == [b"0", b"1", b"2"]
    # The client must not use it: another one has it.
    assert ask(queue, QUEUE_RECEIVED, 2) is False


def test_a_relayed_item_does_not_hold_up_a_move(queue: QueueState, tmp_path: Path) -> None:
    """The next primary sends it again, or has it confirmed."""
    backup = make(tmp_path / "backup")
    backup.serves = False
    backup.follow(queue.first_changes(), b"", 0, None)
    for stored in queue.values():
        backup.follow([queue.copy(stored)], b"", 0, None)
    queue.backups = OneBackup(backup)
    send(queue, 1).settle(None)
    send(queue, 1, b"other").settle(None)
    assert ask(queue, QUEUE_RECEIVED, 2, by=b"other") is True
    queue.stop_serving()
    backup.serves = True
    assert ask(backup, QUEUE_RECEIVED, 2, by=b"other") is True  # the first answer was lost
    again = send(backup, 1)
    assert again.result == b"0"
    again.settle(None)
    assert ask(backup, QUEUE_RECEIVED, 2) is True
    assert drain(backup) == [b"2"]


def test_an_item_that_returns_late_is_not_the_repeated_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_state, "_RETURN_SECONDS", -1.0)
    queue = make(tmp_path, confirm_seconds=-1.0)
    fill(queue)
    for seq, client in enumerate((CLIENT, b"other"), 1):
        send(queue, seq, client).settle(None)
    assert send(queue, 1).result == b"0"
    assert ask(queue, QSIZE, 9, by=b"") == 2


# -- dictionaries -------------------------------------------------------------------------


@pytest.mark.parametrize("operation", [operations.POP, operations.REMOVE, operations.POP_ANY])
def test_what_found_no_key_removes_none_later(operation: Operation, tmp_path: Path) -> None:
    """A client was told that there is no key; then another client writes it."""
    shard = Shard("DDict", SpillStore(1 << 20, tmp_path))
    key = encode_key("key")
    arguments = () if operation is operations.POP_ANY else (key,)
    late = Request(operation.name, CLIENT, 1, 0.0, arguments)
    assert not shard(late)
    shard(Request(operations.PUT.name, b"other", 1, 0.0, (key, pack("value", key))))
    assert not shard(late)
    assert shard.count() == 1


def test_a_repeated_hold_does_not_wait_for_itself(tmp_path: Path) -> None:
    shard = Shard("DDict", SpillStore(1 << 20, tmp_path))
    for seq in (1, 2):
        shard(Request(operations.HOLD.name, CLIENT, seq, 0.0, (b"token",)))
    assert shard(Request(operations.RELEASE.name, CLIENT, 3, 0.0, (b"token",)))
