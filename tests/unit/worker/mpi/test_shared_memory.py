"""Shared memory that killed processes of MPI have left is removed; what is in use stays."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import wait_until

from daskbatch.worker.mpi.shared_memory import remove_unused, remove_unused_later

DIRECTORY = Path("/dev/shm")

pytestmark = pytest.mark.skipif(not DIRECTORY.is_dir(), reason="this system has no /dev/shm")


@pytest.fixture
def path() -> Iterator[Path]:
    made = DIRECTORY / f"mpich_shm_{uuid.uuid4().hex}_0"
    made.write_bytes(bytes(4096))
    yield made
    made.unlink(missing_ok=True)


def test_a_file_that_no_process_uses(path: Path) -> None:
    assert path.name in remove_unused(time.time() - 60)
    assert not path.exists()


def test_a_file_that_is_open_or_mapped_stays(path: Path) -> None:
    with path.open("r+b") as file:
        remove_unused(time.time() - 60)
        assert path.exists()
        mapped = mmap.mmap(file.fileno(), 4096)
    remove_unused(time.time() - 60)
    assert path.exists()
    mapped.close()
    remove_unused(time.time() - 60)
    assert not path.exists()


def test_older_files_and_those_of_others_stay(path: Path) -> None:
    os.utime(path, (time.time() - 3600, time.time() - 3600))
    other = DIRECTORY / f"mine-{uuid.uuid4().hex}"
    other.write_bytes(b"x")
    try:
        remove_unused(time.time() - 60)
        assert path.exists()
        assert other.exists()
    finally:
        other.unlink()


def test_a_later_removal(path: Path) -> None:
    remove_unused_later(time.time())
    remove_unused_later(time.time() - 60)
    wait_until(lambda: not path.exists())


def test_session_directories_of_open_mpi_whose_process_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    holder = tmp_path / f"ompi.{socket.gethostname()}.{os.geteuid()}"
    for name in (f"pid.{ended.pid}", f"pid.{os.getpid()}", "mine"):
        (holder / name / "0").mkdir(parents=True)
    other = tmp_path / f"ompi.elsewhere.{os.geteuid()}" / f"pid.{ended.pid}"
    other.mkdir(parents=True)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    remove_unused(time.time() + 3600)
    assert len(list(holder.iterdir())) == 3, "they are older"
    remove_unused(time.time() - 60)
    assert {each.name for each in holder.iterdir()} == {f"pid.{os.getpid()}", "mine"}
    assert other.exists()
