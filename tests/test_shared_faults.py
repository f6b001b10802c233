"""A DDict that is used from many sides while its workers are killed: a few runs."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_faults import run_many

from daskbatch import Batch


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(("replicas", "numbers"), [(2, [0]), (1, [0])])
def test_what_was_acknowledged_is_kept_or_told_as_lost(
    replicas: int, numbers: list[int], tmp_path: Path
) -> None:
    tally = run_many(numbers, replicas, tmp_path)
    assert not tally.violations, "\n".join(tally.violations)
    assert tally.counts["killed"] == replicas * len(numbers)


def _members(dask_scheduler: Any) -> list[str]:
    """Give, on the scheduler, the workers that have the one shard that there is."""
    (found,) = dask_scheduler.plugins["daskbatch-shared"]._objects.values()
    return [member.worker for member in found.layouts[0].members]


def await_copies(batch: Batch, gone: set[str]) -> list[str]:
    end = time.monotonic() + 60
    while True:
        found: list[str] = batch.client.run_on_scheduler(_members)
        if len(found) == 2 and not gone & set(found):
            return found
        assert time.monotonic() < end, (found, gone)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("pause", [0.0, 0.2])
def test_who_is_to_have_a_copy_may_die_too(pause: float) -> None:
    with Batch(num_workers=3) as batch:
        d = batch.ddict(shards=1, replicas=2)
        for number in range(60):
            d[number] = np.full(200_000, number)  # it takes a while to copy all that
        pids = batch.client.run(os.getpid)
        first, second = batch.client.run_on_scheduler(_members)
        (third,) = set(pids) - {first, second}
        os.kill(pids[second], signal.SIGKILL)
        time.sleep(pause)
        os.kill(pids[third], signal.SIGKILL)
        d["more"] = 1
        assert d.fetch_add("more") == 1
        assert first in await_copies(batch, {second, third})
        os.kill(pids[first], signal.SIGKILL)
        assert d["more"] == 2
        for number in range(60):
            assert np.array_equal(d[number], np.full(200_000, number))


@pytest.mark.slow
def test_what_was_taken_out_is_copied_too() -> None:
    """Large values that were answered with are part of what a copy must know."""
    with Batch(num_workers=3) as batch:
        d = batch.ddict(shards=1, replicas=2)
        for number in range(3):
            d[number] = np.full(100_000, number)
        assert d.pop(0).sum() == 0
        pids = batch.client.run(os.getpid)
        first, second = batch.client.run_on_scheduler(_members)
        os.kill(pids[second], signal.SIGKILL)
        _, third = await_copies(batch, {second})
        os.kill(pids[first], signal.SIGKILL)
        assert await_copies(batch, {first, second})[0] == third
        assert d.popitem()[0] in (1, 2)
        assert len(d) == 1
