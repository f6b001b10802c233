"""Gives tests Batches to use, marks each test with its folder, and ends tests that are stuck."""

from __future__ import annotations

import faulthandler
import gc
import os
import signal
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import dask.config
import hypothesis
import pytest
from support.paths import TESTS

if TYPE_CHECKING:
    from support.batch_holder import BatchHolder

    from daskbatch import Batch

# The same examples each time; with HYPOTHESIS_PROFILE=explore, others.
hypothesis.settings.register_profile("suite", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

# What Dask does all the time in each process, for its dashboard alone, takes 5 to 8 % of a core for
# each one, and the tests have many that wait. The programs that tests start inherit this.
IDLE = {"distributed.worker.profile.enabled": False, "distributed.admin.tick.interval": "500ms"}
for name, value in IDLE.items():
    os.environ.setdefault(f"DASK_{name.upper().replace('.', '__')}", str(value))

# Only in this process, not in the programs that it starts: workers of clusters that tests make are
# forked from a process that has imported Dask, which takes a tenth of the time.
dask.config.set({**IDLE, "distributed.worker.multiprocessing-method": "forkserver"})

#: A part of a test that takes this long is beyond the time of any test: what should have stopped it
#: has not. The process ends then, and says where each thread was; the other tests run on.
_STUCK_SECONDS = 600

#: Where it says so: pytest does not capture it.
_stderr = 2

#: CPython's files: `test_cpython_executor.py` and `test_cpython_mapping.py` run what is in them.
collect_ignore = ["conformance/cpython"]


def pytest_configure() -> None:
    """Have this process, and the programs that it starts, listen to Ctrl-C and to hang-ups.

    A shell that runs the tests in its background, or with `nohup`, has them ignore these.
    """
    global _stderr
    _stderr = os.dup(2)
    for number, default in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, default)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with its folder, so that `-m unit` selects the unit tests."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        item.add_marker(getattr(pytest.mark, folder))


def pytest_collection_finish() -> None:
    """Have garbage collections leave out the ten thousand tests: they would take a second each."""
    gc.collect()
    gc.freeze()


def pytest_runtest_logstart() -> None:
    """Have waits that could last for ever fail."""
    if "distributed" in sys.modules:  # tests that need no cluster should not wait for its import
        from support import lock_order

        lock_order.install()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def _unless_stuck() -> Iterator[None]:
    """End this process if a part of a test goes on and on.

    pytest-timeout raises an exception once in a test; what waits again after it waits for ever.
    """
    # For each part anew: pytest ends any such watch when a test fails, before its teardown.
    faulthandler.dump_traceback_later(_STUCK_SECONDS, file=_stderr, exit=True)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


pytest_runtest_setup = pytest_runtest_call = pytest_runtest_teardown = _unless_stuck


@pytest.fixture(scope="session")
def batch_holder() -> Iterator[BatchHolder]:
    """What holds the Batch that tests share."""
    # Not at the top: unit tests need no cluster, and should not wait for its import.
    from support.batch_holder import BatchHolder

    holder = BatchHolder(workers=2)
    yield holder
    holder.drop()


@pytest.fixture(scope="module")
def shared_batch(batch_holder: BatchHolder) -> Iterator[Batch]:
    """A Batch with two workers, for tests that leave it as they found it."""
    yield batch_holder.get()
    batch_holder.check()


@pytest.fixture
def batch(shared_batch: Batch, batch_holder: BatchHolder) -> Iterator[Batch]:
    """The shared Batch; whatever a test has started on it must be over before the next."""
    batch = batch_holder.get()
    yield batch
    batch_holder.fence()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless browser; tests that need it are skipped where there is none.

    While it is open, playwright's event loop counts as running in this thread: the other tests of a
    module that uses it must not call `asyncio.run`.
    """
    from support.browser import start_chromium

    with start_chromium() as browser:
        yield browser
