"""What ends with a job: its calls, futures, threads and coroutines, however the job ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import pytest
from support.jobs import Promised, identity, spin, spin_in_coroutine
from support.waiting import wait_until

from daskbatch import Batch
from daskbatch.execute import ExecutionContext, Job, RmiTask, Scheduler, Task, Worker


@pytest.fixture
def ctx(shared_batch: Batch) -> Iterator[ExecutionContext]:
    """A context on the two workers of one thread that tests share."""
    with ExecutionContext(shared_batch) as context:
        yield context
    shared_batch.fence(timeout=60)


def no_job_threads() -> bool:
    return not [t for t in threading.enumerate() if t.name.startswith("daskbatch-job")]


def cancel_when(job: Job, condition: Any) -> threading.Thread:
    thread = threading.Thread(target=lambda: (wait_until(condition), job.cancel()))
    thread.start()
    return thread


# -- methods on workers -------------------------------------------------------------------


def test_task_cancelled_is_raised_in_a_coroutine_too(ctx: ExecutionContext, tmp_path: Path) -> None:
    job = Job(ctx, [RmiTask(ctx, 0, spin_in_coroutine, (tmp_path / "task",))])
    thread = cancel_when(job, (tmp_path / "task.begun").exists)
    with pytest.raises(CancelledError):
        list(ctx.execute(job))
    thread.join()
    wait_until((tmp_path / "task.cancelled").exists)


def test_a_call_that_an_execute_waits_for_ends_with_the_job(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    class Waiting(Task):
        def execute(self, scheduler: Scheduler, worker: Worker) -> None:
            self.set_executing(worker)
            try:
                scheduler.call(worker, spin, (tmp_path / "task",)).result()
            except CancelledError:
                ended.set()
                raise

    ended = threading.Event()
    job = Job(ctx, [Waiting(ctx, 0)])
    thread = cancel_when(job, (tmp_path / "task.begun").exists)
    with pytest.raises(CancelledError):
        list(ctx.execute(job))
    thread.join()
    assert ended.wait(60)
    wait_until((tmp_path / "task.cancelled").exists)
    wait_until(no_job_threads)


def test_a_call_after_the_end_of_the_job_is_refused(ctx: ExecutionContext) -> None:
    class Late(Task):
        def execute(self, scheduler: Scheduler, worker: Worker) -> None:
            self.set_executing(worker)
            begun.set()
            assert go.wait(60)
            try:
                scheduler.call(worker, identity, (1,)).result(60)
            except CancelledError as error:
                errors.append(error)

    begun, go, errors = threading.Event(), threading.Event(), list[CancelledError]()
    execution = ctx.execute(Job(ctx, [RmiTask(ctx, 0, identity, (0,)), Late(ctx, 1)]))
    next(execution)
    assert begun.wait(60)
    execution.close()
    go.set()
    wait_until(lambda: errors)
    wait_until(no_job_threads)


# -- futures of the user ------------------------------------------------------------------


def test_the_future_of_a_task_is_cancelled_with_the_job(ctx: ExecutionContext) -> None:
    task = Promised(ctx, 1)
    execution = ctx.execute(Job(ctx, [RmiTask(ctx, 0, identity, (0,)), task]))
    next(execution)
    wait_until(lambda: task.pending)
    execution.close()
    wait_until(task.future.cancelled)


def test_a_future_that_is_returned_after_the_end_is_cancelled(ctx: ExecutionContext) -> None:
    class Late(Task):
        future: Future[Any]

        def execute(self, scheduler: Scheduler, worker: Worker) -> Future[Any]:
            self.set_executing(worker)
            begun.set()
            assert go.wait(60)
            return self.future

    begun, go, task = threading.Event(), threading.Event(), Late(ctx, 1)
    task.future = Future()
    execution = ctx.execute(Job(ctx, [RmiTask(ctx, 0, identity, (0,)), task]))
    next(execution)
    assert begun.wait(60)
    execution.close()
    go.set()
    wait_until(task.future.cancelled)


class Odd:
    """An object with the methods of a future, which fail."""

    def __init__(self, refuses_callbacks: bool) -> None:
        self.refuses_callbacks = refuses_callbacks
        self.asked = threading.Event()

    def add_done_callback(self, function: Any) -> None:
        if self.refuses_callbacks:
            raise RuntimeError("no callbacks")

    def cancel(self) -> None:
        self.asked.set()
        raise RuntimeError("cannot be cancelled")


class Returns(Task):
    """A task that returns a given object as its future."""

    given: Any = None

    def execute(self, scheduler: Any, worker: Any) -> Any:
        return self.given


def test_a_future_that_refuses_callbacks_is_an_error_of_its_task(ctx: ExecutionContext) -> None:
    task = Returns(ctx, 0)
    task.given = Odd(refuses_callbacks=True)
    with pytest.raises(RuntimeError, match="no callbacks"):
        list(ctx.execute(Job(ctx, [task])))


def test_a_future_that_cannot_be_cancelled_does_not_hold_up_the_rest(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    odd = Returns(ctx, 1)
    odd.given = Odd(refuses_callbacks=False)
    tasks = [RmiTask(ctx, 0, identity, (0,)), odd, RmiTask(ctx, 2, spin, (tmp_path / "task",))]
    execution = ctx.execute(Job(ctx, tasks))
    next(execution)
    wait_until((tmp_path / "task.begun").exists)
    execution.close()
    assert odd.given.asked.wait(60)
    wait_until((tmp_path / "task.cancelled").exists)


# -- the consumer -------------------------------------------------------------------------


def test_leaving_the_loop_cancels_the_rest(ctx: ExecutionContext, tmp_path: Path) -> None:
    """'break', return and an exception in the body drop the generator of the loop."""
    tasks = [RmiTask(ctx, 0, identity, (0,)), RmiTask(ctx, 1, spin, (tmp_path / "task",))]
    job = Job(ctx, tasks)

    def consume() -> None:
        for task in ctx.execute(job):
            wait_until((tmp_path / "task.begun").exists)
            raise KeyError(task.id)

    with pytest.raises(KeyError) as kept:  # the traceback is kept, and with it the frame
        consume()
    wait_until(lambda: not job.running)
    wait_until((tmp_path / "task.cancelled").exists)
    assert tasks[1].cancelled
    assert kept.value.args == (0,)


INTERRUPTED_IN_THE_BODY = """
import os, signal, sys, threading, time
from pathlib import Path
from daskbatch.execute import ExecutionContext, Job, RmiTask

