"""`task.info` says where and when each kind of task ran, and what it used."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path

import pytest
from support.waiting import touch_and_spin, wait_for_file, wait_until, wait_until_running

from daskbatch import Batch, TaskInfo

MIB = 1 << 20

needs_proc = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")


def burn(seconds: float) -> int:
    """Compute for some processor time; return the process."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass
    return os.getpid()


def allocate(mebibytes: int) -> int:
    data = bytearray(mebibytes * MIB)
    data[::4096] = b"x" * len(data[::4096])
    time.sleep(0.01)
    return os.getpid()


def start_burning(seconds: float) -> None:
    program = f"import time\nwhile time.process_time() < {seconds}: pass"
    subprocess.run([sys.executable, "-c", program], check=True)


def fail_until(path: Path, times: int) -> int:
    with path.open("a") as file:
        file.write("x")
    if len(path.read_text()) < times:
        raise ValueError("not yet")
    return os.getpid()


def check(info: TaskInfo, created_before: float) -> None:
    """Check what holds for each task that has run."""
    assert info.worker is not None
    assert info.worker.startswith("tcp://")
    assert info.host == "127.0.0.1"
    assert info.pid is not None
    assert info.created is not None
    assert info.started is not None
    assert info.ended is not None
    assert info.seconds is not None
    assert info.cpu_seconds is not None
    assert created_before <= info.created <= info.started <= info.ended <= time.time()
    assert info.ended - info.started == pytest.approx(info.seconds, abs=1e-4)


def test_a_function_in_a_thread(batch: Batch) -> None:
    before = time.time()
    task = batch.function(burn, 0.1)
    assert (task.info.attempts, task.info.started, task.info.created >= before) == (0, None, True)
    task.run(timeout=60)
    info = task.info
    check(info, before)
    assert (info.state, info.attempts, info.pid) == ("done", 1, task.get())
    assert 0.1 <= info.cpu_seconds <= info.seconds + 0.05
    assert info.max_memory is None


@needs_proc
def test_the_memory_of_an_isolated_function_is_its_own(batch: Batch) -> None:
    before = time.time()
    isolated = batch.options(isolation="process")
    large, small, tiny = (isolated.function(allocate, size) for size in (300, 1, 0))
    for task in (large, small, tiny):
        task.run(timeout=60)
        check(task.info, before)
        assert task.info.pid == task.get() != os.getpid()
    assert large.info.max_memory > 300 * MIB
    assert small.info.max_memory < 200 * MIB
    assert tiny.info.max_memory < 200 * MIB


def test_an_isolated_function_has_the_time_of_what_it_has_started(batch: Batch) -> None:
    task = batch.options(isolation="process").function(start_burning, 0.3)
    task.run(timeout=60, check=True)
    assert task.info.cpu_seconds >= 0.3


@needs_proc
def test_an_executable(batch: Batch) -> None:
    before = time.time()
    program = "import os, time\ndata = bytearray(150 << 20)\nprint(os.getpid())\n"
    program += "while time.process_time() < 0.3: pass"
    task = batch.process(sys.executable, "-c", program)
    task.run(timeout=60, check=True)
    check(task.info, before)
    assert task.info.pid == int(task.stdout.get())
    assert task.info.cpu_seconds >= 0.3
    assert 150 * MIB < task.info.max_memory < 220 * MIB


@needs_proc
def test_a_late_task_has_what_it_used_until_its_end(batch: Batch) -> None:
    tasks = [
        batch.function(burn, 60, timeout=1.5),
        batch.process("sh", "-c", "while :; do :; done", timeout=1.5),
    ]
    for task in tasks:
        task.run(timeout=60)
        assert task.info.state == "failed"
        assert 1.5 <= task.info.seconds < 30
        assert task.info.cpu_seconds > 0.05
        assert task.info.error.startswith("TaskTimeout")


def test_attempts_are_counted(batch: Batch, tmp_path: Path) -> None:
    for isolation in ("thread", "process"):
        options = batch.options(retries=4, isolation=isolation)
        task = options.function(fail_until, tmp_path / isolation, 3)
        task.run(timeout=60)
        assert (task.info.state, task.info.attempts) == ("done", 3)
        assert task.info.pid == task.get()


def test_a_task_that_runs_is_told_with_its_place(batch: Batch, tmp_path: Path) -> None:
    before = time.time()
    isolated = batch.options(isolation="process")
    for task in (
        batch.function(touch_and_spin, tmp_path / "a"),
        isolated.function(touch_and_spin, tmp_path / "b"),
        batch.process("sleep", "60"),
    ):
        task.start()
        wait_until_running(task)
        info = task.info
        assert (info.state, info.attempts, info.ended, info.seconds) == ("running", 1, None, None)
        assert before <= info.started <= time.time()
        assert info.host == "127.0.0.1"
        task.cancel()
        task.wait(timeout=60)
        info = task.info
        assert (info.state, info.attempts) == ("cancelled", 1)
        assert info.started is not None
        assert info.started <= info.ended


