"""The directory of a worker's journals: where it is, who may read it, and who removes it."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import killed_if_failed
from support.small_disk import small_disk

from daskbatch.worker import journal_directory, journal_pool
from daskbatch.worker.journal_directory import (
    JournalDirectory,
    read_complete_journals,
    remove_journals,
)
from daskbatch.worker.journal_pool import JournalPool


def test_journals_are_in_memory_where_the_disk_does_not_keep_what_was_allocated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        small_disk(tmp_path / "memory", 3 << 20, "tmpfs") as memory,
        small_disk(tmp_path / "disk", 3 << 20, "btrfs") as disk,
    ):
        monkeypatch.setattr(journal_directory, "_SHARED_MEMORY", memory.path)
        pool = JournalPool(disk.path, "w")
        assert pool.directory.parent == memory.path
        # Nobody else may write what a nanny unpickles.
        assert pool.directory.stat().st_mode & 0o777 == 0o700
        assert pool.take() is not None
        pool.close()
        assert list(memory.path.iterdir()) == []


def test_without_any_place_there_is_no_journal_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal_directory, "keeps_allocated_space", lambda directory: False)
    with caplog.at_level(logging.WARNING, "daskbatch"):
        pool = JournalPool(tmp_path, "w")
        assert [pool.take() for _ in range(3)] == [None] * 3
    (record,) = caplog.records
    assert f"neither {tmp_path} nor " in record.getMessage()
    assert list(tmp_path.iterdir()) == []


LIVES_UNTIL_KILLED = """
import sys
from pathlib import Path
from daskbatch.worker.journal_directory import JournalDirectory

JournalDirectory(Path(sys.argv[1]), "of the other worker").mark_complete()
print("made", flush=True)
sys.stdin.readline()
"""


def test_only_what_dead_workers_left_behind_is_removed_and_not_at_once(tmp_path: Path) -> None:
    others = tmp_path / "daskbatch-job-a"
    others.mkdir()
    with killed_if_failed(
        subprocess.Popen(
            [sys.executable, "-c", LIVES_UNTIL_KILLED, str(tmp_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "made\n"
        (path,) = tmp_path.glob("*worker")
        note = path / "abandoned"
        JournalDirectory(tmp_path, "a")
        assert not note.exists()
        worker.send_signal(signal.SIGKILL)
    # A nanny may read it for some time.
    JournalDirectory(tmp_path, "b")
    JournalDirectory(tmp_path, "c")
    assert note.exists()
    an_hour_ago = note.stat().st_mtime - 3600
    for each in (note, others):
        os.utime(each, (an_hour_ago, an_hour_ago))
    JournalDirectory(tmp_path, "d")
    assert list(tmp_path.iterdir()) == [others]
    assert list(others.iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a directory of another user")
def test_no_journal_is_in_a_directory_that_another_user_has_prepared(tmp_path: Path) -> None:
    directory = JournalDirectory(tmp_path, "w")
    prepared = directory.path.with_name(f".{directory.path.name}")
    prepared.mkdir()
    os.chown(prepared, 12345, -1)
    with pytest.raises(PermissionError, match="of another user"):
        directory.mark_complete()


def test_a_directory_that_somebody_removed_does_not_count_as_complete_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journal_pool, "_RETRY_SECONDS", 0.0)
    pool = JournalPool(tmp_path, "w")
    first = pool.take()
    assert first is not None
    remove_journals(pool.directory)
    assert pool.take() is None
    pool.give_back(None)
    pool.give_back(first)
    # The first journal would be used again, and nobody could find it.
    pool.take()
    assert read_complete_journals(pool.directory) is None
