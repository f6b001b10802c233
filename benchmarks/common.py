"""Timing, a table of ratios, and the cluster of plain Dask, for all benchmarks."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from distributed import Client, LocalCluster

from daskbatch.cluster.embedded import EmbeddedCluster
from daskbatch.cluster.growth.worker_range import WorkerRange

WORKERS = 2


def seconds(function: Callable[[], Any], repeat: int = 1) -> float:
    """Return the median time of some runs, in seconds."""
    times = []
    for _ in range(repeat):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return statistics.median(times)


@contextmanager
def raw_dask() -> Iterator[Client]:
    """Yield a client of a cluster of plain Dask: two workers of one thread."""
    with (
        LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, dashboard_address="127.0.0.1:0"
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def workers_of(client: Client) -> list[str]:
    """Return the addresses of the workers.

    `Client.scheduler_info` may return the answer to the client's own periodic question, without.
    """
    return list(client.sync(client.scheduler.identity, n_workers=-1)["workers"])


@contextmanager
def own_cluster() -> Iterator[str]:
    """Yield the address of a cluster without a client: two workers of one thread."""
    cluster = EmbeddedCluster(WorkerRange(WORKERS, WORKERS), ".")
    try:
        yield cluster.address
    finally:
        cluster.close()


class Table:
    """Prints ratios as they are measured, and whether they reach the required values."""

    def __init__(self, title: str) -> None:
        print(f"\n{title}")
        self.missed = 0

    def row(self, what: str, value: float, unit: str = "×", least: float | None = None) -> None:
        verdict = ""
        if least is not None:
            met = value >= least
            self.missed += not met
            verdict = f"   (at least {least:g}: {'met' if met else 'NOT met'})"
        print(f"  {what:<58}{value:>10,.2f} {unit}{verdict}", flush=True)

    def row_at_most(self, what: str, value: float, unit: str, most: float) -> None:
        met = value <= most
        self.missed += not met
        verdict = f"   (at most {most:g}: {'met' if met else 'NOT met'})"
        print(f"  {what:<58}{value:>10,.2f} {unit}{verdict}", flush=True)

    def end(self) -> None:
        sys.exit(1 if self.missed else 0)
