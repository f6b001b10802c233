"""Answers of a queue that are lost on the way: each item is received once, and in order.

The queue is in this process. Its server is a real one; the scheduler, which relays requests where
no connection can be made, is played by the tests.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from support.caught import Caught

from daskbatch.shared import proxy, relayed
from daskbatch.shared.data import routes
from daskbatch.shared.data.codec import pack, unpack
from daskbatch.shared.data.messages import (
    Layout,
    ObjectInfo,
    ObjectOptions,
    Replica,
    Request,
)
from daskbatch.shared.proxy import ObjectProxy
from daskbatch.shared.rpc.answer import answer_to
from daskbatch.shared.rpc.server import RpcServer
from daskbatch.shared.store.operations import ITEM_TAKEN, QUEUE_GET, QUEUE_PUT, Change
from daskbatch.shared.store.queue_state import QueueState
from daskbatch.shared.store.spill import SpillStore

#: The items of each test.
ITEMS = list(range(5))

#: What a test does with a request that the scheduler has relayed, once it is executed.
After = Callable[[Request], None]


class Network:
    """A queue, its server, and a scheduler."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # Nobody confirms in time what the scheduler has relayed: it returns at once.
        self.state = QueueState("Queue", SpillStore(1 << 20, directory), 0, confirm_seconds=-1.0)
        self.arrived = threading.Semaphore(0)
        self.server = RpcServer("127.0.0.1", self.handle, lambda: True)
        self.epoch = 1
        self.after: After = lambda request: None
        monkeypatch.setattr(proxy, "call_scheduler", self.call_scheduler)
        monkeypatch.setattr(proxy, "relay_request", self.relay)
        options = ObjectOptions("queue", 1)
        info = ObjectInfo("queue", options, None, (self.layout,))
        self.proxy = ObjectProxy("tcp://192.0.2.1:1", "queue", info)

    @property
    def layout(self) -> Layout:
        return Layout(self.epoch, (Replica("tcp://192.0.2.2:2", "key", self.server.address),))

    def handle(self, request: Request, is_gone: Callable[[], bool]) -> Any:
        self.arrived.release()
        return self.state(request, is_gone)

    def call_scheduler(self, scheduler: str, route: str, **arguments: Any) -> Layout:
        assert route == routes.AWAIT_LAYOUT
        return self.layout

    def relay(self, scheduler: str, replica: Replica, request: Request) -> tuple[int, Any]:
        status, result, settle = answer_to(self.handle, request)
        if settle is not None:
            settle(None)
        self.after(request)
        return status, result

    def put(self, item: int) -> None:
        assert self.proxy.call(0, QUEUE_PUT, pack(item))

    def get(self) -> Any:
        found = self.proxy.call(0, QUEUE_GET)
        return None if found is None else unpack(found)


@pytest.fixture
def network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Network]:
    made = Network(tmp_path, monkeypatch)
    yield made
    made.state.close()
    made.server.close()


@pytest.fixture
def relays(network: Network, monkeypatch: pytest.MonkeyPatch) -> Network:
    """A network in which no connection to the queue can be made."""
    monkeypatch.setattr(relayed, "is_relayed", lambda server: True)
    return network


def drain(network: Network) -> list[int]:
    return list(iter(network.get, None))


def test_the_answers_of_relayed_requests_are_lost(relays: Network) -> None:
    lost: set[str] = set()

    def lose(request: Request) -> None:
        if request.operation not in lost:
            lost.add(request.operation)
            raise ConnectionError("the link is broken")

    relays.after = lose
    for item in ITEMS:
        relays.put(item)
    # Each item that is not confirmed at once may return before it is: then it is sent again.
    assert drain(relays) == ITEMS
    assert len(lost) == 3


def test_a_relayed_item_that_has_returned_is_not_received(relays: Network) -> None:
    """The confirmation comes too late: another client has the item."""
    for item in ITEMS:
        relays.put(item)
    other: list[Any] = []

    def take(request: Request) -> None:
        relays.after = lambda request: None
        answer = relays.state(Request(QUEUE_GET.name, b"other", 1, 0.0, ()), lambda: False)
        answer.settle(True)
        other.append(unpack(answer.result))

    relays.after = take
    assert relays.get() is None
    assert [*other, *drain(relays)] == ITEMS


def test_a_relayed_get_that_is_interrupted_loses_no_item(relays: Network) -> None:
    for item in ITEMS:
        relays.put(item)

    def interrupt(request: Request) -> None:
        relays.after = lambda request: None
        raise KeyboardInterrupt

    relays.after = interrupt
    with pytest.raises(KeyboardInterrupt):
        relays.get()
    assert drain(relays) == ITEMS


class SlowBackup:
    """Takes its time for the first item that is taken."""

    def __init__(self) -> None:
        self.began, self.may_end = threading.Event(), threading.Event()

    def send(self, changes: Sequence[Change], client_id: bytes, seq: int, reply: Any) -> None:
        if changes[0][0] == ITEM_TAKEN and not self.began.is_set():
            self.began.set()
            assert self.may_end.wait(60)


def fill_with_slow_backup(network: Network, monkeypatch: pytest.MonkeyPatch) -> SlowBackup:
    """Put all items into the queue; its backup is slow when the first one is taken."""
    monkeypatch.setattr(proxy, "_LAYOUT_CHECK_SECONDS", 0.0)
    backup = SlowBackup()
    network.state.backups = backup
    for item in ITEMS:
        network.put(item)
        assert network.arrived.acquire(timeout=60)
    return backup


def test_a_get_is_repeated_while_a_backup_is_slow(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The slow backup is removed from the layout, so that the client asks again."""
    backup = fill_with_slow_backup(network, monkeypatch)
    getting = Caught(network.get)
    try:
        assert backup.began.wait(60)
        assert network.arrived.acquire(timeout=60)
        network.epoch = 2
        assert network.arrived.acquire(timeout=60)  # the client has asked again
    finally:
        backup.may_end.set()
    assert [getting.result(), *drain(network)] == ITEMS


def test_a_server_that_becomes_unreachable(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A firewall cuts a connection whose request is being executed: the scheduler relays it."""
    backup = fill_with_slow_backup(network, monkeypatch)

    def reach(server: Any) -> None:
        if not relayed.is_relayed(server):
            raise proxy.NotReachable("a firewall")

    monkeypatch.setattr(proxy, "check_reachable", reach)
    getting = Caught(network.get)
    try:
        assert backup.began.wait(60)
        assert network.arrived.acquire(timeout=60)
        assert network.arrived.acquire(timeout=60)  # by way of the scheduler
        relayed_again = relayed.is_relayed(network.server.address)
    finally:
        backup.may_end.set()
    try:
        assert relayed_again
        assert [getting.result(), *drain(network)] == ITEMS
    finally:
        relayed.stop_relaying(network.server.address)
