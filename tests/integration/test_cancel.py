"""Tasks can be cancelled before they begin and while they run; `cancel` returns the truth."""

from __future__ import annotations

import contextlib
import random
import threading
import time
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from support.programs import Step, act, make_root, make_tasks, random_program, result_of, snapshot
from support.programs import last_writers as writers_that_count
from support.waiting import touch, touch_and_spin, wait_for_file, wait_until_running

from daskbatch import Batch, DependencyFailed, LifecycleError, TaskCancelled


def occupy(batch: Batch, tmp_path: Path) -> list[object]:
    """Keep both workers of the shared Batch busy until `tmp_path / "go"` is there."""
    busy = [batch.options(priority=1).function(wait_for_file, tmp_path / "go") for _ in range(2)]
    for task in busy:
        task.start()
    wait_until_running(*busy)
    return list(busy)


def test_not_started(batch: Batch) -> None:
    task = batch.function(len, "abc", name="early")
    assert task.cancel() is True
    assert task.state == "cancelled"
    with pytest.raises(TaskCancelled, match="task 'early' was cancelled"):
        task.get()
    with pytest.raises(LifecycleError, match="'early' is cancelled already"):
        task.start()


def test_waiting_for_a_slot(batch: Batch, tmp_path: Path) -> None:
    occupy(batch, tmp_path)
    task = batch.function(touch, tmp_path / "ran")
    task.start()
    assert task.cancel() is True
    assert task.state == "cancelled"
    (tmp_path / "go").touch()
    batch.fence(timeout=60)
    assert not (tmp_path / "ran").exists()
    assert task.cancel() is True, "it still will not complete"


def test_done(batch: Batch) -> None:
    task = batch.function(len, "abc")
    task.run(timeout=60)
    assert task.cancel() is False
    assert task.get() == 3


def test_a_function_that_runs_is_stopped(batch: Batch, tmp_path: Path) -> None:
    written = batch.write(tmp_path / "data")
    task = batch.function(touch_and_spin, tmp_path / "began", writes=[written])
    reader = batch.function(len, "", reads=[batch.read(tmp_path / "data")])
    after = batch.function(touch, tmp_path / "after", writes=[written])
    batch.compile([task, reader, after]).start()
    wait_until_running(task)
    assert task.cancel() is True
    after.wait(timeout=60)
    assert task.state == "cancelled"
    assert after.state == "done"
    with pytest.raises(DependencyFailed, match="because 'touch_and_spin' was cancelled"):
        reader.get(timeout=60)


