"""A child runs the profilers that its worker has sent, also when a record arrives late."""

from __future__ import annotations

import os
import pickle
import socket
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest

from daskbatch.worker.profiling import child_profiles, child_server, profilers, remote
from daskbatch.worker.profiling.child_profiles import WantedProfilers
from daskbatch.worker.profiling.profilers import MEMORY


@pytest.fixture(autouse=True)
def _nothing_is_left() -> Iterator[None]:
    yield
    profilers.stop_all()
    child_server.close()
    child_profiles.remove_directory()


def test_a_stopped_profiler_ends_with_the_next_task(tmp_path: Path) -> None:
    """The worker stops the profiler after it has made the record, and before the child reads it."""
    child_server.run_wanted(WantedProfilers(str(tmp_path), ((MEMORY, "owner"),)))
    assert tracemalloc.is_tracing()
    child_server.run_wanted(None)
    assert not tracemalloc.is_tracing()


def test_a_record_whose_directory_was_removed_starts_nothing(tmp_path: Path) -> None:
    child_server.run_wanted(WantedProfilers(str(tmp_path / "removed"), ((MEMORY, "owner"),)))
    assert not tracemalloc.is_tracing()
    child_server.run_wanted(WantedProfilers(str(tmp_path), ((MEMORY, "next"),)))
    assert tracemalloc.is_tracing()


def test_no_directory_is_made_after_the_last_profiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last profiler stops while another thread makes a record."""
    answers = iter([((MEMORY, "owner"),)])
    # The first look still sees the profiler; it ends before the second.
    monkeypatch.setattr(profilers, "active", lambda: next(answers, ()))
    assert child_profiles.wanted_in_children() is None
    assert child_profiles._directory is None


def test_a_start_that_arrives_after_the_stop_is_refused() -> None:
    """A worker processes requests in threads, so a stop can overtake a start."""
    profilers.forget("client/one")
    profilers.start(MEMORY, "client/one")
    assert not tracemalloc.is_tracing()
    profilers.start(MEMORY, "client/two")
    assert tracemalloc.is_tracing()
    profilers.forget("client")
    assert not tracemalloc.is_tracing()
    profilers.start(MEMORY, "client/three")
    assert not tracemalloc.is_tracing()


def test_a_child_reports_from_any_directory_and_as_often_as_it_is_asked(tmp_path: Path) -> None:
    """A path of a socket may have 107 bytes; the directory may have a longer path, and spaces."""
    directory = tmp_path / ("long name é " * 12)
    directory.mkdir()
    child_profiles.set_parent_directory(str(directory))
    profilers.start(MEMORY, "owner-1")
    wanted = child_profiles.wanted_in_children()
    assert wanted is not None
    child_server.run_wanted(wanted)
    for _ in range(3):
        ((name, data),) = child_profiles.reports(MEMORY)
        assert isinstance(pickle.loads(data or b""), tracemalloc.Snapshot)
        assert name in os.listdir(wanted.directory)
    tracemalloc.stop()  # as a task may do
    ((_, data),) = child_profiles.reports(MEMORY)
    assert len(pickle.loads(data or b"").traces) == 0
    child_profiles.forget("owner-1")  # the "child" is this process: it stops its own profiler
    assert profilers.active() == ()
    assert os.listdir(directory) == []


def test_a_request_that_cannot_be_answered_does_not_end_the_child(tmp_path: Path) -> None:
    child_profiles.set_parent_directory(str(tmp_path))
    profilers.start(MEMORY, "owner-2")
    child_server.run_wanted(child_profiles.wanted_in_children())
    assert list(child_profiles.reports("no such kind")) == []
    assert len(list(child_profiles.reports(MEMORY))) == 1


def test_a_child_that_does_not_answer_is_reported_as_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child_profiles.set_parent_directory(str(tmp_path))
    monkeypatch.setattr(child_profiles, "_REPORT_TIMEOUT_SECONDS", 0.05)
    profilers.start(MEMORY, "owner-3")
    wanted = child_profiles.wanted_in_children()
    assert wanted is not None
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{wanted.directory}/silent")
        listener.listen()
        assert list(child_profiles.reports(MEMORY)) == [("silent", None)]
    assert list(child_profiles.reports(MEMORY)) == []  # now it has ended
    assert os.listdir(wanted.directory) == []


def test_the_last_worker_of_a_process_stops_all_profilers(tmp_path: Path) -> None:
    remote.open_worker(str(tmp_path))
    remote.open_worker(str(tmp_path))
    profilers.start(MEMORY, "owner-4")
    assert child_profiles.wanted_in_children() is not None
    remote.close_worker()
    assert tracemalloc.is_tracing()
    remote.close_worker()
    assert not tracemalloc.is_tracing()
    assert os.listdir(tmp_path) == []
