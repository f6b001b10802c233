"""A `BatchPoolExecutor` passes CPython's own tests of executors; see `cpython_cases`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conformance import cpython_cases
from conformance.cpython_cases import (  # noqa: F401 - pytest finds them here
    AsCompletedTest,
    DeadlockTest,
    ExecutorTest,
    FailingInitializerTest,
    FutureTest,
    InitializerTest,
    ProcessPoolExecutorTest,
    ShutdownTest,
    WaitTest,
)

from daskbatch import Batch


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[None]:
    """One cluster for all tests of this file; the cluster replaces workers that die."""
    with Batch(num_workers=4) as batch, pytest.MonkeyPatch.context() as patch:
        address = batch.client.scheduler.address
        patch.setattr(cpython_cases.SharedExecutor, "cluster", address)
        yield


def test_each_test_is_run_or_it_is_said_why_not() -> None:
    run, written = cpython_cases.run(), cpython_cases.written(cpython_cases.DIRECTORY)
    assert len(run) == len(set(run)), "one is run twice"
    assert set(run) == {test for test in written if cpython_cases.why_not(test) is None}


def test_all_modules_are_known() -> None:
    known = {module.__name__.split(".")[-1] for module in cpython_cases.MODULES}
    found = {path.stem for path in cpython_cases.DIRECTORY.glob("*.py")} - {"__init__", "util"}
    assert found <= known | cpython_cases.OTHER_MODULES


def test_the_table_names_no_test_that_is_not_there() -> None:
    assert set(cpython_cases.NOT_RUN) <= cpython_cases.written(cpython_cases.COPY)