def test_an_executable_that_runs_is_stopped_with_its_children(batch: Batch, tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! > {tmp_path}/pid; touch {tmp_path}/go; wait"
    task = batch.process("sh", "-c", script)
    task.start()
    wait_for_file(tmp_path / "go")
    pid = int((tmp_path / "pid").read_text())
    assert task.cancel() is True
    task.wait(timeout=60)
    assert task.state == "cancelled"
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def swallow(path: Path) -> str:
    for number in range(3):
        try:
            (path / str(number)).touch()
            while True:
                pass
        except BaseException:
            continue
    return "done nevertheless"


def test_a_function_that_swallows_what_stops_it_is_stopped_again(
    batch: Batch, tmp_path: Path
) -> None:
    task = batch.function(swallow, tmp_path)
    task.start()
    wait_for_file(tmp_path / "0")
    assert task.cancel() is True
    task.wait(timeout=60)
    assert (task.state, task.cancel()) == ("cancelled", True)
    with pytest.raises(TaskCancelled):
        task.get()


def test_a_cancelled_task_is_not_tried_again(batch: Batch, tmp_path: Path) -> None:
    task = batch.options(retries=5).function(touch_and_spin, tmp_path / "began")
    task.start()
    wait_for_file(tmp_path / "began")
    (tmp_path / "began").unlink()
    assert task.cancel() is True
    task.wait(timeout=60)
    assert not (tmp_path / "began").exists()


def test_a_member_and_those_that_hang_on_it(batch: Batch, tmp_path: Path) -> None:
    occupy(batch, tmp_path)
    written = batch.write(tmp_path, "data")
    first = batch.function(len, "abc", name="first", writes=[written])
    by_argument = batch.function(str, first)
    by_reading = batch.function(len, "", reads=[batch.read(tmp_path, "data")])
    after = batch.function(touch, tmp_path / "after", writes=[written])
    program = batch.compile([first, by_argument, by_reading, after])
    program.start()
    assert first.cancel() is True
    (tmp_path / "go").touch()
    program.wait(timeout=60)
    for task in (by_argument, by_reading):
        with pytest.raises(DependencyFailed, match=r"because 'first' \('abc'\) was cancelled") as e:
            task.get()
        assert isinstance(e.value.__cause__, TaskCancelled)
    assert after.state == "done"
    assert program.state == "cancelled"


def test_a_member_before_the_start(batch: Batch) -> None:
    first = batch.function(len, "abc")
    second, third = batch.function(str, first), batch.function(len, "x")
    program = batch.compile([first, second, third])
    assert first.cancel() is True
    program.run(timeout=60)
    assert [task.state for task in program.tasks] == ["cancelled", "skipped", "done"]


def test_a_compiled_task(batch: Batch, tmp_path: Path) -> None:
    occupy(batch, tmp_path)
    program = batch.compile([batch.function(touch, tmp_path / f"{n}") for n in range(100)])
    program.start()
    assert program.cancel() is True
    assert program.state == "cancelled"
    (tmp_path / "go").touch()
    program.wait(timeout=60)
    batch.fence(timeout=60)
    assert not (tmp_path / "0").exists()


def test_the_batch_goes_on_after_many_cancellations(batch: Batch) -> None:
    for _ in range(20):
        program = batch.compile([batch.function(len, "abc") for _ in range(50)])
        program.start()
        program.cancel()
        program.wait(timeout=60)
        assert {task.state for task in program.tasks} <= {"done", "cancelled"}
    task = batch.function(len, "abc")
    task.run(timeout=60)
    assert task.get() == 3


@pytest.mark.parametrize("budget", ["0ms", "2ms", "200ms"])
def test_whatever_is_cancelled_the_rest_ends_as_in_a_sequential_run(
    budget: str, tmp_path: Path
) -> None:
    """Two programs at a time, members cancelled at random: none runs that was cancelled,

    none is skipped without cause, and what ran ends as a sequential run of just that."""
    errors: list[BaseException] = []

    def check_some(seeds: range) -> None:
        try:
            for seed in seeds:
                check_cancellations(batch, seed, tmp_path / str(seed))
        except BaseException as error:
            errors.append(error)

    with dask.config.set({"daskbatch.block-budget": budget}), Batch(num_workers=2) as batch:
        threads = [
            threading.Thread(target=check_some, args=(range(first, 10, 2),)) for first in (0, 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors, errors


def check_cancellations(batch: Batch, seed: int, path: Path) -> None:
    rng = random.Random(seed)
    steps = random_program(rng, rng.choice([20, 60, 120]), seconds=rng.choice([0, 0.002, 0.02]))
    root = make_root(path / "found")
    (path / "began").mkdir()
    tasks = make_tasks(batch, root, steps, act_whole)
    program = batch.compile(tasks)
    said = {}
    for number in rng.sample(range(len(steps)), rng.choice([0, 1])):
        said[number] = tasks[number].cancel()
    program.start()
    for _ in range(rng.choice([0, 3, 20])):
        threading.Event().wait(rng.random() * 0.01)
        number = rng.randrange(len(steps))
        said[number] = tasks[number].cancel()
    program.wait(timeout=60)
    results = [result_of(task) for task in tasks]
    for number, cancelled in said.items():
        assert cancelled == (tasks[number].state == "cancelled"), f"seed {seed}: {number}"
    begun = {int(each.name) for each in (path / "began").iterdir()}
    assert_as_sequential(steps, results, begun, make_root(path / "expected"), f"seed {seed}")
    assert snapshot(path / "expected") == snapshot(root), f"seed {seed}"


def act_whole(root: str, step: Step, *values: Any) -> str:
    """Execute a step to its end once it has begun, so that its result is known."""
    outcome: list[Any] = []

    def work() -> None:
        try:
            outcome.append(act(root, step, *values))
        except ValueError as error:
            outcome.append(error)

    thread = threading.Thread(target=work)
    while not outcome:
        try:
            if thread.ident is None:
                Path(root).with_name("began").joinpath(str(step.number)).touch()
                thread.start()
            # Not join: CPython's own locks are not made to be interrupted just anywhere.
            time.sleep(0.001)
        except BaseException:
            continue
    if isinstance(outcome[0], ValueError):
        raise outcome[0]
    return str(outcome[0])


def assert_as_sequential(
    steps: list[Step], results: list[str], begun: set[int], root: Path, what: str
) -> None:
    values: dict[int, str] = {}
    for step, result in zip(steps, results, strict=True):
        needed = {*step.arguments, *writers_that_count(steps, step)}
        if result == "cancelled":
            if step.number in begun:
                with contextlib.suppress(ValueError):
                    act(str(root), step, *(values[number] for number in step.arguments))
            continue
        if result == "skipped":
            assert not needed <= set(values), f"{what}: {step} was skipped without cause"
            continue
        assert needed <= set(values), f"{what}: {step} ran without what it needs"
        try:
            expected = values[step.number] = act(
                str(root), step, *(values[number] for number in step.arguments)
            )
        except ValueError as error:
            expected = f"failed: {error}"
        assert result == expected, f"{what}: {step}"
