"""A queue and its copies: what a backup has, and what happens when it becomes the primary."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from support.caught import Caught, blocked

from daskbatch.shared.data.messages import NotServing, Request
from daskbatch.shared.rpc.answer import ResultToConfirm
from daskbatch.shared.store import queue_state
from daskbatch.shared.store.operations import (
    JOIN,
    QSIZE,
    QUEUE_GET,
    QUEUE_PUT,
    TASK_DONE,
    Change,
    Operation,
)
from daskbatch.shared.store.queue_state import QueueState
from daskbatch.shared.store.spill import SpillStore


class Directly:
    """Sends changes to a backup without a network."""

    def __init__(self, *backups: QueueState) -> None:
        self.backups = backups

    def send(self, changes: Sequence[Change], client_id: bytes, seq: int, reply: Any) -> None:
        for backup in self.backups:
            backup.follow(changes, client_id, seq, reply)


@pytest.fixture
def queues(tmp_path: Path) -> tuple[QueueState, QueueState]:
    """A primary and its backup."""
    primary, backup = (
        QueueState("Queue", SpillStore(1 << 20, tmp_path / name), 0) for name in "ab"
    )
    backup.serves = False
    primary.backups = Directly(backup)
    return primary, backup


def ask(
    queue: QueueState, operation: Operation, *arguments: Any, by: tuple[bytes, int] = (b"", 0)
) -> Any:
    return queue(Request(operation.name, *by, 0.0, arguments), lambda: False)


def get(queue: QueueState, by: tuple[bytes, int] = (b"", 0)) -> Any:
    found = ask(queue, QUEUE_GET, by=by)
    if found is None:
        return None
    assert isinstance(found, ResultToConfirm)
    found.settle(True)
    return found.result


def promote(primary: QueueState, backup: QueueState) -> None:
    """Let the backup go on after the death of the primary."""
    primary.close()
    backup.serves = True


def copy_to(primary: QueueState, backup: QueueState) -> None:
    """Build a backup as `Replicator.add_backup` does."""
    backup.serves = False
    backup.follow(primary.first_changes(), b"", 0, None)
    for stored in primary.values():
        change = primary.copy(stored)
        if change is not None:
            backup.follow([change], b"", 0, None)


def test_a_backup_has_the_items_in_order(queues: tuple[QueueState, QueueState]) -> None:
    primary, backup = queues
    for value in (b"a", b"b", b"c"):
        assert ask(primary, QUEUE_PUT, value)
    assert get(primary) == b"a"
    with pytest.raises(NotServing):
        ask(backup, QSIZE)
    promote(primary, backup)
    assert ask(backup, QSIZE) == 2
    assert [get(backup), get(backup), get(backup)] == [b"b", b"c", None]


def test_a_repeated_put_is_done_once(queues: tuple[QueueState, QueueState]) -> None:
    primary, backup = queues
    assert ask(primary, QUEUE_PUT, b"a", by=(b"client", 1))
    promote(primary, backup)
    assert ask(backup, QUEUE_PUT, b"a", by=(b"client", 1))
    assert ask(backup, QUEUE_PUT, b"b", by=(b"client", 2))
    assert [get(backup), get(backup), get(backup)] == [b"a", b"b", None]


def test_a_repeated_get_returns_the_item_that_was_sent_before(
    queues: tuple[QueueState, QueueState],
) -> None:
    primary, backup = queues
    for value in (b"a", b"b"):
        ask(primary, QUEUE_PUT, value)
    ask(primary, QUEUE_GET, by=(b"client", 1))  # the primary dies before the confirmation
    promote(primary, backup)
    assert get(backup, (b"other", 5)) == b"b"
    assert get(backup, (b"client", 1)) == b"a"
    assert get(backup, (b"client", 2)) is None


def test_an_item_was_received_if_its_consumer_asks_for_another_one(
    queues: tuple[QueueState, QueueState],
) -> None:
    primary, backup = queues
    for value in (b"a", b"b"):
        ask(primary, QUEUE_PUT, value)
    ask(primary, QUEUE_GET, by=(b"client", 1))
    promote(primary, backup)
    assert get(backup, (b"client", 2)) == b"b"
    assert get(backup, (b"client", 3)) is None


def test_an_item_of_a_consumer_that_has_died_returns(
    queues: tuple[QueueState, QueueState], monkeypatch: pytest.MonkeyPatch
) -> None:
    primary, backup = queues
    for value in (b"a", b"b"):
        ask(primary, QUEUE_PUT, value)
    ask(primary, QUEUE_GET, by=(b"dead", 1))
    promote(primary, backup)
    monkeypatch.setattr(queue_state, "_RETURN_SECONDS", -1.0)
    assert [get(backup, (b"other", n)) for n in (1, 2, 3)] == [b"a", b"b", None]


def test_an_item_that_returns_is_the_first_again(queues: tuple[QueueState, QueueState]) -> None:
    primary, backup = queues
    for value in (b"a", b"b"):
        ask(primary, QUEUE_PUT, value)
    ask(primary, QUEUE_GET).settle(False)
    promote(primary, backup)
    assert [get(backup), get(backup), get(backup)] == [b"a", b"b", None]


def test_unfinished_items_are_counted(queues: tuple[QueueState, QueueState]) -> None:
    primary, backup = queues
    ask(primary, QUEUE_PUT, b"a")
    ask(primary, QUEUE_PUT, b"b")
    ask(primary, TASK_DONE, by=(b"client", 1))
    promote(primary, backup)
    assert not ask(backup, JOIN)
    assert ask(backup, TASK_DONE, by=(b"client", 1))  # repeated
    assert not ask(backup, JOIN)
    assert ask(backup, TASK_DONE, by=(b"client", 2))
    assert ask(backup, JOIN)
    assert not ask(backup, TASK_DONE, by=(b"client", 3))


def test_a_new_backup_receives_what_is_there_and_what_changes_meanwhile(tmp_path: Path) -> None:
    primary, backup = (
        QueueState("Queue", SpillStore(1 << 20, tmp_path / name), 0) for name in "ab"
    )
    for number in range(5):
        ask(primary, QUEUE_PUT, b"%d" % number, by=(b"client", number + 1))
    sent = ask(primary, QUEUE_GET, by=(b"consumer", 1))
    backup.serves = False
    backup.follow(primary.first_changes(), b"", 0, None)
    primary.backups = Directly(backup)
    values = primary.values()
    # Before anything is copied, one is put, one is taken, and the one that was sent comes back.
    ask(primary, QUEUE_PUT, b"new")
    assert get(primary) == b"1"
    sent.settle(False)
    for stored in values:
        change = primary.copy(stored)
        if change is not None:
            backup.follow([change], b"", 0, None)
    promote(primary, backup)
    assert ask(backup, QUEUE_PUT, b"4", by=(b"client", 5))  # repeated
    found = [get(backup, (b"consumer", n)) for n in range(2, 8)]
    assert found == [b"0", b"2", b"3", b"4", b"new", None]


def test_who_waits_goes_to_the_new_primary(queues: tuple[QueueState, QueueState]) -> None:
    primary, backup = queues
    waiter = Caught(lambda: primary(Request(QUEUE_GET.name, b"c", 1, 30.0, ()), lambda: False))
    blocked(waiter)
    primary.stop_serving()
    assert isinstance(waiter.result(), NotServing)
    backup.serves = True
    assert get(backup) is None


def test_it_stops_serving_once_what_was_sent_is_confirmed(
    queues: tuple[QueueState, QueueState],
) -> None:
    primary, backup = queues
    ask(primary, QUEUE_PUT, b"a")
    answer = ask(primary, QUEUE_GET)
    stopping = Caught(primary.stop_serving)
    blocked(stopping)
    answer.settle(True)
    stopping.result()
    backup.serves = True
    assert get(backup) is None


def test_a_copy_of_a_copy(queues: tuple[QueueState, QueueState], tmp_path: Path) -> None:
    primary, backup = queues
    ask(primary, QUEUE_PUT, b"a")
    ask(primary, QUEUE_PUT, b"b")
    ask(primary, QUEUE_GET, by=(b"client", 1))
    promote(primary, backup)
    third = QueueState("Queue", SpillStore(1 << 20, tmp_path / "c"), 0)
    copy_to(backup, third)
    promote(backup, third)
    assert get(third, (b"client", 1)) == b"a"
    assert get(third, (b"client", 2)) == b"b"
