"""Messages arrive as they were sent, by way of Dask's own serialization."""

from __future__ import annotations

import pickle

import pytest
from distributed.protocol.core import dumps, loads

from daskbatch.cluster.messages import (
    BatchEnded,
    BlockReported,
    ClientEvent,
    MembersRevoked,
    SlotsChanged,
    ValuesLost,
    WorkerDied,
    decode,
    encode,
)

EVENTS: list[ClientEvent] = [
    BlockReported(pickle.dumps([1, 2, 3])),
    SlotsChanged(3),
    MembersRevoked(7, {0: [1, 2], 5: []}, {0: [], 5: [3]}),
    ValuesLost([("add-0123456789abcdef", 19), ("add-0123456789abcdef", 18)]),
    WorkerDied(
        [("add-0123456789abcdef", 19)],
        {
            "worker": "tcp://10.0.0.1:1",
            "exitcode": -9,
            "memory": 1 << 33,
            "memory_limit": None,
            "out_of_memory": True,
        },
        pickle.dumps([]),
    ),
    WorkerDied([], {}, None),
    BatchEnded("0123456789ab"),
]


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_an_event_arrives_as_it_was_sent(event: ClientEvent) -> None:
    message = {"op": "event", "topic": "topic", "event": (1.5, encode(event))}
    received = decode(loads(dumps(message))["event"][1])
    assert type(received) is type(event)
    for name, sent in event._asdict().items():
        found = getattr(received, name)
        if isinstance(sent, list):
            found = list(found)
        elif isinstance(event, MembersRevoked) and isinstance(sent, dict):
            found = {block: list(members) for block, members in found.items()}
        assert found == sent


def test_a_report_is_passed_on_in_a_few_bytes_more() -> None:
    """Reports are the most frequent events: their encoding adds only a few bytes."""
    report = bytes(100)
    size = sum(len(frame) for frame in dumps(encode(BlockReported(report))))
    assert size <= sum(len(frame) for frame in dumps(report)) + 2