path = Path(sys.argv[1])

def spin():
    try:
        path.touch()
        while True:
            time.sleep(0.005)
    finally:
        path.with_suffix(".ended").touch()

def exists(name):
    while not path.with_suffix(name).exists():
        time.sleep(0.01)

def interrupt():
    exists(".body")
    exists("")
    os.kill(os.getpid(), signal.SIGINT)

with ExecutionContext() as ctx:
    tasks = [RmiTask(ctx, 0, abs, (-7,)), RmiTask(ctx, 1, spin)]
    job = Job(ctx, tasks)
    threading.Thread(target=interrupt).start()
    try:
        for task in ctx.execute(job):
            path.with_suffix(".body").touch()
            while True:
                time.sleep(0.01)
    except KeyboardInterrupt:
        print("interrupted after", task.result())
    exists(".ended")
    while job.running:
        time.sleep(0.01)
    print(tasks[1].cancelled)
    print([task.result() for task in ctx.execute(Job(ctx, [RmiTask(ctx, 0, abs, (-5,))]))])
"""


def test_ctrl_c_in_the_body_of_the_loop_ends_the_job_and_the_context_goes_on(
    tmp_path: Path,
) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", INTERRUPTED_IN_THE_BODY, tmp_path / "spin"],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["interrupted after 7", "True", "[5]"]
    assert run.stderr == ""
