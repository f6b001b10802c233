"""What the tests share: Batches to use, and a look at what they leave behind."""

from __future__ import annotations

import os
from collections.abc import Iterator

import hypothesis
import pytest

from daskbatch import Batch

# The same examples each time; with HYPOTHESIS_PROFILE=explore, others.
hypothesis.settings.register_profile("suite", derandomize=True)
hypothesis.settings.register_profile("explore", derandomize=False)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "suite"))

#: CPython's files: `test_cpython.py` runs what is in them.
collect_ignore = ["conformance/cpython"]


@pytest.fixture(scope="session")
def shared_batch() -> Iterator[Batch]:
    """A Batch with two workers, for tests that leave it as they found it."""
    with Batch(num_workers=2) as batch:
        yield batch


@pytest.fixture
def batch(shared_batch: Batch) -> Iterator[Batch]:
    """The shared Batch; whatever a test has started on it must be over before the next."""
    yield shared_batch
    shared_batch.fence(timeout=60)
