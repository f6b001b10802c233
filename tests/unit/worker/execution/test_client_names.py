"""The names of a Batch's clients can be taken apart again."""

from __future__ import annotations

import pytest

from daskbatch.worker.execution.client_names import (
    batch_of_client,
    batch_of_topic,
    make_client_id,
    make_topic,
)


@pytest.mark.parametrize("suffix", ["", "0a1b2c3d"])
def test_a_topic_contains_its_batch(suffix: str) -> None:
    assert batch_of_topic(make_topic("0123456789ab", suffix)) == "0123456789ab"


@pytest.mark.parametrize("number", [0, 1, 12])
def test_a_client_id_contains_its_batch(number: int) -> None:
    assert batch_of_client(make_client_id("0123456789ab", number)) == "0123456789ab"


def test_clients_of_a_batch_have_different_names() -> None:
    assert len({make_client_id("a", number) for number in range(12)}) == 12
    assert make_topic("a") != make_topic("a", "1")
