"""A child runs the profilers that its worker has sent, also when an order arrives late."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from daskbatch.worker.profiling import child_profiles, profilers
from daskbatch.worker.profiling.child_profiles import ChildOrder
from daskbatch.worker.profiling.profilers import MEMORY


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    profilers.follow(())
    child_profiles._forget_listener()
    child_profiles.forget("")


def test_an_order_of_a_stopped_profiler_ends_with_the_next_task(tmp_path: Path) -> None:
    """The worker stops the profiler after it has made the order, and before the child obeys it."""
    child_profiles.obey(ChildOrder(str(tmp_path), ((MEMORY, "owner"),)))
    assert tracemalloc.is_tracing()
    child_profiles.obey(None)
    assert not tracemalloc.is_tracing()


def test_an_order_whose_directory_was_removed_starts_nothing(tmp_path: Path) -> None:
    child_profiles.obey(ChildOrder(str(tmp_path / "removed"), ((MEMORY, "owner"),)))
    assert not tracemalloc.is_tracing()
    child_profiles.obey(ChildOrder(str(tmp_path), ((MEMORY, "next"),)))
    assert tracemalloc.is_tracing()


def test_no_directory_is_made_after_the_last_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last profiler stops while another thread makes an order."""
    answers = iter([((MEMORY, "owner"),)])
    # The first look still sees the profiler; it ends before the second.
    monkeypatch.setattr(profilers, "active", lambda: next(answers, ()))
    assert child_profiles.order() is None
    assert child_profiles._directory is None
