"""The output of each task is kept apart from that of other tasks."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Iterator

import dask
import pytest
from distributed import LocalCluster

from daskbatch import Batch


def talk(number: int, lines: int) -> int:
    logger = logging.getLogger(f"daskbatch-test-{number}")
    for line in range(lines):
        print(f"{number}: line {line}")
        threading.Event().wait(0.001)
        sys.stderr.write(f"{number}: error {line}\n")
        logger.warning("%s: warning %s", number, line)
    return number


def expected(number: int, lines: int) -> tuple[str, str]:
    out = "\n".join(f"{number}: line {line}" for line in range(lines))
    err = "\n".join(f"{number}: error {n}\n{number}: warning {n}" for n in range(lines))
    return out, err


@pytest.fixture(scope="module")
def threaded_batch() -> Iterator[Batch]:
    """One worker process with four threads."""
    with (
        LocalCluster(n_workers=1, threads_per_worker=4, dashboard_address=":0") as cluster,
        Batch(cluster) as batch,
    ):
        yield batch


def test_of_tasks_that_run_at_once_in_threads_of_one_process(threaded_batch: Batch) -> None:
    tasks = [threaded_batch.function(talk, number, 30) for number in range(16)]
    threaded_batch.compile(tasks).run(timeout=60)
    for number, task in enumerate(tasks):
        assert (task.stdout.get(), task.stderr.get()) == expected(number, 30)


def test_of_tasks_that_share_a_block(batch: Batch) -> None:
    tasks = [batch.function(talk, number, number % 3) for number in range(100)]
    batch.compile(tasks).run(timeout=60)
    for number, task in enumerate(tasks):
        assert (task.stdout.get(), task.stderr.get()) == expected(number, number % 3)


def test_of_a_task_that_fails(batch: Batch) -> None:
    task = batch.function(_print_and_fail)
    task.run(timeout=60)
    assert (task.state, task.stdout.get()) == ("failed", "before")


def _print_and_fail() -> None:
    print("before")
    raise ValueError


def test_nothing_written_is_an_empty_text(batch: Batch) -> None:
    task = batch.function(len, "abc")
    task.run(timeout=60)
    assert (task.stdout.get(), task.stderr.get()) == ("", "")


def test_one_newline_at_the_end_is_removed(batch: Batch) -> None:
    task = batch.function(print, "two lines\n")
    task.run(timeout=60)
    assert task.stdout.get() == "two lines\n"


def test_as_an_argument(batch: Batch) -> None:
    said = batch.function(print, "Hi-diddly-ho!!!")
    upper = batch.function(str.upper, said.stdout)
    echoed = batch.process("cat", stdin=said.stdout)
    batch.compile([said, upper, echoed]).run(timeout=60)
    assert upper.get() == "HI-DIDDLY-HO!!!"
    assert echoed.stdout.get() == "Hi-diddly-ho!!!"


def test_much_of_it_stays_on_the_worker_until_it_is_asked_for(batch: Batch) -> None:
    task = batch.function(_write, 300_000)
    task.run(timeout=60)
    assert len(task.stdout.get(timeout=60)) == 300_000
    assert task.get() == 300_000


def _write(count: int) -> int:
    return sys.stdout.write("x" * count)


def test_too_much_of_it_is_cut_in_the_middle() -> None:
    with dask.config.set({"daskbatch.output-limit": "1000 B"}), Batch(num_workers=1) as batch:
        function = batch.function(_count_to, 2000)
        process = batch.process("seq", "2000")
        batch.compile([function, process]).run(timeout=60)
        for task in (function, process):
            text = task.stdout.get()
            dropped = len("\n".join(map(str, range(1, 2001)))) + 1 - 1000
            assert text.startswith("1\n2\n3\n")
            assert text.endswith("\n1999\n2000")
            assert f"[daskbatch: {dropped} bytes dropped, see daskbatch.output-limit]" in text


def _count_to(last: int) -> None:
    for number in range(1, last + 1):
        print(number)


def test_of_executables(batch: Batch) -> None:
    task = batch.process("sh", "-c", "echo out; echo err >&2; printf 'no newline'")
    binary = batch.process("printf", "\\377x")
    batch.compile([task, binary]).run(timeout=60)
    assert (task.stdout.get(), task.stderr.get()) == ("out\nno newline", "err")
    assert binary.stdout.get() == "\ufffdx"
