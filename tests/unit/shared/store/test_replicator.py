"""Which layouts a replica adopts, and with which of them it serves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from daskbatch.shared.data.messages import Layout, Replica
from daskbatch.shared.store.replication import Replicator
from daskbatch.shared.store.shard import Shard
from daskbatch.shared.store.spill import SpillStore
from daskbatch.worker.handshake import ServerAddress

OWN, OTHER = (
    Replica(f"tcp://{name}:1", name, ServerAddress("127.0.0.1", 1, b"", False, "")) for name in "ab"
)


@pytest.fixture
def shard(tmp_path: Path) -> Shard:
    return Shard("a shard", SpillStore(1000, tmp_path / "store"))


@pytest.fixture
def replicator(shard: Shard) -> Replicator:
    def call(*_: Any, **__: Any) -> Layout:
        raise AssertionError("the scheduler is not needed")

    return Replicator(shard, None, call)


def test_the_first_of_the_newest_layout_serves(shard: Shard, replicator: Replicator) -> None:
    for epoch, replicas, serves in [
        (1, (OWN,), True),
        (3, (OTHER, OWN), False),
        (2, (OWN, OTHER), False),
        (4, (OWN,), True),
    ]:
        replicator.apply_layout(Layout(epoch, replicas), OWN.key)
        assert shard.serves is serves


def test_a_layout_that_comes_after_the_stop_does_not_undo_it(
    shard: Shard, replicator: Replicator
) -> None:
    replicator.stop(2)
    shard.stop_serving()
    for epoch, serves in [(1, False), (2, False), (3, True)]:
        replicator.apply_layout(Layout(epoch, (OWN, OTHER)), OWN.key)
        assert shard.serves is serves
    replicator.stop(2)  # it is late itself
    replicator.apply_layout(Layout(3, (OWN, OTHER)), OWN.key)
    assert shard.serves
