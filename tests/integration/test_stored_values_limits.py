"""Stored values beyond the memory limit, without memory, with a full /dev/shm; none leaks."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from distributed import Client

from daskbatch import Batch, BatchError, SerializationError
from daskbatch.memory.host import host_id
from daskbatch.plan import blocks
from tests.support.limited_cluster import limited_cluster
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(not host_id(), reason="this system shares no memory by files")

#: The memory limit of a worker. It has some 150 MB of these once it has imported all it needs.
LIMIT = 300_000_000
SIZE = 20_000_000


def make(number: int) -> Any:
    return np.full(SIZE, number, "u1")


def make_for_the_first_time(number: int) -> Any:
    return make(number)  # it is copied: its memory is not in the arena


def is_right(array: Any, number: int) -> bool:
    return array.shape == (SIZE,) and bool((array == number).all())


def test_three_times_the_memory_of_a_worker_goes_through_and_comes_back(tmp_path: Path) -> None:
    count = 3 * LIMIT // SIZE
    me = psutil.Process()
    with (
        limited_cluster(LIMIT, tmp_path) as cluster,
        Client(cluster) as client,  # type: ignore[no-untyped-call]
        Batch(client) as batch,
    ):
        before = client.run(os.getpid)
        makers = [batch.function(make, number) for number in range(count)]
        program = batch.compile(makers)
        program.run(check=True)
        spilled = client.run(lambda dask_worker: sum(dask_worker.data.spilled_total))
        assert sum(spilled.values()) > LIMIT
        checks = [batch.function(is_right, each, number) for number, each in enumerate(makers)]
        checked = batch.compile(checks)
        checked.run(check=True)
        assert all(checked.result.get())
        del program, checks, checked
        memory, most = me.memory_info().rss, 0
        for number in range(count):
            assert is_right(makers[number].get(), number)
            most = max(most, me.memory_info().rss)
            makers[number] = None  # type: ignore[call-overload]
        # What one block has stored comes together, and a few mappings are kept; not all 45 values.
        assert most - memory < 20 * SIZE
        assert client.run(os.getpid) == before


def test_tasks_whose_inputs_are_too_large_together_share_no_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dask refuses a key whose inputs take more memory than a worker has."""
    monkeypatch.setattr(blocks, "UNKNOWN_BLOCKS_PER_SLOT", 1)
    with (
        limited_cluster(LIMIT, tmp_path) as cluster,
        Batch(cluster) as batch,
    ):
        makers = [batch.function(make, number) for number in range(20)]
        batch.compile(makers).run(check=True)
        checks = [batch.function(is_right, each, number) for number, each in enumerate(makers)]
        batch.compile(checks).run(check=True)
        assert all(check.get() for check in checks)
        # What no worker can hold, fails.
        whole = batch.function(len, makers)
        whole.run(timeout=60)
        with pytest.raises(BatchError, match="worth of input dependencies"):
            whole.get()


def limit_files(size: int) -> tuple[int, int]:
    """Have the kernel refuse longer files to this process; return the limit that was before."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    return before


def test_without_memory_for_a_value_its_task_fails_and_others_do_not() -> None:
    with Batch(num_workers=1) as batch:
        first = batch.function(make, 1)
        first.run(check=True)
        before = batch.client.run(limit_files, SIZE + SIZE // 2)
        try:
            small, large = batch.function(abs, -5), batch.function(make_for_the_first_time, 2)
            batch.compile([large, small]).run()
            with pytest.raises(SerializationError, match="task 'make_for.*cannot be sent"):
                large.get()
            assert small.get() == 5
            assert is_right(first.get(), 1)
        finally:
            for limit in before.values():
                batch.client.run(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
        again = batch.function(make, 3)
        again.run(check=True)
        assert is_right(again.get(), 3)


FULL = """\
    import contextlib
    import os
    import numpy as np
    from daskbatch import Batch

    def make(number):
        return np.full(2_000_000, float(number))

    def total(array, other):
        return float(array[-1] + other[-1])

    if __name__ == "__main__":
        with Batch(num_workers=1) as batch:
            with contextlib.suppress(OSError), open("/dev/shm/filling", "wb") as file:
                file.write(bytes(1_000_000))
            assert os.statvfs("/dev/shm").f_bavail == 0
            mine = make(5)
            for isolation in ("thread", "process"):
                some = batch.options(isolation=isolation)
                made = some.function(make, 2)
                totals = some.function(total, made, mine)
                batch.compile([made, totals]).run(check=True)
                print(totals.get(), made.get()[-1])
            shared = batch.ddict()
            shared["key"] = mine
            print(shared["key"][-1])
"""


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount")
def test_values_do_not_need_dev_shm(tmp_path: Path) -> None:
    """It fills up while a Batch runs: the values are in memory files without names."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    script = tmp_path / "full.py"
    script.write_text(textwrap.dedent(FULL))
    commands = (
        "mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 77\n"
        f'exec "{sys.executable}" "{script}"\n'
    )
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", commands],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        timeout=120,
    )
    if done.returncode == 77:
        pytest.skip(f"a file system cannot be mounted here: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["7.0", "2.0", "7.0", "2.0", "5.0"]


def make_some(number: int) -> Any:
    return np.full(70_000, number % 256, "u1")


def last(array: Any) -> int:
    return int(array[-1])


def descriptors() -> int:
    return psutil.Process().num_fds()


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_thousand_values_leave_no_descriptor_and_no_file(batch: Batch, isolation: str) -> None:
    some = batch.options(isolation=isolation)

    def run(count: int) -> None:
        made = [some.function(make_some, number) for number in range(count)]
        ends = [some.function(last, each) for each in made]
        batch.compile([*made, *ends]).run(check=True)
        assert [each.get() for each in ends] == [number % 256 for number in range(count)]
        assert [int(each.get()[0]) for each in made] == [number % 256 for number in range(count)]

    def counts() -> list[int]:
        return [descriptors(), *batch.client.run(descriptors).values()]

    run(10)
    names = set(os.listdir("/dev/shm"))
    before = counts()
    run(1000)
    # Files of Dask itself come and go by a few.
    wait_until(
        lambda: all(now <= then + 3 for now, then in zip(counts(), before, strict=True)),
        f"descriptors stay open: {before} before, {counts()} now",
    )
    mine = f"-{os.getpid()}-"
    left = {name for name in set(os.listdir("/dev/shm")) - names if mine in name}
    assert not left
