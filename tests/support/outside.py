"""A cluster whose scheduler and workers are programs apart from the tests."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from distributed.deploy.subprocess import SubprocessCluster


@contextmanager
def outside_cluster(workers: int, threads: int) -> Iterator[Any]:
    """Yield a cluster of workers with nannies, which import what the tests can import."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
    try:
        cluster = SubprocessCluster(
            n_workers=workers, threads_per_worker=threads, dashboard_address=":0"
        )
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    with cluster:
        yield cluster