def test_tasks_that_have_not_run_have_no_times_but_their_end(batch: Batch) -> None:
    failed = batch.function(int, "x")
    skipped = batch.function(abs, failed)
    cancelled = batch.function(abs, 1)
    unsendable = batch.function(len, (each for each in ()))
    cancelled.cancel()
    batch.compile([failed, skipped, unsendable]).run(timeout=60)
    assert failed.info.attempts == 1
    for task in (skipped, cancelled, unsendable):
        info = task.info
        assert (info.attempts, info.started, info.seconds, info.pid) == (0, None, None, None)
        assert info.created <= info.ended <= time.time()


def test_a_compiled_task_has_the_first_start_the_last_end_and_sums(batch: Batch) -> None:
    first = batch.options(isolation="process").function(burn, 0.05)
    second = batch.function(burn, 0.05)
    program = batch.compile([first, second])
    assert (program.info.started, program.info.ended) == (None, None)
    program.run(timeout=60)
    info, infos = program.info, [first.info, second.info]
    assert info.started == min(each.started for each in infos)
    assert info.ended == max(each.ended for each in infos)
    assert info.seconds == pytest.approx(sum(each.seconds for each in infos))
    assert info.cpu_seconds == pytest.approx(sum(each.cpu_seconds for each in infos))
    assert info.max_memory == first.info.max_memory
    assert info.attempts == 2


def test_the_times_of_a_slot_do_not_overlap(batch: Batch) -> None:
    tasks = [batch.function(pow, number, 3) for number in range(2000)]
    tasks += [batch.function(burn, 0.002) for _ in range(20)]
    batch.compile(tasks).run(timeout=60, check=True)
    by_slot = defaultdict(list)
    for task in tasks:
        info = task.info
        by_slot[info.worker].append((info.started, info.ended))
    for slices in by_slot.values():
        slices.sort()
        for (_, ended), (started, _) in pairwise(slices):
            assert started >= ended - 1e-5


def test_the_batch_has_the_tasks_that_are_held(batch: Batch) -> None:
    known = set(batch.tasks)
    unstarted = batch.function(len, "a")
    single = batch.function(len, "b")
    members = [batch.function(len, text) for text in "cd"]
    program = batch.compile(members)
    single.start()
    program.run(timeout=60)
    single.wait(timeout=60)
    assert [task for task in batch.tasks if task not in known] == [single, *members]
    assert unstarted not in batch.tasks
    del program, members, single
    wait_until(lambda: not [task for task in batch.tasks if task not in known])


def test_a_task_whose_worker_is_killed_counts_both_attempts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="daskbatch")
    go = tmp_path / "go"
    with Batch(num_workers=1) as batch:
        task = batch.function(wait_for_file, go)
        program = batch.compile([task], name="losing")
        program.start()
        wait_until_running(task)
        first = task.info
        os.kill(first.pid, 9)
        wait_until(lambda: task.state == "running" and task.info.pid != first.pid)
        go.touch()
        program.wait(timeout=60)
        info = task.info
        assert (info.state, info.attempts) == ("done", 2)
        assert info.started > first.started
    text = "\n".join(f"{each.levelname} {each.getMessage()}" for each in caplog.records)
    assert "INFO program 'losing' started: 1 task" in text
    assert "INFO program 'losing' is over after" in text
    assert ": 1 done" in text
    assert f"WARNING worker {first.worker} was lost" in text
    assert "WARNING 1 task to run again after the loss: 'wait_for_file'" in text
    assert f"DEBUG task 'wait_for_file' ({task.uid}) running" in text
    assert f"DEBUG task 'wait_for_file' ({task.uid}) done after" in text


def test_retries_are_logged(batch: Batch, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, logger="daskbatch")
    batch.options(retries=1).function(fail_until, tmp_path / "f", 2).run(timeout=60)
    assert "task 'fail_until' was tried 2 times: done" in caplog.text


def test_progress_is_shown_while_the_program_waits(
    batch: Batch, capsys: pytest.CaptureFixture[str]
) -> None:
    program = batch.compile([batch.function(int, text) for text in ("1", "x")], name="shown")
    program.run(timeout=60, progress=True)
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("shown: 2 of 2 over, 0 running, 1 failed, 0 skipped, 0:0")
    task = batch.function(len, "four")
    task.start()
    task.wait(timeout=60, progress=True)
    with pytest.raises(TimeoutError):
        batch.function(time.sleep, 0.5).run(timeout=0.1, progress=True)
