"""How many workers tasks could use, and how many an embedded cluster has."""

from __future__ import annotations

from typing import Any

import pytest

from daskbatch import SpecError
from daskbatch.cluster.growth.demands import Demand, wanted_workers
from daskbatch.cluster.growth.orders import are_workers_on_order
from daskbatch.cluster.growth.worker_range import WorkerRange, worker_range


@pytest.mark.parametrize(
    ("demands", "workers", "slots", "wanted"),
    [
        ([], 0, 0, 0),
        # As many as Dask asks for, for a `client.map` of 1 000 calls.
        ([Demand(1000, 500.0)], 0, 0, 100),
        ([Demand(1000, 500.0)], 2, 8, 25),
        # A task runs on one slot, however long it takes.
        ([Demand(1, 3600.0)], 0, 0, 1),
        ([Demand(2, 3600.0), Demand(1, 60.0)], 1, 1, 3),
        ([Demand(1000, 0.1)], 0, 0, 1),
    ],
)
def test_each_task_counts(demands: list[Demand], workers: int, slots: int, wanted: int) -> None:
    assert wanted_workers(demands, 5.0, workers, slots) == wanted


@pytest.mark.parametrize(
    ("given", "found"), [(1, (1, 1)), ((1, 1), (1, 1)), ((1, 4), (1, 4)), ([2, 3], (2, 3))]
)
def test_a_number_or_the_least_and_the_most(given: Any, found: tuple[int, int]) -> None:
    assert worker_range(given) == found
    assert worker_range(given).is_elastic == (found[0] < found[1])


@pytest.mark.parametrize(
    "given", [0, -1, 1.5, "2", None, (), (1,), (1, 2, 3), (0, 2), (3, 2), (1, None), ("1", "2")]
)
def test_other_numbers_of_workers_are_errors(given: Any) -> None:
    with pytest.raises(SpecError, match="num_workers= must be a whole number from 1"):
        worker_range(given)
    assert WorkerRange(1, 2).is_elastic


class _Cluster:
    def __init__(self, plan: set[int], observed: set[int]) -> None:
        self.plan, self.observed = plan, observed


class _Client:
    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster


@pytest.mark.parametrize(
    ("cluster", "on_order"),
    [
        (None, False),
        (object(), False),
        (_Cluster(set(), set()), False),
        (_Cluster({1, 2}, {1}), True),
        (_Cluster({1}, {1}), False),
        (_Cluster(set(), {1}), False),
    ],
)
def test_jobs_in_a_queue_are_workers_on_order(cluster: Any, on_order: bool) -> None:
    assert are_workers_on_order(_Client(cluster)) is on_order  # type: ignore[arg-type]
