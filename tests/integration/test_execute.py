"""Jobs on real clusters: the cases of the tests of `bndl.execute`, and the defects it had."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future
from pathlib import Path
from typing import Any

import dask
import psutil
import pytest
from distributed import LocalCluster
from support.jobs import (
    Barrier,
    Prefers,
    Promised,
    after,
    always_miss,
    count_running,
    drop_nested,
    fail,
    fail_first,
    fail_on,
    fail_once,
    fail_times,
    forget_running,
    identity,
    kill_always,
    make_on_second,
    miss_half,
    miss_itself_once,
    miss_once,
    nested,
    note_and_return,
    pair,
    read_or_miss,
    spin,
    three_stages,
    wait_for_if,
    wait_for_parties,
    where,
    where_after,
)
from support.scaling import scale
from support.waiting import wait_for_file, wait_until

from daskbatch import Batch, LifecycleError, SpecError, WorkerLost
from daskbatch.execute import (
    DependenciesFailed,
    ExecutionContext,
    FailedDependency,
    Job,
    RmiTask,
    Scheduler,
    Task,
    Worker,
)


@pytest.fixture
def ctx(shared_batch: Batch) -> Iterator[ExecutionContext]:
    """A context on the two workers of one thread that tests share."""
    with ExecutionContext(shared_batch) as context:
        yield context
    shared_batch.fence(timeout=60)


@pytest.fixture(scope="module")
def wide() -> Iterator[ExecutionContext]:
    """A context on two workers of three threads."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=3, dashboard_address=":0") as cluster,
        ExecutionContext(cluster) as context,
    ):
        yield context


def results(ctx: ExecutionContext, tasks: list[Task], **how: Any) -> list[Any]:
    return [task.result() for task in ctx.execute(Job(ctx, tasks), **how)]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def in_thread(function: Any) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


# -- the tests of the original ------------------------------------------------------------


def test_assert_raises(ctx: ExecutionContext) -> None:
    with pytest.raises(ValueError, match="mine") as caught:
        results(ctx, [RmiTask(ctx, n, fail, ("mine",)) for n in range(10)])
    assert "in fail" in str(caught.value.__cause__)  # the traceback of the worker


def test_retry(ctx: ExecutionContext) -> None:
    first, second = (worker.name for worker in ctx.workers)
    tasks = [RmiTask(ctx, n, fail_on, ([],)) for n in range(10)]
    assert len(results(ctx, list(tasks))) == 10
    tasks = [RmiTask(ctx, n, fail_on, ([first],)) for n in range(10)]
    with pytest.raises(ValueError, match="not on"):
        results(ctx, list(tasks), attempts=1)
    tasks = [RmiTask(ctx, n, fail_on, ([first],)) for n in range(10)]
    assert results(ctx, list(tasks), attempts=2) == [second] * 10


def test_the_first_failure_cancels_the_others(wide: ExecutionContext, tmp_path: Path) -> None:
    tasks = [RmiTask(wide, n, fail_first, (tmp_path, n, 5)) for n in range(1, 6)]
    with pytest.raises(ValueError, match="1"):
        results(wide, list(tasks), concurrency=3)
    wait_until(lambda: len(lines(tmp_path / "cancelled")) == 4)
    assert sorted(lines(tmp_path / "executed")) == ["1", "2", "3", "4", "5"]
    assert sorted(lines(tmp_path / "cancelled")) == ["2", "3", "4", "5"]
    assert lines(tmp_path / "failed") == ["1"]


def test_require_workers(ctx: ExecutionContext) -> None:
    for worker in ctx.workers:
        for _ in range(2):
            tasks: list[Task] = [RmiTask(ctx, n, where) for n in range(10)]
            assert results(ctx, tasks, workers=[worker]) == [worker.name] * 10


def test_sunny(ctx: ExecutionContext) -> None:
    job = three_stages(ctx, pair)
    assert [task.result() for task in ctx.execute(job) if task.group != "barrier"] == [
        (stage, number) for stage in range(3) for number in range(5)
    ]


def test_transient_task_failure(ctx: ExecutionContext, tmp_path: Path) -> None:
    job = three_stages(ctx, fail_once, 5, tmp_path / "failed")
    found = list(ctx.execute(job, attempts=2))
    assert found == job.tasks
    assert [task.attempts for task in found] == [
        2 if task.id == (1, 2) else 1 for task in job.tasks
    ]


