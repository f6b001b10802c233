"""A shard executes the operations on its keys."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from daskbatch.errors import SerializationError, ServiceLost
from daskbatch.shared.data.codec import encode_key, pack, unpack
from daskbatch.shared.data.messages import Request
from daskbatch.shared.store.shard import Shard
from daskbatch.shared.store.spill import SpillStore


class Client:
    """Sends requests to a shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._client_id = os.urandom(8)
        self._numbers = itertools.count(1)

    def ask(self, operation: str, *arguments: Any, again: int | None = None) -> Any:
        number = next(self._numbers) if again is None else again
        return self._shard(Request(operation, self._client_id, number, 0.0, arguments))


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return Shard("a shard", SpillStore(1000, tmp_path / "store"))


@pytest.mark.parametrize("how", ["clear", "remove", "pop", "put"])
def test_what_nobody_has_any_more_is_not_on_disk(shard: Shard, tmp_path: Path, how: str) -> None:
    client = Client(shard)
    for number in range(20):
        client.ask("put", number, pack("x" * 50_000))
    assert len(os.listdir(tmp_path / "store")) == 20
    if how == "clear":
        client.ask("clear")
    else:
        for number in range(20):
            client.ask(how, number, *([pack(1)] if how == "put" else []))
    remaining = os.listdir(tmp_path / "store")
    assert sum(os.path.getsize(tmp_path / "store" / each) for each in remaining) < 50_000


def test_the_first_of_equal_keys_stays_also_when_they_come_together(shard: Shard) -> None:
    client = Client(shard)
    client.ask("put_some", [(1, pack("a")), (True, pack("b")), (1.0, pack("c"))])
    assert [repr(key) for key in client.ask("keys")] == ["1"]
    assert unpack(client.ask("get", 1)) == "c"


def test_what_is_asked_twice_is_done_once(shard: Shard) -> None:
    client = Client(shard)
    client.ask("put", "a", pack(1))
    for _ in range(3):
        assert unpack(client.ask("add", "a", pack(1), again=5)) == 1
    assert unpack(client.ask("get", "a", again=6)) == 2


def test_an_answer_that_was_too_large_to_be_kept_is_not_made_up(shard: Shard) -> None:
    clients = [Client(shard) for _ in range(3)]
    for number, client in enumerate(clients):
        client.ask("put", number, pack(bytes(10_000_000)))
        client.ask("pop", number)
    assert unpack(clients[2].ask("pop", 2, again=2)) == bytes(10_000_000)
    with pytest.raises(ServiceLost, match="has done this"):
        clients[0].ask("pop", 0, again=2)


class Exits:
    """Ends the thread that unpickles it."""

    def __reduce__(self) -> Any:
        return exit, (3,)


def exit(code: int) -> Any:
    raise SystemExit(code)


def test_a_key_that_ends_who_reads_it_is_an_error_of_who_has_sent_it(shard: Shard) -> None:
    client = Client(shard)
    for operation in ("get", "has", "remove"):
        with pytest.raises(SerializationError, match="SystemExit: 3"):
            client.ask(operation, encode_key(Exits()))
    with pytest.raises(SerializationError, match="SystemExit: 3"):
        unpack(pack(Exits()))
