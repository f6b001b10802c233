"""Journals on a full disk: the worker lives, goes on without a journal, and says so once."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.small_disk import SmallDisk, small_disk

from daskbatch.memory.file_systems import keeps_allocated_space
from daskbatch.worker import journal_pool
from daskbatch.worker.execution.journal import NOT_MEASURED, Journal, read_journals
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.journal_directory import read_complete_journals, remove_journals
from daskbatch.worker.journal_pool import JournalPool

DONE = int(Status.DONE)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "dïsk with spaces", 3 << 20) as made:
        if not keeps_allocated_space(made.path):
            pytest.skip("no journals are kept on such a file system")
        yield made


def test_a_worker_without_space_keeps_no_journal_and_says_so_once(
    disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    pool = JournalPool(disk.path, "w")
    disk.fill()
    with caplog.at_level(logging.WARNING, "daskbatch"):
        assert [pool.take() for _ in range(3)] == [None] * 3
    (record,) = caplog.records
    assert str(disk.path) in record.getMessage()
    assert "No space left" in record.getMessage()
    # What was allocated for the attempt is free again.
    assert not list(pool.directory.glob("*.journal"))


def test_without_a_journal_nobody_concludes_that_a_block_had_not_begun(disk: SmallDisk) -> None:
    pool = JournalPool(disk.path, "w")
    first = pool.take()
    assert first is not None
    first.begin("topic", 1)
    found = read_complete_journals(pool.directory)
    assert found is not None
    assert [each.block for each in found] == [1]
    disk.fill()
    assert pool.take() is None
    assert read_complete_journals(pool.directory) is None


def test_journals_are_complete_again_once_there_is_space(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_pool, "_RETRY_SECONDS", 0.0)
    pool = JournalPool(disk.path, "w")
    disk.fill()
    assert pool.take() is None
    disk.free()
    journal = pool.take()
    assert journal is not None
    # The first block still runs.
    assert read_complete_journals(pool.directory) is None
    pool.give_back(None)
    pool.give_back(journal)
    assert pool.take() is journal
    assert read_complete_journals(pool.directory) is not None
    pool.close()
    assert not pool.directory.exists()


def test_a_directory_that_cannot_be_made_is_no_failure_of_the_worker(tmp_path: Path) -> None:
    pool = JournalPool(tmp_path / "nowhere", "w")
    assert pool.take() is None
    assert read_complete_journals(pool.directory) is None
    pool.close()


# In another process: a write to a part of a file that has no space would kill it.
FILLS_A_JOURNAL = """
import sys
from pathlib import Path
from daskbatch.worker.execution.journal import NOT_MEASURED
from daskbatch.worker.journal_pool import JournalPool

pool = JournalPool(Path(sys.argv[1]), "w")
journal = pool.take()
print(pool.directory, flush=True)
sys.stdin.readline()
journal.begin("topic", 7)
for member in range(200):
    journal.set_running(member)
    journal.record((member, 0, bytes(1 << 16), 0.0, ("\\U0001f600" * (1 << 16), ""), *NOT_MEASURED))
print("written", flush=True)
"""


@pytest.mark.parametrize(
    ("kind", "full"), [(None, False), (None, True), ("ext4", True), ("btrfs", True)]
)
def test_a_journal_on_a_disk_that_fills_up_keeps_what_was_last(
    tmp_path: Path, kind: str | None, full: bool
) -> None:
    with small_disk(tmp_path / "dïsk with spaces", 3 << 20, kind) as disk:
        writer = subprocess.Popen(
            [sys.executable, "-c", FILLS_A_JOURNAL, str(disk.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        directory = Path(writer.stdout.readline().removesuffix("\n"))
        assert directory.is_dir()
        if full:
            disk.fill()
        rest, _ = writer.communicate("\n", timeout=60)
        found = read_complete_journals(directory)
        remove_journals(directory)
    assert (rest, writer.returncode) == ("written\n", 0)
    assert found is not None
    (trace,) = found
    assert (trace.topic, trace.block, trace.running) == ("topic", 7, 199)
    members = sorted(trace.entries)
    assert members[-1] == 199
    assert members == list(range(members[0], 200))
    assert len(trace.entries[199][2] or b"") == 1 << 16


def test_a_journal_grows(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "slot", 1 << 16)
    small = sum(each.stat().st_blocks for each in tmp_path.iterdir())
    journal.begin("topic", 1)
    for member in range(40):
        journal.record((member, DONE, bytes(1 << 16), 0.0, None, *NOT_MEASURED))
    (trace,) = read_journals(tmp_path)
    assert sorted(trace.entries) == list(range(40))
    assert sum(each.stat().st_blocks for each in tmp_path.iterdir()) > small
    # Another process that continues knows how far the file has been allocated.
    other = Journal(tmp_path / "slot", 1 << 16, ("topic", 1))
    other.record((40, DONE, b"v", 0.0, None, *NOT_MEASURED))
    journal.resume()
    journal.record((41, DONE, b"w", 0.0, None, *NOT_MEASURED))
    (trace,) = read_journals(tmp_path)
    assert sorted(trace.entries) == list(range(42))