def test_dependencies_failed_over_half_of_the_group_before(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    job = three_stages(ctx, miss_half, 5, tmp_path)
    found = list(ctx.execute(job))
    assert found == job.tasks
    again = {task.id for task in found if task.attempts == 2 and task.group != "barrier"}
    assert again >= {(0, 0), (0, 2), (0, 4), (1, 0), (1, 2), (1, 4), (1, 1), (2, 1)}


def test_already_succeeded(ctx: ExecutionContext) -> None:
    job = three_stages(ctx, pair)
    for task in (*job.group("a"), *job.group("b")):
        task.mark_done(task.id)
    assert [task.id for task in ctx.execute(job)] == [task.id for task in job.tasks]
    assert {task.attempts for task in (*job.group("a"), *job.group("b"))} == {0}
    assert {task.attempts for task in job.group("c")} == {1}


def test_cancel_by_throwing_into_the_generator(ctx: ExecutionContext, tmp_path: Path) -> None:
    tasks: list[Task] = [
        RmiTask(ctx, 0, identity, (0,)),
        RmiTask(ctx, 1, spin, (tmp_path / "task",)),
    ]
    execution = ctx.execute(Job(ctx, tasks))
    next(execution)
    wait_until((tmp_path / "task.begun").exists)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        execution.throw(KeyboardInterrupt)
    assert time.monotonic() - began < 5
    wait_until((tmp_path / "task.cancelled").exists)
    assert tasks[1].cancelled
    assert list(execution) == []


# -- the seven defects --------------------------------------------------------------------


@pytest.mark.parametrize("concurrency", [1, 2, 3, 5])
def test_1_concurrency_is_honoured_whatever_the_threads(
    wide: ExecutionContext, concurrency: int
) -> None:
    worker = wide.workers[0]
    results(wide, [RmiTask(wide, 0, forget_running)], workers=[worker])
    # No fewer, either: each waits for the others, and would fail if one was missing.
    counted = 0.1, concurrency, f"threads {concurrency}"
    tasks: list[Task] = [RmiTask(wide, n, count_running, counted) for n in range(4 * concurrency)]
    found = results(wide, tasks, workers=[worker], concurrency=concurrency)
    assert max(found) == concurrency


def test_1_concurrency_holds_after_a_dependency_stage(wide: ExecutionContext) -> None:
    worker = wide.workers[1]
    results(wide, [RmiTask(wide, 0, forget_running)], workers=[worker])
    counted = 0.02, 4, "stages"
    first = [RmiTask(wide, n, count_running, counted) for n in range(8)]
    second = [RmiTask(wide, 10 + n, count_running, counted) for n in range(8)]
    barrier = Barrier(wide, 9)
    after([barrier], first)
    after(second, [barrier])
    found = results(wide, [*first, barrier, *second], workers=[worker], concurrency=4)
    assert max(each for each in found if isinstance(each, int)) == 4


def test_2_the_users_exception_surfaces_when_attempts_run_out(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    task = RmiTask(ctx, 0, fail_times, (tmp_path / "where", 99))
    with pytest.raises(ValueError, match="attempt 3"):
        results(ctx, [task], attempts=3)
    places = lines(tmp_path / "where")
    assert len(places) == 3
    assert places[0] != places[1] != places[2]  # each time elsewhere


def test_3_a_retry_goes_to_the_same_worker_where_there_is_no_other(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    worker = ctx.workers[0]
    task = RmiTask(ctx, 0, fail_times, (tmp_path / "where", 2))
    assert results(ctx, [task], workers=[worker], attempts=3) == [worker.name]


def test_3_more_attempts_than_workers(ctx: ExecutionContext, tmp_path: Path) -> None:
    task = RmiTask(ctx, 0, fail_times, (tmp_path / "where", 5))
    results(ctx, [task], attempts=6)
    assert task.attempts == 6


def test_4_a_task_that_is_forbidden_everywhere_fails_at_once(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    first = RmiTask(ctx, 0, spin, (tmp_path / "first",))
    forbidden = Prefers(ctx, 1, where, degrees={"*": -1}, name="nowhere")
    after([forbidden], [first])
    with pytest.raises(SpecError, match="nowhere is forbidden on every worker"):
        results(ctx, [first, forbidden])
    assert not (tmp_path / "first.begun").exists()
    assert isinstance(forbidden.exception(), SpecError)


def test_5_re_execution_is_bounded(ctx: ExecutionContext, tmp_path: Path) -> None:
    make = RmiTask(ctx, 0, identity, (0,))
    read = RmiTask(ctx, 1, always_miss, (tmp_path / "looked", 0))
    after([read], [make])
    with pytest.raises(DependenciesFailed):
        results(ctx, [make, read])
    assert len(lines(tmp_path / "looked")) == 17
    assert make.attempts == 17


def test_6_job_cancel_ends_the_consumer(ctx: ExecutionContext, tmp_path: Path) -> None:
    tasks = [RmiTask(ctx, n, spin, (tmp_path / str(n),)) for n in range(4)]
    job = Job(ctx, tasks)
    thread = in_thread(
        lambda: (
            wait_until((tmp_path / "0.begun").exists),
            wait_until((tmp_path / "1.begun").exists),
            job.cancel(),
        )
    )
    with pytest.raises(CancelledError):
        list(ctx.execute(job))
    thread.join()
    assert job.cancelled
    assert all(task.cancelled for task in tasks)
    wait_until(lambda: all((tmp_path / f"{n}.cancelled").exists() for n in (0, 1)))
    assert not (tmp_path / "2.begun").exists()
    assert results(ctx, [RmiTask(ctx, 0, identity, ("goes on",))]) == ["goes on"]


def test_7_workers_that_join_are_used_by_a_running_job(tmp_path: Path) -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        ExecutionContext(cluster) as ctx,
    ):
        (first,) = ctx.workers
        blocked = RmiTask(ctx, 0, wait_for_file, (tmp_path / "go",))
        rest = [Prefers(ctx, n, where, degrees={}) for n in range(1, 4)]
        execution = ctx.execute(Job(ctx, [blocked, *rest]), order_results=False)
        thread = in_thread(lambda: (wait_until(lambda: blocked.pending), scale(cluster, 2)))
        found = [next(execution).result() for _ in range(3)]
        thread.join()
        (second,) = {worker.name for worker in ctx.workers} - {first.name}
        assert found == [second] * 3
        assert [second] in rest[0].asked
        (tmp_path / "go").touch()
        assert [task.result() for task in execution] == ["go"]


# -- order and place ----------------------------------------------------------------------


def test_a_smaller_priority_runs_first(ctx: ExecutionContext, tmp_path: Path) -> None:
    path, worker = tmp_path / "order", ctx.workers[0]
    tasks: list[Task] = [RmiTask(ctx, n, note_and_return, (path, n), priority=-n) for n in range(6)]
    results(ctx, tasks, workers=[worker])
    assert lines(path) == ["5", "4", "3", "2", "1", "0"]


def test_the_id_is_the_priority_by_default(ctx: ExecutionContext, tmp_path: Path) -> None:
    path, worker = tmp_path / "order", ctx.workers[0]
    tasks: list[Task] = [RmiTask(ctx, n, note_and_return, (path, n)) for n in (3, 1, 2)]
    assert results(ctx, tasks, workers=[worker]) == [3, 1, 2]
    assert lines(path) == ["1", "2", "3"]


def test_a_preference_never_keeps_a_worker_idle(ctx: ExecutionContext) -> None:
    first, second = (worker.name for worker in ctx.workers)
    tasks: list[Task] = [Prefers(ctx, n, where_after, (0.2,), degrees={first: 1}) for n in range(6)]
    assert sorted(results(ctx, tasks)) == [first] * 3 + [second] * 3


def test_tasks_behind_a_long_one_are_taken_by_others(ctx: ExecutionContext, tmp_path: Path) -> None:
    """Many short ones are given to a worker at a time; none waits there for a long one."""
    results(ctx, [RmiTask(ctx, n, wait_for_if, (None,)) for n in range(20)])  # they are short
    tasks: list[Task] = [
        RmiTask(ctx, n, wait_for_if, (tmp_path / "go" if n == 0 else None,)) for n in range(200)
    ]
    execution = ctx.execute(Job(ctx, tasks), order_results=False)
    for _ in range(199):
        next(execution)
    assert tasks[0].pending
    (tmp_path / "go").touch()
    assert next(execution) is tasks[0]


def test_more_tasks_than_threads_do_not_hold_up_other_tasks(wide: ExecutionContext) -> None:
    other = wide.batch.function(identity, 5)
    name = f"others-{id(other)}"
    tasks: list[Task] = [RmiTask(wide, n, wait_for_parties, (name, 5)) for n in range(5)]
    assert len(results(wide, tasks, workers=wide.workers[:1], concurrency=5)) == 5
    other.run(timeout=30)
    assert other.get() == 5


# -- graphs -------------------------------------------------------------------------------


def test_a_circle_is_an_error_that_names_it(ctx: ExecutionContext) -> None:
    tasks = [RmiTask(ctx, n, identity, (n,), name=f"t{n}") for n in range(3)]
    for n in range(3):
        tasks[n].dependencies.add(tasks[n - 1])
    with pytest.raises(SpecError, match="t. -> t. -> t. -> t."):
        results(ctx, list(tasks))


def test_what_is_wrong_with_a_job_is_said(ctx: ExecutionContext) -> None:
    one, other = RmiTask(ctx, 1, identity, (1,)), RmiTask(ctx, "a", identity, (1,))
    with pytest.raises(SpecError, match="cannot be compared"):
        results(ctx, [one, other])
    with pytest.raises(SpecError, match="two tasks of the job have the id 1"):
        results(ctx, [one, RmiTask(ctx, 1, identity, (1,))])
    one.dependencies.add(other)
    with pytest.raises(SpecError, match="not a task of this job"):
        results(ctx, [one])
    for wrong in ({"concurrency": 0}, {"attempts": 0}, {"concurrency": 1.5}):
        with pytest.raises(SpecError):
            ctx.execute(Job(ctx, [one]), **wrong)
    with pytest.raises(SpecError, match="executes a Job"):
        ctx.execute([one])  # type: ignore[arg-type]


def test_an_empty_job_is_over_at_once(ctx: ExecutionContext) -> None:
    assert list(ctx.execute(Job(ctx, []))) == []
    assert ctx.jobs == []


def test_a_job_can_be_executed_again_and_its_tasks_are_done(ctx: ExecutionContext) -> None:
    job = Job(ctx, [RmiTask(ctx, n, identity, (n,)) for n in range(3)])
    assert list(ctx.execute(job)) == list(ctx.execute(job)) == job.tasks
    assert [task.attempts for task in job.tasks] == [1, 1, 1]
    assert ctx.jobs == [job]


# -- tasks of one's own -------------------------------------------------------------------


def test_an_execute_that_raises_is_an_attempt(ctx: ExecutionContext) -> None:
    class Flaky(Task):
        def execute(self, scheduler: Scheduler, worker: Worker) -> None:
            self.set_executing(worker)
            if self.attempts < 3:
                raise ValueError(f"attempt {self.attempts}")
            self.mark_done(self.attempts)

    assert results(ctx, [Flaky(ctx, 0)], attempts=3) == [3]
    with pytest.raises(ValueError, match="attempt 2"):
        results(ctx, [Flaky(ctx, 0)], attempts=2)


def test_a_task_may_be_marked_done_by_anybody_later(ctx: ExecutionContext) -> None:
    class Later(Task):
        def execute(self, scheduler: Scheduler, worker: Worker) -> None:
            threading.Timer(0.05, self.mark_done, ("later",)).start()

    task, follower = Later(ctx, 0), RmiTask(ctx, 1, identity, (1,))
    after([follower], [task])
    assert results(ctx, [task, follower]) == ["later", 1]
    assert task.attempts == 1


def test_a_task_that_is_running_can_be_marked_done(ctx: ExecutionContext, tmp_path: Path) -> None:
    task = RmiTask(ctx, 0, spin, (tmp_path / "task",))
    thread = in_thread(
        lambda: (wait_until((tmp_path / "task.begun").exists), task.mark_done("enough"))
    )
    assert results(ctx, [task]) == ["enough"]
    thread.join()
    wait_until((tmp_path / "task.cancelled").exists)


def test_what_is_no_future_is_an_error_of_the_task(ctx: ExecutionContext) -> None:
    class Wrong(Task):
        def execute(self, scheduler: Scheduler, worker: Worker) -> Any:
            return 5

    with pytest.raises(SpecError, match="must return a future"):
        results(ctx, [Wrong(ctx, 0)])


def test_a_subclass_of_an_rmi_task_may_do_more_around_it(ctx: ExecutionContext) -> None:
    class Noted(RmiTask):
        def execute(self, scheduler: Scheduler, worker: Worker) -> Future[Any]:
            noted.append(worker.name)
            return super().execute(scheduler, worker)

    noted: list[str] = []
    tasks: list[Task] = [Noted(ctx, n, where) for n in range(4)]
    assert results(ctx, tasks, order_results=False) == [task.executed_on[0] for task in tasks] or (
        sorted(noted) == sorted(task.executed_on[0] for task in tasks)
    )


def test_the_exception_of_a_future_is_that_of_its_task(ctx: ExecutionContext) -> None:
    task = Promised(ctx, 0)
    task.future.set_exception(KeyError("theirs"))
    with pytest.raises(KeyError, match="theirs"):
        results(ctx, [task])
    assert isinstance(task.exception(), KeyError)


def test_marking_a_done_task_as_failed_in_earnest_fails_the_job(ctx: ExecutionContext) -> None:
    first, promised = RmiTask(ctx, 0, identity, (0,)), Promised(ctx, 1)
    after([promised], [first])
    execution = ctx.execute(Job(ctx, [first, promised]))
    next(execution)
    first.mark_failed(ValueError("after all"))
    with pytest.raises(ValueError, match="after all"):
        next(execution)


# -- dependencies that failed -------------------------------------------------------------


def test_a_stale_report_is_no_reason_to_execute_again(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    """A worker is named that has not executed the task last."""
    path = tmp_path / "output"
    path.write_text("there")
    make = RmiTask(ctx, 0, identity, (0,))
    read = RmiTask(ctx, 1, miss_once, (tmp_path / "once", "somebody else", [0]))
    after([read], [make])
    results(ctx, [make, read])
    assert (make.attempts, read.attempts) == (1, 2)


def test_many_that_miss_the_same_have_it_made_once(ctx: ExecutionContext, tmp_path: Path) -> None:
    path, first = tmp_path / "output", tmp_path / "first"
    make = RmiTask(ctx, 0, make_on_second, (path, first))
    readers = [RmiTask(ctx, n, read_or_miss, (path, [0])) for n in range(1, 21)]
    after(readers, [make])
    assert results(ctx, [make, *readers])[1:] == ["made"] * 20
    assert make.attempts == 2


def test_a_task_may_say_that_its_own_result_is_missing(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    task = RmiTask(ctx, 0, miss_itself_once, (tmp_path / "once",))
    assert results(ctx, [task], attempts=1) == ["found"]
    assert task.attempts == 2


def test_all_workers_named_as_lost_are_used_all_the_same(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    (worker, _) = ctx.workers
    path = tmp_path / "output"
    make = RmiTask(ctx, 0, make_on_second, (path, tmp_path / "first"))
    read = RmiTask(ctx, 1, read_or_miss, (path, [0], worker.name))
    after([read], [make])
    assert results(ctx, [make, read], workers=[worker])[1] == "made"


# -- listeners ----------------------------------------------------------------------------


def test_listeners_hear_of_each_start_and_stop_without_a_lock(ctx: ExecutionContext) -> None:
    seen: list[tuple[str, Any]] = []
    other = RmiTask(ctx, 1, identity, (1,))

    def started(it: Any) -> None:
        in_thread(lambda: other.started).join()  # would hang if a lock were held
        seen.append(("started", it.name))

    task = RmiTask(ctx, 0, identity, (0,), name="t")
    job = Job(ctx, [task, other], name="j")
    for each in (task, job):
        each.add_listener(started, lambda it: seen.append(("stopped", it.name)))
    list(ctx.execute(job))
    wait_until(lambda: len(seen) == 4)
    assert seen == [("started", "j"), ("started", "t"), ("stopped", "t"), ("stopped", "j")]
    assert task.started_on <= task.stopped_on
    assert task.duration == task.stopped_on - task.started_on


def test_a_listener_that_raises_changes_nothing(
    ctx: ExecutionContext, caplog: pytest.LogCaptureFixture
) -> None:
    task = RmiTask(ctx, 0, identity, (0,))
    task.add_listener(lambda _: 1 / 0)
    assert results(ctx, [task]) == [0]
    assert "ZeroDivisionError" in caplog.text


# -- the end ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "drop"])
def test_leaving_a_generator_ends_everything_of_the_job(
    ctx: ExecutionContext, tmp_path: Path, how: str
) -> None:
    tasks: list[Task] = [
        RmiTask(ctx, 0, identity, (0,)),
        *(RmiTask(ctx, n, spin, (tmp_path / str(n),)) for n in range(1, 5)),
    ]
    job = Job(ctx, tasks)
    execution = ctx.execute(job)
    next(execution)
    wait_until((tmp_path / "1.begun").exists)
    if how == "close":
        execution.close()
        assert not job.running
        assert list(execution) == []
    else:
        del execution
    wait_until(lambda: not job.running)
    wait_until((tmp_path / "1.cancelled").exists)
    assert tasks[1].cancelled
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("daskbatch-job")])
    assert results(ctx, [RmiTask(ctx, 0, identity, ("goes on",))]) == ["goes on"]


def test_a_generator_that_was_never_begun_has_done_nothing(ctx: ExecutionContext) -> None:
    task = RmiTask(ctx, 0, identity, (0,))
    ctx.execute(Job(ctx, [task])).close()
    assert not task.started


def test_nothing_is_left_of_jobs_and_contexts(shared_batch: Batch) -> None:
    ctx = ExecutionContext(shared_batch)
    tasks: list[Task] = [RmiTask(ctx, n, identity, (n,)) for n in range(10)]
    job = Job(ctx, tasks)
    list(ctx.execute(job))
    kept = [weakref.ref(each) for each in (ctx, job, *tasks)]
    del ctx, job, tasks
    wait_until(lambda: (gc.collect(), not any(each() is not None for each in kept))[1])
    wait_until(lambda: not [t for t in threading.enumerate() if t.name.startswith("daskbatch-job")])
    assert not shared_batch._session._backend.worker_listeners


def test_stopping_a_context_cancels_its_jobs(shared_batch: Batch, tmp_path: Path) -> None:
    ctx = ExecutionContext(shared_batch)
    job = Job(ctx, [RmiTask(ctx, 0, spin, (tmp_path / "task",))])
    thread = in_thread(
        lambda: (wait_until((tmp_path / "task.begun").exists), ctx.stop(), ctx.stop())
    )
    with pytest.raises(CancelledError):
        list(ctx.execute(job))
    thread.join()
    assert not ctx.running
    assert not shared_batch.closed
    for use in (lambda: ctx.workers, lambda: ctx.execute(job), ctx.await_workers):
        with pytest.raises(LifecycleError, match="stopped"):
            use()


def test_a_context_of_its_own_cluster_ends_it() -> None:
    with ExecutionContext() as ctx:
        assert results(ctx, [RmiTask(ctx, 0, identity, (1,))]) == [1]
        batch = ctx.batch
    assert batch.closed


def test_a_job_is_executed_once_at_a_time(ctx: ExecutionContext, tmp_path: Path) -> None:
    job = Job(ctx, [RmiTask(ctx, 0, wait_for_file, (tmp_path / "go",))])
    first, second = ctx.execute(job), ctx.execute(job)
    thread = in_thread(lambda: list(first))
    wait_until(lambda: job.running)
    with pytest.raises(LifecycleError, match="being executed"):
        next(second)
    (tmp_path / "go").touch()
    thread.join()


INTERRUPTED = """
import contextlib, faulthandler, os, signal, sys, threading, time
from pathlib import Path
from daskbatch.execute import ExecutionContext, Job, RmiTask

faulthandler.dump_traceback_later(50, exit=True)
path = Path(sys.argv[1])
ended = path.with_suffix(".ended")

def spin():
    try:
        path.touch()
        while True:
            time.sleep(0.005)
    finally:
        while not ended.exists():
            with contextlib.suppress(BaseException):  # a task that goes on is interrupted again
                ended.touch()

def interrupt():
    while not path.exists():
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)

with ExecutionContext() as ctx:
    tasks = [RmiTask(ctx, 0, spin), *(RmiTask(ctx, n, abs, (-n,)) for n in range(1, 4))]
    job = Job(ctx, tasks)
    threading.Thread(target=interrupt).start()
    try:
        print(list(ctx.execute(job)))
    except KeyboardInterrupt:
        print("interrupted", tasks[0].cancelled, job.running)
    while not ended.exists():
        time.sleep(0.01)
    print([task.result() for task in ctx.execute(Job(ctx, [RmiTask(ctx, 0, abs, (-5,))]))])
    print([each.name for each in threading.enumerate() if each.name.startswith("daskbatch-job")])
"""


def test_ctrl_c_ends_the_job_and_the_consumer_and_the_context_goes_on(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", INTERRUPTED, tmp_path / "spin"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == ["interrupted True False", "[5]", "[]"]
    assert run.stderr == ""


def test_nothing_is_left_of_a_context_with_a_cluster_of_its_own_that_was_dropped() -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    ctx = ExecutionContext()
    assert results(ctx, [RmiTask(ctx, 0, identity, (1,))]) == [1]
    assert {process.pid for process in psutil.Process().children(recursive=True)} > before
    del ctx
    gc.collect()
    wait_until(lambda: {each.pid for each in psutil.Process().children(recursive=True)} <= before)


# -- contexts on workers ------------------------------------------------------------------


def test_a_task_executes_a_job_with_the_context_that_it_was_given(ctx: ExecutionContext) -> None:
    tasks: list[Task] = [RmiTask(ctx, n, nested, (ctx, 5)) for n in range(4)]
    assert results(ctx, tasks) == [list(range(5))] * 4


def test_a_function_in_a_child_process_executes_a_job_too(ctx: ExecutionContext) -> None:
    task = ctx.batch.options(isolation="process").function(nested, ctx, 5)
    task.run(timeout=60)
    assert task.get() == list(range(5))


def test_several_jobs_are_executed_at_a_time(ctx: ExecutionContext) -> None:
    found: dict[int, list[Any]] = {}

    def execute(number: int) -> None:
        tasks: list[Task] = [RmiTask(ctx, n, identity, ((number, n),)) for n in range(100)]
        found[number] = results(ctx, tasks)

    threads = [in_thread(lambda number=number: execute(number)) for number in range(5)]
    for thread in threads:
        thread.join()
    assert found == {number: [(number, n) for n in range(100)] for number in range(5)}


def test_what_a_task_has_begun_and_left_ends_with_it(ctx: ExecutionContext, tmp_path: Path) -> None:
    task = RmiTask(ctx, 0, drop_nested, (ctx, tmp_path / "inner"))
    assert results(ctx, [task]) == ["0"]


# -- workers that die ---------------------------------------------------------------------


def test_a_task_under_which_workers_keep_dying_is_given_up() -> None:
    with Batch(num_workers=2) as batch, ExecutionContext(batch) as ctx:
        task = RmiTask(ctx, 0, kill_always, name="deadly")
        with pytest.raises(WorkerLost, match="deadly"):
            results(ctx, [task])
        assert results(ctx, [RmiTask(ctx, 0, identity, ("goes on",))]) == ["goes on"]


def test_a_job_waits_while_the_cluster_has_no_worker_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is not an unmet request: another worker may be on order."""
    monkeypatch.setattr("daskbatch.execute.running.worker_pool._EMPTY_WARNING_SECONDS", 0.1)
    with (
        # The worker leaves while the task runs, which does not end by itself.
        dask.config.set({"daskbatch.unmet-timeout": "100ms", "daskbatch.leave-timeout": "1s"}),
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0") as cluster,
        ExecutionContext(cluster) as ctx,
    ):
        task = RmiTask(ctx, 0, wait_for_file, (tmp_path / "go",))
        job = Job(ctx, [task])
        found: list[Any] = []
        thread = in_thread(lambda: found.extend(task.result() for task in ctx.execute(job)))
        wait_until(lambda: task.pending)
        scale(cluster, 0)
        wait_until(lambda: ctx.worker_count == 0)
        wait_until(lambda: "a job waits for a worker: the cluster has none" in caplog.text)
        thread.join(0.5)  # much longer than the unmet-timeout
        assert job.running
        (tmp_path / "go").touch()
        scale(cluster, 1)
        thread.join()
        assert found == ["go"]


def test_a_task_waits_for_a_worker_that_is_being_restarted(tmp_path: Path) -> None:
    """All workers that are connected at the start are forbidden, but the other one comes back."""
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        ExecutionContext(cluster) as ctx,
    ):
        first, second = ctx.workers
        (nanny,) = [each for each in cluster.workers.values() if each.name == int(first.name)]
        cluster.sync(nanny.kill)
        wait_until(lambda: [each.name for each in ctx.workers] == [second.name])
        task = Prefers(ctx, 0, where, degrees={second.name: -1}, name="elsewhere")
        nowhere = Prefers(ctx, 0, where, degrees={"*": -1}, name="nowhere")
        with pytest.raises(SpecError, match="nowhere is forbidden on every worker"):
            results(ctx, [nowhere])
        chosen = ctx.execute(Job(ctx, [RmiTask(ctx, 0, where)]), workers=[first])
        found: list[str] = []
        thread = in_thread(lambda: found.extend(task.result() for task in chosen))
        execution = ctx.execute(Job(ctx, [RmiTask(ctx, 1, where), task]))
        assert next(execution).result() == second.name
        assert not task.started
        cluster.sync(nanny.instantiate)
        assert [each.result() for each in execution] == [first.name]
        thread.join()
        assert found == [first.name]


def test_a_job_does_not_wait_for_ever_for_a_worker_that_it_may_use(tmp_path: Path) -> None:
    """The cluster has a worker, but the job may not use it: its request is not met."""
    with (
        # The worker leaves while the task runs, which does not end by itself.
        dask.config.set({"daskbatch.unmet-timeout": "300ms", "daskbatch.leave-timeout": "1s"}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0") as cluster,
        ExecutionContext(cluster) as ctx,
    ):
        kept, lost = ctx.workers
        task = RmiTask(ctx, 0, spin, (tmp_path / "task",), name="alone")
        thread = in_thread(
            lambda: (
                wait_until((tmp_path / "task.begun").exists),
                cluster.sync(cluster.scheduler.retire_workers, workers=[lost.address]),
            )
        )
        with pytest.raises(WorkerLost, match="no worker that may execute alone has joined"):
            results(ctx, [task], workers=[lost])
        thread.join()
        assert results(ctx, [RmiTask(ctx, 0, where)]) == [kept.name]


def test_await_workers_without_any_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        LocalCluster(n_workers=0, dashboard_address=":0") as cluster,
        ExecutionContext(cluster) as ctx,
    ):
        assert ctx.worker_count == 0
        with pytest.raises(RuntimeError, match="no workers available"):
            ctx.await_workers(connect_timeout=0.1)
        found: list[Any] = []
        thread = in_thread(lambda: found.extend(results(ctx, [RmiTask(ctx, 0, identity, (5,))])))
        scale(cluster, 1)
        thread.join()
        assert found == [5]  # the job has waited for the worker
        assert ctx.await_workers(1, connect_timeout=60) == 1
        # As if others came all the time.
        monkeypatch.setattr("daskbatch.execute.context.is_stable", lambda *_: False)
        with pytest.warns(UserWarning, match="has not settled within 0.2 s"):
            assert ctx.await_workers(5, stable_timeout=0.2) == 1


def test_a_failed_dependency_may_be_raised_from_outside_with_its_worker(
    ctx: ExecutionContext,
) -> None:
    first, second = (worker.name for worker in ctx.workers)
    task = Prefers(ctx, 0, where, degrees={first: 1})
    promised = Promised(ctx, 1)
    after([promised], [task])
    execution = ctx.execute(Job(ctx, [task, promised]))
    next(execution)
    wait_until(lambda: promised.pending)
    task.mark_failed(FailedDependency(first))
    wait_until(lambda: task.attempts == 2 and task.succeeded)
    promised.future.set_result(None)
    list(execution)
    assert task.executed_on == [first, second]
