"""Dask measures, sends and spills a stored value with the memory that it refers to."""

from __future__ import annotations

import gc
from typing import Any

import numpy as np
import pytest
from dask.sizeof import sizeof
from distributed.protocol import deserialize, deserialize_bytes, serialize, serialize_bytelist

from daskbatch.memory.host import host_id
from daskbatch.memory.shared_buffer import by_reference
from daskbatch.serialization import pickling, stored_value
from daskbatch.serialization.buffers import copy_buffer
from daskbatch.serialization.stored_value import StoredValue
from daskbatch.worker.dask_types import register_stored_values

pytestmark = pytest.mark.skipif(not host_id(), reason="memory cannot be mapped here")

COUNT = 100_000


@pytest.fixture(autouse=True)
def registered() -> None:
    register_stored_values()


def make(number: float) -> StoredValue:
    value = stored_value.buffer_value(copy_buffer(memoryview(np.full(COUNT, float(number)))))
    assert value is not None
    return value


def content(value: Any) -> Any:
    return np.frombuffer(pickling.loads(value))


def arrived(header: dict[str, Any], frames: list[Any]) -> Any:
    return deserialize(header, [None if each is None else bytes(each) for each in frames])


def test_its_size_is_that_of_its_memory() -> None:
    value = make(1)
    assert value.held_bytes >= 8 * COUNT  # more if it is in memory that a larger one had
    assert sizeof(value) == bytes.__sizeof__(value) + value.held_bytes


def test_it_is_sent_with_its_content() -> None:
    value = make(2)
    header, frames = serialize(value)
    del value
    gc.collect()
    make(3)  # in the memory that the other one had
    assert content(arrived(header, frames)).sum() == 2 * COUNT


def test_within_a_host_what_arrives_holds_the_memory() -> None:
    value = make(4)
    with by_reference():
        header, frames = serialize(value)
    assert sum(len(memoryview(each)) for each in frames) < 1000
    received = arrived(header, frames)
    del value
    gc.collect()
    make(5)
    assert type(received) is StoredValue
    assert received.segment is not None
    assert content(received).sum() == 4 * COUNT


def test_it_comes_back_from_disk() -> None:
    value = make(6)
    data = b"".join(map(bytes, serialize_bytelist(value)))
    del value
    gc.collect()
    make(7)
    assert content(deserialize_bytes(data)).sum() == 6 * COUNT
