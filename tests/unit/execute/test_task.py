"""The states of a task, as users and schedulers change them, without a cluster."""

from __future__ import annotations

import pickle
import threading
from concurrent.futures import CancelledError
from typing import Any

import pytest

from daskbatch import LifecycleError
from daskbatch.errors import TaskCancelled as BatchTaskCancelled
from daskbatch.execute import (
    DependenciesFailed,
    FailedDependency,
    Job,
    RmiTask,
    Scheduler,
    Task,
    TaskCancelled,
    Worker,
)

HERE = Worker("w", "tcp://here", "here")


def test_defaults() -> None:
    task = Task(None, 7)
    assert (task.id, task.priority, task.name, task.desc, task.group) == (
        7,
        7,
        "task 7",
        None,
        None,
    )
    assert (task.dependencies, task.dependents, task.executed_on, task.attempts) == (
        set(),
        set(),
        [],
        0,
    )
    assert Task(None, 7, priority=0).priority == 0
    with pytest.raises(NotImplementedError):
        task.execute(None, HERE)  # type: ignore[arg-type]


def test_a_result_needs_a_start() -> None:
    with pytest.raises(LifecycleError, match="has not started"):
        Task(None, 0).result()


def test_a_result_is_waited_for() -> None:
    task = Task(None, 0)
    task.set_executing(HERE)
    with pytest.raises(TimeoutError):
        task.result(timeout=0.01)
    threading.Timer(0.02, task.mark_done, ("late",)).start()
    assert task.result(timeout=20) == "late"
    assert task.exception() is None
    assert (task.executed_on_last(), task.succeeded, task.failed) == ("w", True, False)


def test_mark_done_is_without_effect_on_a_task_that_is_done() -> None:
    task = Task(None, 0)
    task.mark_done(1)
    task.mark_done(2)
    assert task.result() == 1
    assert task.duration is not None
    assert task.duration.total_seconds() == 0


def test_a_task_that_executes_cannot_execute_twice() -> None:
    task = Task(None, 0)
    task.set_executing(HERE)
    with pytest.raises(LifecycleError):
        task.set_executing(HERE)


def test_mark_failed_changes_also_what_has_succeeded() -> None:
    task = Task(None, 0)
    task.mark_done("value")
    error = ValueError("after all")
    task.mark_failed(error)
    assert task.failed
    assert task.exception() is error
    with pytest.raises(ValueError, match="after all"):
        task.result()
    with pytest.raises(TypeError):
        task.mark_failed("text")  # type: ignore[arg-type]


def test_a_result_stays_while_it_is_made_again() -> None:
    task = Task(None, 0)
    task.mark_done("value")
    task.mark_failed(FailedDependency("w"))
    assert task.result() == "value"
    assert isinstance(task.exception(), FailedDependency)
    task.set_executing(HERE)
    assert task.result() == "value"


def test_a_cancelled_task() -> None:
    task = Task(None, 0)
    assert task.cancel()
    assert (task.cancelled, task.done, task.failed, task.succeeded) == (True, True, False, False)
    for ask in (task.result, task.exception):
        with pytest.raises(CancelledError):
            ask()
    done = Task(None, 1)
    done.mark_done()
    assert not done.cancel()
    assert not done.cancelled


def test_release_forgets_what_a_done_task_has() -> None:
    task, other = RmiTask(None, 0, len, ("abc",)), Task(None, 1)
    task.dependencies.add(other)
    task.release()
    assert task.args == ("abc",)  # it is not done
    task.mark_done(3)
    task.release()
    assert (task.result(), task.args, task.dependencies) == (None, (), set())


def test_listeners() -> None:
    calls: list[str] = []
    task = Task(None, 0)

    def both(it: Any) -> None:
        calls.append("running" if it.running else "stopped")

    def only(it: Any) -> None:
        calls.append("only")

    task.add_listener(both)
    task.add_listener(None, only)
    task.set_executing(HERE)
    task.mark_done()
    assert calls == ["running", "stopped", "only"]
    task.mark_failed(ValueError())  # each stop calls the listeners
    assert calls[3:] == ["stopped", "only"]
    task.remove_listener(both, only, print)
    task.mark_failed(ValueError())
    assert len(calls) == 5


def test_exceptions_survive_pickling() -> None:
    for error in (
        DependenciesFailed({"w": [1, "a"], None: [2]}),
        FailedDependency("w"),
        FailedDependency(),
        TaskCancelled("stopped"),
    ):
        found = pickle.loads(pickle.dumps(error))
        assert type(found) is type(error)
        assert (found.args, vars(found)) == (error.args, vars(error))
    assert issubclass(TaskCancelled, BatchTaskCancelled)
    assert str(DependenciesFailed({"w": [1, 2], None: ["a"]})) == (
        "results are missing of 1, 2 on worker w; 'a'"
    )


def test_workers_can_be_compared_hashed_and_sent() -> None:
    other = Worker("a", "tcp://there", "there")
    assert sorted([HERE, other]) == [other, HERE]
    assert pickle.loads(pickle.dumps(HERE)) == HERE
    assert {HERE: 1}[Worker(*HERE)] == 1


# -- a scheduler needs no cluster for tasks that run on the driver --------------------------


class Local(Task):
    def execute(self, scheduler: Scheduler, worker: Any) -> None:
        self.set_executing(worker)
        self.mark_done((self.id, worker.name))


def test_a_scheduler_without_a_cluster() -> None:
    tasks = [Local(None, number) for number in range(6)]
    for number in range(5):
        tasks[number].dependencies.add(tasks[number + 1])
    received: list[Any] = []
    Scheduler(tasks, received.append, [HERE, Worker("v", "tcp://v", "v")], concurrency=2).run()
    assert [task.id for task in received[:-1]] == [5, 4, 3, 2, 1, 0]
    assert received[-1] is None


def test_a_scheduler_that_is_aborted_tells_why() -> None:
    class Never(Task):
        def execute(self, scheduler: Scheduler, worker: Any) -> None:
            self.set_executing(worker)
            scheduler.abort(KeyError("why"))

    received: list[Any] = []
    task = Never(None, 0)
    Scheduler([task], received.append, [HERE]).run()
    assert [type(each) for each in received] == [KeyError, type(None)]
    assert task.cancelled


def test_a_scheduler_needs_workers_and_an_rmi_task_a_context() -> None:
    with pytest.raises(LifecycleError, match="no workers"):
        Scheduler([Local(None, 0)], print, [])
    with pytest.raises(LifecycleError, match="needs a context"):
        Scheduler([RmiTask(None, 0, len)], print, [HERE])


def test_a_job_has_a_number_a_name_and_groups() -> None:
    tasks = [Task(None, n, group="even" if n % 2 == 0 else "odd") for n in range(4)]
    job = Job(None, tasks)
    assert job.name == f"job {job.id}"
    assert [task.id for task in job.group("odd")] == [1, 3]
    assert not job.cancel()
