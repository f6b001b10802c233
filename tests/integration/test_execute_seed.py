"""Every sentence of the seed on `bndl.execute`: each test quotes the sentence that it checks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.cluster_info import workers_of
from support.jobs import (
    Barrier,
    Prefers,
    Promised,
    after,
    count_running,
    count_where,
    doubled,
    fail,
    fail_times,
    forget_running,
    identity,
    kill_once,
    large,
    make_noting,
    make_on_second,
    note,
    note_and_return,
    read_noting,
    read_or_miss,
    spin,
    swallow,
    where,
)
from support.waiting import wait_for_file, wait_until

from daskbatch import Batch
from daskbatch.errors import SpecError
from daskbatch.execute import (
    DependenciesFailed,
    ExecutionContext,
    FailedDependency,
    Job,
    RmiTask,
    Scheduler,
    Task,
    TaskCancelled,
    Worker,
)


@pytest.fixture
def ctx(shared_batch: Batch) -> Iterator[ExecutionContext]:
    """A context on the two workers of one thread that tests share."""
    with ExecutionContext(shared_batch) as context:
        yield context
    shared_batch.fence(timeout=60)


def results(ctx: ExecutionContext, tasks: list[Task], **how: Any) -> list[Any]:
    return [task.result() for task in ctx.execute(Job(ctx, tasks), **how)]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


# -- the module ---------------------------------------------------------------------------


def test_provides_a_means_to_execute_jobs_on_a_cluster_of_workers(ctx: ExecutionContext) -> None:
    """'provides a means to execute Jobs on a cluster of workers'."""
    tasks: list[Task] = [RmiTask(ctx, number, where) for number in range(8)]
    assert set(results(ctx, tasks)) == {worker.name for worker in ctx.workers}


def test_jobs_consist_of_tasks_in_a_graph_traversable_in_both_directions(
    ctx: ExecutionContext,
) -> None:
    """'tasks which are interconnected in a directed acyclic graph (traversable in both ...)'."""
    first, second = RmiTask(ctx, 1, identity, (1,)), RmiTask(ctx, 2, identity, (2,))
    third = RmiTask(ctx, 3, identity, (3,))
    second.dependencies.add(first)  # one side
    second.dependents.add(third)  # the other
    assert results(ctx, [first, second, third]) == [1, 2, 3]
    assert first.dependents == {second}
    assert third.dependencies == {second}


def test_tasks_are_executed_in_dependency_order(ctx: ExecutionContext, tmp_path: Path) -> None:
    """'ensure that tasks are executed in dependency order'."""
    path = tmp_path / "order"
    tasks: list[Task] = [RmiTask(ctx, n, note_and_return, (path, n)) for n in range(6)]
    for position in range(5):
        after([tasks[position]], [tasks[position + 1]])  # against the ids
    assert results(ctx, tasks) == list(range(6))
    assert lines(path) == ["5", "4", "3", "2", "1", "0"]


def test_tasks_are_executed_with_locality_to_a_worker(ctx: ExecutionContext) -> None:
    """'tasks are executed with locality (if any) to a worker'."""
    first, second = (worker.name for worker in ctx.workers)
    tasks: list[Task] = [
        Prefers(ctx, 0, where, degrees={second: 1}),
        Prefers(ctx, 1, where, degrees={first: 1}),
    ]
    assert results(ctx, tasks) == [second, first]


def test_tasks_are_restarted_if_configured(ctx: ExecutionContext, tmp_path: Path) -> None:
    """'tasks are restarted (if configured)'."""
    task = RmiTask(ctx, 0, fail_times, (tmp_path / "attempts", 1))
    assert results(ctx, [task], attempts=2)[0] in {worker.name for worker in ctx.workers}
    assert task.attempts == 2


def test_also_when_an_indirect_dependent_marks_a_dependency_as_failed(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    """'also when a (possibly indirect) dependent task marks a dependency as failed'."""
    path = tmp_path / "output"
    make = RmiTask(ctx, "make", make_on_second, (path, tmp_path / "first"))
    barrier = Barrier(ctx, "barrier")
    read = RmiTask(ctx, "read", read_or_miss, (path, ["make"]))
    after([barrier], [make])
    after([read], [barrier])
    assert results(ctx, [make, barrier, read])[2] == "made"
    assert (make.attempts, read.attempts) == (2, 2)


# -- the context --------------------------------------------------------------------------


def test_execute_gives_the_results_of_each_task_as_it_is_executed(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    """'Execute a Job on workers and get the results of each Task as it is executed'."""
    go = tmp_path / "go"
    tasks: list[Task] = [RmiTask(ctx, 0, identity, ("now",)), RmiTask(ctx, 1, wait_for_file, (go,))]
    execution = ctx.execute(Job(ctx, tasks))
    assert next(execution).result() == "now"
    assert not tasks[1].done
    go.touch()
    assert next(execution) is tasks[1]
    assert list(execution) == []


def test_workers_are_those_to_execute_the_job_on(ctx: ExecutionContext) -> None:
    """'workers (sequence) - A sequence of peer nodes to execute the job on'."""
    worker = ctx.workers[1]
    tasks: list[Task] = [RmiTask(ctx, number, where) for number in range(4)]
    assert set(results(ctx, tasks, workers=[worker])) == {worker.name}


@pytest.mark.parametrize("ordered", [True, False])
def test_whether_the_results_are_to_be_yielded_in_order_or_not(
    ctx: ExecutionContext, tmp_path: Path, ordered: bool
) -> None:
    """'order_results - Whether the results of the task are to be yielded in order or not'."""
    go = tmp_path / "go"
    tasks: list[Task] = [RmiTask(ctx, 0, wait_for_file, (go,)), RmiTask(ctx, 1, identity, (1,))]
    execution = ctx.execute(Job(ctx, tasks), order_results=ordered)
    if ordered:
        threading.Thread(target=lambda: (wait_until(lambda: tasks[1].done), go.touch())).start()
        assert list(execution) == tasks
    else:
        assert next(execution) is tasks[1]
        go.touch()
        assert list(execution) == [tasks[0]]


def test_results_are_in_order_by_default(ctx: ExecutionContext) -> None:
    """'(defaults to True)'."""
    tasks: list[Task] = [RmiTask(ctx, 10 - n, identity, (n,)) for n in range(10)]
    assert results(ctx, tasks) == list(range(10))


@pytest.mark.parametrize("concurrency", [1, 3])
def test_the_number_of_tasks_to_execute_concurrently_on_each_worker(
    ctx: ExecutionContext, concurrency: int
) -> None:
    """'concurrency - The number of tasks to execute concurrently on each worker'."""
    worker = ctx.workers[0]
    results(ctx, [RmiTask(ctx, 0, forget_running)], workers=[worker])
    counted = 0.15, concurrency, f"seed {concurrency}"
    tasks: list[Task] = [RmiTask(ctx, n, count_running, counted) for n in range(9)]
    assert max(results(ctx, tasks, workers=[worker], concurrency=concurrency)) == concurrency


def test_concurrency_and_attempts_default_to_the_configuration(shared_batch: Batch) -> None:
    """'Defaults to the bndl.execute.concurrency / attempts configuration parameter'."""
    with ExecutionContext(shared_batch, {"concurrency": 2, "attempts": 3}) as ctx:
        worker = ctx.workers[0]
        results(ctx, [RmiTask(ctx, 0, forget_running)], workers=[worker])
        counted = 0.1, 2, "seed of the configuration"
        tasks: list[Task] = [RmiTask(ctx, n, count_running, counted) for n in range(4)]
        assert max(results(ctx, tasks, workers=[worker])) == 2
        task = RmiTask(ctx, 0, fail, ("always",))
        with pytest.raises(ValueError, match="always"):
            results(ctx, [task])
        assert task.attempts == 3


def test_at_most_attempts_per_task(ctx: ExecutionContext, tmp_path: Path) -> None:
    """'attempts - The maximum number of attempts per task'."""
    task = RmiTask(ctx, 0, fail_times, (tmp_path / "attempts", 9))
    with pytest.raises(ValueError, match="attempt 3"):
        results(ctx, [task], attempts=3)
    assert len(lines(tmp_path / "attempts")) == 3


def test_not_counting_worker_failure(tmp_path: Path) -> None:
    """'(not counting worker failure as induced from a task failing with NotConnected ...'."""
    with Batch(num_workers=2) as batch, ExecutionContext(batch) as ctx:
        task = RmiTask(ctx, 0, kill_once, (tmp_path / "killed", "survived"))
        assert results(ctx, [task], attempts=1) == ["survived"]
        assert task.attempts == 2


def test_not_counting_dependencies_failed(ctx: ExecutionContext, tmp_path: Path) -> None:
    """'... or a task marked as failed through DependenciesFailed)'."""
    path = tmp_path / "output"
    make = RmiTask(ctx, 0, make_on_second, (path, tmp_path / "first"))
    read = RmiTask(ctx, 1, read_or_miss, (path, [0]))
    after([read], [make])
    assert results(ctx, [make, read], attempts=1)[1] == "made"


def test_await_workers_and_the_expected_worker_count(ctx: ExecutionContext) -> None:
    """'When connected to exactly worker_count workers, this method will return faster'."""
    assert ctx.await_workers(2) == 2
    assert ctx.await_workers() == 2


def test_worker_count_is_the_number_of_workers_connected_with(ctx: ExecutionContext) -> None:
    """'The number of workers connected with'."""
    assert ctx.worker_count == 2 == len(ctx.workers)


def test_workers_are_all_peers_that_are_workers(ctx: ExecutionContext) -> None:
    """'All peers of the local node with node_type worker'."""
    assert all(isinstance(worker, Worker) for worker in ctx.workers)
    assert {worker.address for worker in ctx.workers} == set(workers_of(ctx.batch.client))


# -- jobs and tasks -----------------------------------------------------------------------


def test_a_context_a_job_and_a_task_have_a_lifecycle(shared_batch: Batch) -> None:
    """'Bases: Lifecycle': of the context, the job and the task."""
    events: list[tuple[str, bool]] = []
    ctx = ExecutionContext(shared_batch)
    job = Job(ctx, [RmiTask(ctx, 0, identity, (0,), name="task")], name="job")
    for each in (ctx, job, *job.tasks):
        each.add_listener(lambda it: events.append((it.name, it.running)))
    list(ctx.execute(job))
    wait_until(lambda: job.stopped)
    ctx.stop()
    assert events == [
        *(("job", True), ("task", True), ("task", False), ("job", False)),
        ("execution context", False),
    ]
    assert ctx.started_on <= job.started_on <= job.stopped_on <= ctx.stopped_on  # type: ignore[operator]


def test_each_execution_of_a_task_is_scheduled_and_counted(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    """'Execution of a Task on a worker is the basic unit of scheduling'."""
    task = RmiTask(ctx, 0, fail_times, (tmp_path / "attempts", 2))
    results(ctx, [task], attempts=3)
    assert task.executed_on == lines(tmp_path / "attempts")  # one name for each execution
    assert task.attempts == 3


def test_a_job_is_a_set_of_tasks_with_a_name_and_a_description(ctx: ExecutionContext) -> None:
    """'Job(ctx, tasks, name=None, desc=None)'; 'A set of Tasks which can be executed'."""
    tasks = [RmiTask(ctx, n, identity, (n,)) for n in range(2)]
    job = Job(ctx, tasks, name="pair", desc="two of them")
    assert (job.name, job.desc, job.tasks) == ("pair", "two of them", tasks)
    assert Job(ctx, tasks).id == job.id + 1


def test_execute_a_task_on_a_worker_with_the_scheduler_as_context(ctx: ExecutionContext) -> None:
    """'Execute the task on a worker. The scheduler is provided as context for the task'."""

    class Mine(Task):
        def execute(self, scheduler: Scheduler, worker: Worker) -> Future[Any]:
            self.set_executing(worker)
            assert isinstance(scheduler, Scheduler)
            return scheduler.call(worker, where)

    task = Mine(ctx, 0)
    assert results(ctx, [task]) == task.executed_on


def test_indicate_locality_for_executing_this_task_on_workers(ctx: ExecutionContext) -> None:
    """'Indicate locality for executing this task on workers'; 'The workers to determine ...'."""
    task = Prefers(ctx, 0, where, degrees={})
    results(ctx, [task])
    assert task.asked[0] == [worker.name for worker in ctx.workers]


def test_0_is_indifferent_and_can_be_skipped_1_and_more_is_increasing_locality(
    ctx: ExecutionContext,
) -> None:
    """'0 is indifferent and can be skipped, -1 is forbidden, 1+ increasing locality'."""
    first, second = (worker.name for worker in ctx.workers)
    names = results(
        ctx,
        [
            Prefers(ctx, 0, where, degrees={first: 1, second: 5}),
            Prefers(ctx, 1, where, degrees={first: 0, second: -1}),
        ],
    )
    assert names == [second, first]


def test_minus_1_is_forbidden(ctx: ExecutionContext) -> None:
    """'-1 is forbidden': also when the other worker has nothing to do."""
    first, second = (worker.name for worker in ctx.workers)
    tasks: list[Task] = [Prefers(ctx, n, where, degrees={first: -1}) for n in range(6)]
    assert results(ctx, tasks) == [second] * 6


def test_whether_the_task_has_started_and_has_completed(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    """'started: Whether the task has started'; 'done: Whether the task has completed execution'."""
    task = RmiTask(ctx, 0, wait_for_file, (tmp_path / "go",))
    assert (task.started, task.pending, task.done) == (False, False, False)
    execution = ctx.execute(Job(ctx, [task]))
    threading.Thread(
        target=lambda: (wait_until(lambda: task.pending), (tmp_path / "go").touch())
    ).start()
    list(execution)
    assert (task.started, task.pending, task.done) == (True, False, True)


def test_set_executing_registers_the_task_as_executing_on_a_worker(ctx: ExecutionContext) -> None:
    """'Utility for sub-classes to register the task as executing on a worker'."""
    worker, task = ctx.workers[0], Task(ctx, 0)
    task.set_executing(worker)
    assert task.pending
    assert task.executed_on == [worker.name]
    task.cancel()
    with pytest.raises(CancelledError):
        task.set_executing(worker)


def test_mark_done_since_its_side_effect_is_already_available(ctx: ExecutionContext) -> None:
    """''Externally' mark the task as done. E.g. because its 'side effect' (result) is ...'."""
    done, other = RmiTask(ctx, 0, fail, ("never",)), RmiTask(ctx, 1, identity, (1,))
    after([other], [done])
    done.mark_done("there")
    assert results(ctx, [done, other]) == ["there", 1]
    assert (done.attempts, other.attempts) == (0, 1)


def test_mark_failed_since_the_worker_which_holds_the_result_has_failed(
    ctx: ExecutionContext,
) -> None:
    """''Externally' mark the task as failed. E.g. because the worker ... has failed'."""
    task, promised = RmiTask(ctx, 0, identity, ("again",)), Promised(ctx, 1)
    after([promised], [task])
    execution = ctx.execute(Job(ctx, [task, promised]))
    assert next(execution) is task
    wait_until(lambda: promised.pending)
    task.mark_failed(FailedDependency())
    assert task.result() == "again"  # it stays while the task is executed again
    wait_until(lambda: task.attempts == 2 and task.succeeded)
    promised.future.set_result("kept")
    assert [each.result() for each in execution] == ["kept"]


def test_an_rmi_task_executes_a_method_with_positional_and_keyword_arguments(
    ctx: ExecutionContext,
) -> None:
    """'... to execute a method with positional and keyword arguments'."""
    tasks: list[Task] = [
        RmiTask(ctx, 0, int, ("ff",), {"base": 16}, name="hex", desc="of ff", group="numbers"),
        RmiTask(ctx, 1, doubled, (4,)),
    ]
    assert results(ctx, tasks) == [255, 8]
    assert (tasks[0].name, tasks[0].desc, tasks[0].group) == ("hex", "of ff", "numbers")
    assert tasks[1].name == "task 1"


# -- the scheduler ------------------------------------------------------------------------


def test_the_scheduler_calls_done_with_each_task_and_then_with_none(ctx: ExecutionContext) -> None:
    """'Scheduler(tasks, done, workers, concurrency=1, attempts=1)'."""
    messages: list[Any] = []
    tasks = [RmiTask(ctx, n, identity, (n,)) for n in range(3)]
    Scheduler(tasks, messages.append, ctx.workers).run()
    assert messages[-1] is None
    assert sorted(task.id for task in messages[:-1]) == [0, 1, 2]


def test_the_scheduler_tells_the_exception_when_a_job_is_given_up(ctx: ExecutionContext) -> None:
    messages: list[Any] = []
    task = RmiTask(ctx, 0, fail, ("mine",))
    Scheduler([task], messages.append, ctx.workers).run()
    assert messages == [task, task.exception(), None]
    assert isinstance(messages[1], ValueError)


def test_failed_dependency_is_the_exception_of_a_task_that_was_marked_post_hoc(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    """'returned from task.exception ... has been marked as failed post-hoc by ... another task'."""
    seen: list[BaseException | None] = []
    path = tmp_path / "output"
    make = RmiTask(ctx, 0, make_on_second, (path, tmp_path / "first"))
    make.add_listener(None, lambda task: seen.append(task.exception()))
    read = RmiTask(ctx, 1, read_or_miss, (path, [0]))
    after([read], [make])
    results(ctx, [make, read])
    assert [type(error) for error in seen] == [type(None), FailedDependency, type(None)]


def test_whether_the_worker_which_executed_the_task_should_be_considered_lost(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    """'The worker_failed argument indicates whether the worker ... should be considered lost'."""
    first, second = ctx.workers
    path, mark = tmp_path / "output", tmp_path / "first"
    make = Prefers(ctx, 0, make_on_second, (path, mark), degrees={first.name: 1})
    read = RmiTask(ctx, 1, read_or_miss, (path, [0], first.name))
    rest = [Prefers(ctx, n, where, degrees={first.name: 1}) for n in range(2, 6)]
    after([read], [make])
    after(rest, [read])
    found = results(ctx, [make, read, *rest])
    assert make.executed_on == [first.name, second.name]
    assert found[2:] == [second.name] * 4  # they prefer the one that counts as lost


def test_worker_assignment_takes_concurrency_and_locality_into_account(
    ctx: ExecutionContext,
) -> None:
    """'Worker assignment takes into account: concurrency ... and worker locality'."""
    names = [worker.name for worker in ctx.workers]
    tasks: list[Task] = [
        Prefers(ctx, n, count_where, (0.05,), degrees={names[0]: 1, names[1]: -1 if n < 4 else 0})
        for n in range(8)
    ]
    found = results(ctx, tasks, concurrency=2)
    assert {name for name, _ in found[:4]} == {names[0]}
    assert max(most for _, most in found) <= 2


def test_many_to_many_dependencies_are_resolved_by_a_barrier_task(ctx: ExecutionContext) -> None:
    """'introducing a barrier task ... reduced the number of dependencies to n+m instead of n*m'."""
    maps = [RmiTask(ctx, n, identity, (n,)) for n in range(100)]
    barrier = Barrier(ctx, 100)
    reduces = [RmiTask(ctx, 101 + n, identity, (n,)) for n in range(100)]
    after([barrier], maps)
    after(reduces, [barrier])
    tasks: list[Task] = [*maps, barrier, *reduces]
    assert sum(len(task.dependencies) for task in tasks) == 200
    assert len(results(ctx, tasks)) == 201
    assert set(barrier.result()) == set(range(100))


# -- exceptions ---------------------------------------------------------------------------


def test_task_cancelled_is_raised_in_a_worker_when_a_task_is_cancelled_by_the_driver(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    """'Exception raised in a worker when a task is to be cancelled (preempted) by the driver'."""
    task = RmiTask(ctx, 0, spin, (tmp_path / "task",))
    job = Job(ctx, [task])
    execution = ctx.execute(job)
    threading.Thread(
        target=lambda: (wait_until((tmp_path / "task.begun").exists), job.cancel())
    ).start()
    with pytest.raises(CancelledError):
        next(execution)
    wait_until((tmp_path / "task.cancelled").exists)


def test_task_cancelled_is_raised_in_the_running_thread_also_if_it_was_swallowed(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    """'This exception is raised through use of PyThreadState_SetAsyncExc'."""
    path = tmp_path / "task"
    task = RmiTask(ctx, 0, swallow, (path,))
    execution = ctx.execute(Job(ctx, [task]))
    threading.Thread(
        target=lambda: (wait_until((tmp_path / "task.begun").exists), task.cancel())
    ).start()
    with pytest.raises(CancelledError):
        next(execution)
    wait_until(lambda: path.exists() and len(lines(path)) == 3)
    assert set(lines(path)) == {"TaskCancelled"}
    assert issubclass(TaskCancelled, Exception)
    with pytest.raises(CancelledError):
        task.result()


def test_dependencies_failed_causes_the_dependencies_to_be_re_executed(
    ctx: ExecutionContext, tmp_path: Path
) -> None:
    """'This will cause the dependencies to be re-executed and the task which raises ...'."""
    path, order = tmp_path / "output", tmp_path / "order"
    make = RmiTask(ctx, 0, make_noting, (path, tmp_path / "first", order))
    other = RmiTask(ctx, 1, note, (order, "other"))
    read = RmiTask(ctx, 2, read_noting, (path, order))
    after([read], [make, other])
    assert results(ctx, [make, other, read])[2] == "made"
    assert sorted(lines(order)[:2]) == ["make", "other"]
    assert lines(order)[2:] == ["miss", "make", "read"]


def test_failures_is_a_mapping_from_worker_names_to_a_sequence_of_task_ids() -> None:
    """'failures ... is a mapping from worker names (strings) to a sequence of task_ids'."""
    assert DependenciesFailed({"w": (1, 2)}).failures == {"w": [1, 2]}


def test_dependencies_failed_names_tasks_that_are_there(ctx: ExecutionContext) -> None:
    make = RmiTask(ctx, 0, identity, (0,))
    read = RmiTask(ctx, 1, read_or_miss, (Path("/nowhere"), ["what"]))
    after([read], [make])
    with pytest.raises(SpecError, match="'what' is missing, which is not one of its dependencies"):
        results(ctx, [make, read])


# -- what else is promised of contexts ----------------------------------------------------


def test_results_are_there_while_and_after_tasks_are_yielded(ctx: ExecutionContext) -> None:
    tasks: list[Task] = [RmiTask(ctx, n, large, (n * 300_000,)) for n in range(4)]
    for task in ctx.execute(Job(ctx, tasks)):
        assert len(task.result()) == task.id * 300_000
    assert [len(task.result()) for task in tasks] == [n * 300_000 for n in range(4)]


def test_futures_of_anything_complete_a_task(ctx: ExecutionContext) -> None:
    class Local(Task):
        def execute(self, scheduler: Any, worker: Any) -> Any:
            return pool.submit(pow, 2, self.id)

    with ThreadPoolExecutor(2) as pool:
        assert results(ctx, [Local(ctx, n) for n in range(5)]) == [1, 2, 4, 8, 16]


def test_a_slow_execute_holds_up_no_other_task(ctx: ExecutionContext) -> None:
    class Slow(Task):
        def execute(self, scheduler: Any, worker: Any) -> None:
            assert others_done.wait(20)
            self.mark_done("slow")

    others_done = threading.Event()
    tasks: list[Task] = [Slow(ctx, 0), *(RmiTask(ctx, n, identity, (n,)) for n in range(1, 40))]
    execution = ctx.execute(Job(ctx, tasks), order_results=False)
    for _ in range(39):
        next(execution)
    others_done.set()
    assert next(execution).result() == "slow"
