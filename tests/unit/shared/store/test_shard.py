"""What a worker does with the keys that are its own."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pytest

from daskbatch.errors import SerializationError, ServiceLost
from daskbatch.shared.data.codec import key_to_send, pack, unpack
from daskbatch.shared.store.shard import Shard
from daskbatch.shared.store.spill import SpillStore


class Lane:
    """Asks a shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        self._sid = os.urandom(8)
        self._numbers = itertools.count(1)

    def ask(self, operation: str, *arguments: Any, again: int | None = None) -> Any:
        number = next(self._numbers) if again is None else again
        return self._shard((operation, self._sid, number, 0.0, arguments))


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return Shard("a shard", SpillStore(1000, tmp_path / "vault"))


@pytest.mark.parametrize("how", ["clear", "remove", "pop", "put"])
def test_what_nobody_has_any_more_is_not_on_disk(shard: Shard, tmp_path: Path, how: str) -> None:
    lane = Lane(shard)
    for number in range(20):
        lane.ask("put", number, pack("x" * 50_000))
    assert len(os.listdir(tmp_path / "vault")) == 20
    if how == "clear":
        lane.ask("clear")
    else:
        for number in range(20):
            lane.ask(how, number, *([pack(1)] if how == "put" else []))
    left = os.listdir(tmp_path / "vault")
    assert sum(os.path.getsize(tmp_path / "vault" / each) for each in left) < 50_000


def test_the_first_of_equal_keys_stays_also_when_they_come_together(shard: Shard) -> None:
    lane = Lane(shard)
    lane.ask("put_some", [(1, pack("a")), (True, pack("b")), (1.0, pack("c"))])
    assert [repr(key) for key in lane.ask("keys")] == ["1"]
    assert unpack(lane.ask("get", 1)) == "c"


def test_what_is_asked_twice_is_done_once(shard: Shard) -> None:
    lane = Lane(shard)
    lane.ask("put", "a", pack(1))
    for _ in range(3):
        assert unpack(lane.ask("add", "a", pack(1), again=5)) == 1
    assert unpack(lane.ask("get", "a", again=6)) == 2


def test_an_answer_that_was_too_large_to_be_kept_is_not_made_up(shard: Shard) -> None:
    lanes = [Lane(shard) for _ in range(3)]
    for number, lane in enumerate(lanes):
        lane.ask("put", number, pack(bytes(10_000_000)))
        lane.ask("pop", number)
    assert unpack(lanes[2].ask("pop", 2, again=2)) == bytes(10_000_000)
    with pytest.raises(ServiceLost, match="has done this"):
        lanes[0].ask("pop", 0, again=2)


class Exits:
    """Ends whoever unpickles it."""

    def __reduce__(self) -> Any:
        return exit, (3,)


def exit(code: int) -> Any:
    raise SystemExit(code)


def test_a_key_that_ends_who_reads_it_is_an_error_of_who_has_sent_it(shard: Shard) -> None:
    lane = Lane(shard)
    for operation in ("get", "has", "remove"):
        with pytest.raises(SerializationError, match="SystemExit: 3"):
            lane.ask(operation, key_to_send(Exits()))
    with pytest.raises(SerializationError, match="SystemExit: 3"):
        unpack(pack(Exits()))
