"""Workers, dictionaries and logs whose disk is full: an error of what needed the space."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import LocalCluster
from support.small_disk import SmallDisk, small_disk
from support.waiting import touch

from daskbatch import Batch, Queue, WorkerLost
from daskbatch.memory.file_systems import keeps_allocated_space

#: What Dask needs to start a worker again. A journal needs more. On a file system that copies on
#: write Dask needs this much more, and the journal is elsewhere.
RESTART_BYTES, COPYING_BYTES = 400_000, 4_000_000


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", 3 << 20) as made:
        yield made


def pid_of_worker() -> int:
    return os.getpid()


def kill_worker_once(path: Path) -> str:
    if not path.exists():
        touch(path)
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_workers_on_a_full_disk_do_their_work(disk: SmallDisk, tmp_path: Path) -> None:
    with LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=":0", local_directory=str(disk.path)
    ) as cluster:
        copies = not keeps_allocated_space(disk.path)
        disk.fill(spare=RESTART_BYTES + copies * COPYING_BYTES)
        with Batch(cluster) as batch:
            pid = batch.function(pid_of_worker)
            echo = batch.process("cat", stdin="hi")
            child = batch.options(isolation="process").function(len, "abc")
            batch.compile([pid, echo, child]).run(timeout=60)
            assert (echo.stdout.get(), child.get()) == ("hi", 3)
            # Nobody knows what had begun, so the same rules hold as for what may have run.
            again = batch.function(kill_worker_once, tmp_path / "first")
            again.run(timeout=60)
            assert again.get() == "done"
            data = tmp_path / "data"
            data.touch()
            both = batch.function(
                kill_worker_once,
                tmp_path / "second",
                reads=batch.read(data),
                writes=batch.write(data),
            )
            both.run(timeout=60)
            with pytest.raises(WorkerLost):
                both.get()
            # A value that does not fit is an error of its put, and the others stay.
            values = batch.ddict(shards=1, memory_limit=100_000)
            values["a"] = b"a" * 90_000
            disk.fill()
            with pytest.raises(OSError, match="No space left"):
                values["b"] = b"b" * 90_000
            assert values["a"] == b"a" * 90_000
            assert "b" not in values
            disk.free()
            values["b"] = b"b" * 90_000
            assert values["b"] == b"b" * 90_000


def test_a_log_on_a_full_disk_ends_and_the_program_goes_on(
    disk: SmallDisk, caplog: pytest.LogCaptureFixture
) -> None:
    with Batch(num_workers=1, log_dir=disk.path / "log") as batch:
        batch.function(print, "before").run(timeout=60)
        disk.fill()
        tasks = [batch.function(print, "x" * 10_000) for _ in range(20)]
        batch.compile(tasks).run(timeout=60, check=True)
        assert tasks[-1].stdout.get() == "x" * 10_000
    assert "No space left" in caplog.text


def test_a_snapshot_that_does_not_fit_leaves_the_old_one(
    disk: SmallDisk, batch: Batch, tmp_path: Path
) -> None:
    values = batch.ddict()
    values["a"] = 1
    path = disk.path / "saved"
    values.save(path)
    values["big"] = bytes(4 << 20)
    disk.fill()
    with pytest.raises(OSError, match="No space left"):
        values.save(path)
    values.close()
    assert sorted(each.name for each in disk.path.iterdir()) == ["filling", "saved"]
    queue = batch.queue()
    queue.put(bytes(4 << 20))
    with pytest.raises(OSError, match="No space left"):
        queue.save(disk.path / "queue")
    assert sorted(each.name for each in disk.path.iterdir()) == ["filling", "saved"]
    # Values in shared memory are saved, where there is room.
    queue.save(tmp_path / "queue")
    queue.close()
    with_big = Queue.load(tmp_path / "queue", batch)
    assert with_big.get() == bytes(4 << 20)
    with_big.close()
