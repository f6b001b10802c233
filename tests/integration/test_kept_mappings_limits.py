"""A worker is not paused or ended because of memory that it keeps mapped for later values."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import Client, get_worker

from daskbatch import Batch
from daskbatch.memory import kept_mappings
from daskbatch.memory.host import host_id
from tests.support.limited_cluster import limited_cluster
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

#: The memory limit of the worker; it has some 150 MB of these once it has imported all it needs.
LIMIT = 800_000_000
SIZE = 20_000_000


def make(number: int) -> Any:
    return np.full(SIZE, number, "u1")


def increase(array: Any) -> Any:
    return array + 1


def kept() -> int:
    return kept_mappings.kept_bytes()


def use_memory(before: int) -> tuple[int, int, str]:
    """Use so much memory that what is kept mapped would make Dask pause the worker."""
    used = np.ones(LIMIT // 2, "u1")
    wait_until(lambda: kept() == 0)
    return before, int(used[-1]), get_worker().status.name


def test_kept_mappings_make_way_for_memory_that_tasks_use(tmp_path: Path) -> None:
    with (
        limited_cluster(LIMIT, tmp_path) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]
        Batch(client) as batch,
    ):
        process = client.run(os.getpid)
        for _ in range(3):
            hops = [batch.function(make, 1)]
            for _ in range(2):
                hops.append(batch.function(increase, hops[-1]))
            batch.compile(hops).run(check=True)
            assert hops[-1].get()[-1] == 3
        (mapped,) = client.run(kept).values()
        assert 0 < mapped <= 2 * LIMIT // 5
        user = batch.function(use_memory, mapped)
        user.run(check=True)
        assert user.get() == (mapped, 1, "running")
        assert client.run(os.getpid) == process
