"""Mistakes in jobs: each is an error that names the task and says what to do."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.jobs import after, identity, where
from support.waiting import wait_for_file, wait_until

from daskbatch import Batch, LifecycleError, SerializationError, SpecError
from daskbatch.execute import DependenciesFailed, ExecutionContext, Job, RmiTask, Task


@pytest.fixture
def ctx(shared_batch: Batch) -> Iterator[ExecutionContext]:
    """A context on the two workers of one thread that tests share."""
    with ExecutionContext(shared_batch) as context:
        yield context
    shared_batch.fence(timeout=60)


def results(ctx: ExecutionContext, tasks: list[Task], **how: Any) -> list[Any]:
    return [task.result() for task in ctx.execute(Job(ctx, tasks), **how)]


class Placed(RmiTask):
    """A task whose `locality` returns a given value, or calls it."""

    given: Any = ()

    def locality(self, workers: Any) -> Any:
        return self.given(workers) if callable(self.given) else self.given


def placed(ctx: ExecutionContext, given: Any) -> list[Task]:
    task = Placed(ctx, 0, where, name="placed")
    task.given = given
    return [task]


def test_a_job_consists_of_tasks(ctx: ExecutionContext) -> None:
    with pytest.raises(SpecError, match="5 is not a Task"):
        Job(ctx, [5])  # type: ignore[list-item]


def test_a_dependency_is_a_task_and_not_its_id(ctx: ExecutionContext) -> None:
    task = RmiTask(ctx, 0, identity, (0,), name="mine")
    task.dependencies.add(7)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="mine is connected with 7, which is not a task"):
        results(ctx, [task])


@pytest.mark.parametrize("wrong", [["0"], [("0", 1, 2)], [("0", "much")], "ab"])
def test_a_locality_is_pairs_of_a_worker_and_a_number(ctx: ExecutionContext, wrong: Any) -> None:
    with pytest.raises(SpecError, match=r"locality\(\) of placed must return pairs"):
        results(ctx, placed(ctx, wrong))


def test_a_locality_is_for_workers_and_not_for_their_names(ctx: ExecutionContext) -> None:
    with pytest.raises(SpecError, match=r"locality\(\) of placed has returned '0'"):
        results(ctx, placed(ctx, [("0", 1)]))


def test_an_exception_of_a_locality_ends_the_job_and_names_the_task(ctx: ExecutionContext) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        results(ctx, placed(ctx, lambda workers: 1 / 0))
    assert caught.value.__notes__ == ["raised by locality() of placed"]


def test_a_locality_may_be_a_mapping(ctx: ExecutionContext) -> None:
    second = ctx.workers[1]
    assert results(ctx, placed(ctx, {ctx.workers[0]: -1, second: 1})) == [second.name]


def test_workers_are_not_one_string(ctx: ExecutionContext) -> None:
    with pytest.raises(SpecError, match="workers= must be a sequence of workers, not 'abc'"):
        results(ctx, [RmiTask(ctx, 0, where)], workers="abc")
    with pytest.raises(SpecError, match="workers= must be a sequence of workers, not 5"):
        results(ctx, [RmiTask(ctx, 0, where)], workers=5)
    with pytest.raises(LifecycleError, match="none of the workers that the job may use"):
        results(ctx, [RmiTask(ctx, 0, where)], workers=["abc"])


def test_the_context_that_executes_a_job_runs_its_tasks(ctx: ExecutionContext) -> None:
    """Also tasks that were made for no context, or for another one."""
    other = ExecutionContext(ctx.batch)
    other.stop()
    tasks: list[Task] = [RmiTask(None, 0, identity, (0,)), RmiTask(other, 1, identity, (1,))]
    assert results(ctx, tasks) == [0, 1]


def test_a_task_without_an_execute_is_named(ctx: ExecutionContext) -> None:
    with pytest.raises(NotImplementedError, match="empty cannot be executed: its class Task"):
        results(ctx, [Task(ctx, 0, name="empty")])


def test_what_cannot_be_sent_is_an_error_of_its_task_alone(ctx: ExecutionContext) -> None:
    bad = RmiTask(ctx, 0, identity, ((each for each in ()),), name="unsendable")
    good = RmiTask(ctx, 1, identity, (1,))
    after([bad], [good])
    execution = ctx.execute(Job(ctx, [good, bad]))
    assert next(execution).result() == 1
    with pytest.raises(SerializationError, match="unsendable"):
        next(execution)
    assert results(ctx, [RmiTask(ctx, 0, identity, (2,))]) == [2]


def raise_stop_iteration() -> None:
    raise StopIteration("mine")


def test_stop_iteration_of_a_task_does_not_end_the_loop_in_silence(ctx: ExecutionContext) -> None:
    task = RmiTask(ctx, 0, raise_stop_iteration)
    with pytest.raises(RuntimeError, match="raised StopIteration") as caught:
        list(ctx.execute(Job(ctx, [task])))
    assert caught.value.__cause__ is task.exception()
    assert isinstance(task.exception(), StopIteration)


def test_a_task_is_executed_by_one_job_at_a_time(ctx: ExecutionContext, tmp_path: Path) -> None:
    task = RmiTask(ctx, 0, wait_for_file, (tmp_path / "go",), name="shared")
    first = ctx.execute(Job(ctx, [RmiTask(ctx, 1, identity, (1,)), task]))
    next_one = threading.Thread(target=lambda: found.extend(first))
    found: list[Task] = []
    next_one.start()
    wait_until(lambda: task.pending)
    with pytest.raises(LifecycleError, match="shared is being executed by another job"):
        list(ctx.execute(Job(ctx, [task])))
    assert task.pending
    (tmp_path / "go").touch()
    next_one.join()
    assert task.result() == "go"
    assert list(ctx.execute(Job(ctx, [task]))) == [task]


def test_arguments_are_not_one_string_and_an_id_is_hashable(ctx: ExecutionContext) -> None:
    with pytest.raises(SpecError, match=r"pass \('abc',\)"):
        RmiTask(ctx, 0, len, "abc")
    with pytest.raises(SpecError, match="must be hashable"):
        RmiTask(ctx, [0], len, ("abc",))  # type: ignore[arg-type]


@pytest.mark.parametrize("failures", [["a"], {None: "ab"}, {"worker": 5}])
def test_dependencies_failed_takes_a_mapping_to_sequences(failures: Any) -> None:
    with pytest.raises(SpecError, match="failures must map the name of a worker"):
        DependenciesFailed(failures)


def test_the_timeouts_of_await_workers_are_numbers(ctx: ExecutionContext) -> None:
    with pytest.raises(SpecError, match="must be a number of seconds"):
        ctx.await_workers(2, connect_timeout="soon")  # type: ignore[arg-type]
    assert ctx.await_workers(2, float("inf"), float("inf")) == 2


def test_a_copy_of_a_task_that_another_process_executes_does_not_wait_for_ever(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    task = RmiTask(ctx, 0, wait_for_file, (tmp_path / "go",), name="original")
    execution = ctx.execute(Job(ctx, [task]))
    thread = threading.Thread(target=lambda: list(execution))
    thread.start()
    wait_until(lambda: task.pending)
    copy = ctx.batch.function(result_of, task)
    copy.run(timeout=60)
    with pytest.raises(LifecycleError, match="copy of original: another process executes it"):
        copy.get()
    (tmp_path / "go").touch()
    thread.join()


def result_of(task: Task) -> Any:
    return task.result()


FORKED = """
import os, time
from daskbatch.execute import ExecutionContext, Job, RmiTask

with ExecutionContext() as ctx:
    execution = ctx.execute(Job(ctx, [RmiTask(ctx, n, time.sleep, (0.1,)) for n in range(6)]))
    next(execution)
    child = os.fork()
    if not child:
        try:
            next(execution)
        except Exception as error:
            print(type(error).__name__, error, flush=True)
        execution.close()
        del execution
        os._exit(0)
    os.waitpid(child, 0)
    print(len(list(execution)))
"""


def test_a_forked_child_leaves_the_job_of_its_parent_alone() -> None:
    run = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, timeout=90)
    assert run.returncode == 0, run.stderr
    first, second = run.stdout.splitlines()
    assert first.startswith("LifecycleError job 1 is executed by the process that this one was")
    assert second == "5"
