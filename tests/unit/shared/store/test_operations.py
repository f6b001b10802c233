"""The table of operations: each has one handler, and one effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from daskbatch.shared.store.operations import (
    QUEUE_OPERATIONS,
    SHARD_CHANGES,
    SHARD_OPERATIONS,
    Effect,
    Operation,
)
from daskbatch.shared.store.queue_state import QueueState
from daskbatch.shared.store.shard import Shard
from daskbatch.shared.store.spill import SpillStore


@pytest.mark.parametrize("operations", [SHARD_OPERATIONS, QUEUE_OPERATIONS])
def test_a_name_stands_for_one_operation(operations: tuple[Operation, ...]) -> None:
    assert len({each.name for each in operations}) == len(operations)


def test_each_operation_has_a_handler(tmp_path: Path) -> None:
    store = SpillStore(1000, tmp_path / "store")
    assert {each.name for each in SHARD_OPERATIONS} == set(Shard("", store)._handlers)
    assert {each.name for each in QUEUE_OPERATIONS} == set(QueueState("", store, 0)._handlers)


def test_a_task_reads_in_its_own_thread_only_what_it_can_be_interrupted_in() -> None:
    reads = {each.name for each in SHARD_OPERATIONS if each.effect is Effect.READ}
    assert reads == {"get", "get_some", "has", "count", "keys"}
    assert not [each for each in QUEUE_OPERATIONS if each.effect is Effect.READ]
    assert not reads & SHARD_CHANGES
