"""Tasks whose requirements no worker meets fail, and say why, or wait where one may join."""

from __future__ import annotations

import os
import signal
from typing import Any

import dask
import pytest
from distributed import LocalCluster, get_worker
from support.scaling import scale

from daskbatch import Batch, DependencyFailed, SpecError
from daskbatch.describe.spec import make_options
from daskbatch.dispatch.requirements import Capacity, unmet

SMALL = Capacity("tcp://10.0.0.1:40", "10.0.0.1", "small", {"GPU": 1.0})
LARGE = Capacity("tcp://10.0.0.2:40", "10.0.0.2", "large", {"GPU": 4.0, "RAM": 8.0})


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, None),
        ({"resources": {"GPU": 4}}, None),
        ({"resources": {"GPU": 5}}, "asks for the resources {'GPU': 5.0}; the largest worker has"),
        ({"resources": {"FPGA": 1}}, "the largest worker has {'FPGA': 0}"),
        ({"resources": {"GPU": 2}, "workers": "10.0.0.2"}, None),
        ({"resources": {"GPU": 2}, "workers": ["10.0.0.1"]}, "the largest worker has {'GPU': 1.0}"),
        ({"workers": "tcp://10.0.0.1:40"}, None),
        ({"workers": "10.0.0.1:40"}, None),
        ({"workers": "large"}, None),
        ({"workers": ["10.0.0.3"]}, "may run only at 10.0.0.3; the workers are: tcp://10.0.0.1:40"),
    ],
)
def test_what_is_asked_for_and_what_there_is(options: dict[str, Any], why: str | None) -> None:
    found = unmet(make_options(**options), [SMALL, LARGE])
    if why is None:
        assert found is None
    else:
        assert found is not None
        assert why in found


def test_one_worker_must_have_it_all() -> None:
    both = make_options(resources={"GPU": 1, "RAM": 1})
    assert unmet(both, [SMALL, Capacity("a", "b", "c", {"RAM": 1.0})]) is not None
    assert unmet(both, [SMALL, LARGE]) is None


def test_on_an_embedded_cluster_it_fails_at_the_start(batch: Batch) -> None:
    task = batch.options(resources={"GPU": 1}, name="fit").function(len, "abc")
    with pytest.raises(SpecError, match="'fit' asks for the resources {'GPU': 1.0}; the largest"):
        task.start()
    assert task.state == "created"


def test_on_a_cluster_that_may_grow_it_fails_after_a_time() -> None:
    with (
        dask.config.set({"daskbatch.unmet-timeout": "300ms"}),
        LocalCluster(
            n_workers=1, processes=False, dashboard_address=":0", resources={"GPU": 1}
        ) as cluster,
        Batch(cluster) as batch,
    ):
        large = batch.options(resources={"GPU": 2}, name="large").function(len, "abc")
        behind = batch.function(pow, large, 2)
        small = batch.options(resources={"GPU": 1}).function(len, "abcd")
        batch.compile([large, behind, small]).run(timeout=60)
        assert small.get() == 4
        with pytest.raises(SpecError, match="'large' asks for the resources {'GPU': 2.0}; the"):
            large.get()
        with pytest.raises(DependencyFailed, match=r"because 'large' \('abc'\) failed: SpecError"):
            behind.get()


def test_a_worker_that_comes_in_time_meets_it() -> None:
    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address=":0", resources={"GPU": 1}
        ) as cluster,
        Batch(cluster) as batch,
    ):
        task = batch.options(resources={"GPU": 1}).function(len, "abc")
        task.start()
        assert task.state == "waiting"
        scale(cluster, 1)
        assert task.get(timeout=60) == 3


def _address() -> str:
    return str(get_worker().address)


def test_a_place_that_has_gone_is_said_to_be_none() -> None:
    with dask.config.set({"daskbatch.unmet-timeout": "300ms"}), Batch(num_workers=1) as batch:
        address = batch.function(_address)
        address.run(timeout=60)
        there = batch.options(workers=address.get())
        waits = there.function(len, "abc")
        busy = there.function(_die)
        batch.compile([busy, waits]).run(timeout=60)
        with pytest.raises(SpecError, match="may run only at tcp"):
            waits.get()


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
