"""Holds the state of a job that is being executed, and updates it when a task ends.

Only the thread of the scheduler uses it. It calls user code (listeners and localities) while no
lock is held.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from numbers import Real
from typing import Any

from daskbatch import config
from daskbatch.errors import GraphError, SpecError, WorkerLost
from daskbatch.execute.jobs.exceptions import DependenciesFailed, FailedDependency
from daskbatch.execute.jobs.task import Task
from daskbatch.execute.jobs.task_state import TaskState
from daskbatch.execute.scheduling.assigner import Assigner
from daskbatch.execute.scheduling.durations import Durations
from daskbatch.execute.scheduling.graph import TaskGraph
from daskbatch.execute.scheduling.progress import Change, JobProgress, Stage
from daskbatch.execute.workers.worker import Worker
from daskbatch.serialization.safe_text import has_type


class JobState:
    """The tasks of a job, the stage of each, and the workers that may run the ready ones.

    Only the thread of the scheduler may use it.

    Parameters
    ----------
    tasks : sequence of Task
        The tasks of the job.
    kinds : sequence
        The kind of each task; see `Assigner`.
    concurrency, attempts : int
        How many tasks run at the same time on each worker, and how many times a failing task is
        tried at most; see `Scheduler`.
    durations : Durations, optional
        The durations measured so far.
    done : callable
        Called once with each task that is over.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        kinds: Sequence[Hashable],
        concurrency: int,
        attempts: int,
        durations: Durations | None,
        done: Callable[[Task], object],
    ) -> None:
        self.tasks = tasks
        self.graph = TaskGraph(tasks)
        max_reexecutions = int(config.get("execute.max-reexecutions"))
        self.progress = JobProgress(self.graph, attempts, max_reexecutions)
        self.assigner = Assigner(self.graph.ranks, kinds, concurrency, durations)
        #: The exception that ended the job; None if none has.
        self.failure: BaseException | None = None
        #: The worker that executed each task last.
        self.last_worker: dict[int, Any] = {}
        self._has_locality = [type(task).locality is not Task.locality for task in tasks]
        self._done = done
        self._reported: set[int] = set()

    # -- start, and workers that join ------------------------------------------------------

    def begin(self, departed: Sequence[Any] = ()) -> None:
        """Make the tasks ready that may run; end the job if a task may run on no worker.

        Parameters
        ----------
        departed : sequence of Worker
            Workers that have left, and may be restarted: a task that may run on one of them waits.
        """
        for task in self.tasks:
            task._require_not_cancelled()
        done = [position for position, task in enumerate(self.tasks) if task.succeeded]
        ready = self.progress.begin(done)
        for position in done:
            self.report(position)
        workers = self.assigner.workers
        for position, has_locality in enumerate(self._has_locality):
            if has_locality and self.progress.stages[position] != Stage.DONE:
                self._ask_locality(position, workers)
                if (
                    workers
                    and self.assigner.is_forbidden_everywhere(position)
                    and self._is_forbidden_on_all(position, departed)
                ):
                    name = self.tasks[position].name
                    error = SpecError(f"{name} is forbidden on every worker by its locality()")
                    self.fail_permanently(position, error)
                    return
        self.assigner.add(ready)

    def ask_again(self, joined: Sequence[Any]) -> None:
        """Request the localities of the ready tasks for workers that have joined."""
        for position in self.assigner.ready():
            if self._has_locality[position]:
                self._ask_locality(position, joined, more=True)
                self.assigner.add([position])

    def _is_forbidden_on_all(self, position: int, workers: Sequence[Any]) -> bool:
        if not workers:
            return True
        locality = dict(self._locality_of(position, workers))
        return all(locality.get(worker, 0) < 0 for worker in workers)

    def _ask_locality(self, position: int, workers: Sequence[Any], more: bool = False) -> None:
        self.assigner.set_locality(position, self._locality_of(position, workers), more)

    def _locality_of(self, position: int, workers: Sequence[Any]) -> list[tuple[Any, int]]:
        task = self.tasks[position]
        try:
            found = task.locality(tuple(workers))
        except Exception as error:
            error.add_note(f"raised by locality() of {task.name}")
            raise
        return _checked(found, task, workers)

    # -- ends of tasks ---------------------------------------------------------------------

    def report(self, position: int) -> None:
        """Report that a task is over, unless that has been reported already."""
        if position not in self._reported:
            self._reported.add(position)
            self._done(self.tasks[position])

    def fail_permanently(self, position: int, error: BaseException) -> None:
        """End the job, because a task has failed permanently."""
        self.tasks[position]._complete(None, error, TaskState.FAILED)
        self.report(position)
        self.failure = error

    def succeed(self, position: int) -> None:
        """Process the success of a task."""
        ready = self.progress.succeeded(position)
        self.report(position)
        if ready:
            self._make_ready(ready)

    def fail(self, position: int, error: BaseException, worker: Any) -> None:
        """Process an exception that an execution has raised."""
        if has_type(error, DependenciesFailed):
            self._fail_dependencies(position, error)
        elif has_type(error, FailedDependency):
            self._lose_if_named(position, error)
            self._apply(position, self.progress.dependency_failed(position), error)
        else:
            self.assigner.failed_on(position, worker)
            self._apply(position, self.progress.failed(position), error)

    def lose(self, position: int, deaths: int, error: BaseException | None) -> None:
        """Process an execution that was lost with its worker, or taken back from the worker."""
        task = self.tasks[position]
        change = self.progress.lost(position, deaths)
        if change.is_permanent:
            if not isinstance(error, WorkerLost):
                error = WorkerLost(f"{task.name} was lost: too many workers died while they ran it")
            self.fail_permanently(position, error)
            return
        task._withdraw()
        self._make_ready(change.ready)

    def mark_failed(self, position: int, error: BaseException) -> None:
        """Process that user code has marked a task as failed; the task is not running."""
        if has_type(error, FailedDependency):
            self._lose_if_named(position, error)
            self._apply(position, self.progress.dependency_failed(position), error)
            return
        self.assigner.discard(position)
        for blocked in self.progress.undone(position):
            self.assigner.discard(blocked)
        self._apply(position, self.progress.failed(position), error)

    def _lose_if_named(self, position: int, error: FailedDependency) -> None:
        worker = self.last_worker.get(position)
        if worker is not None and error.worker_failed == getattr(worker, "name", None):
            self.assigner.lose_worker(worker)

    def _fail_dependencies(self, position: int, error: DependenciesFailed) -> None:
        """Execute the tasks again whose results are missing for another task."""
        ancestors = self.graph.ancestors(position)
        marks: dict[int, str | None] = {}
        for name, ids in error.failures.items():
            for each in ids:
                found = self.graph.positions.get(each)
                if found is None or found not in ancestors:
                    unknown = GraphError(
                        f"{self.tasks[position].name} reports that the result of task {each!r} is "
                        "missing, which is not one of its dependencies"
                    )
                    unknown.__cause__ = error
                    self.fail_permanently(position, unknown)
                    return
                last = self.last_worker.get(found)
                if name is not None and last is not None:
                    if getattr(last, "name", None) != name:
                        continue  # another worker has executed the task in the meantime
                    self.assigner.lose_worker(last)
                marks[found] = name
        change = self.progress.dependencies_failed(position, list(marks))
        for each in change.redone:
            mark = FailedDependency(marks[each])
            self.tasks[each]._complete(None, mark, TaskState.FAILED, again=True)
        self._apply(position, change, error)

    def _apply(self, position: int, change: Change, error: BaseException) -> None:
        """Apply the consequences of the failure of a task."""
        if change.is_permanent:
            self.fail_permanently(position, error)
            return
        self.tasks[position]._complete(None, error, TaskState.FAILED)
        for each in change.blocked:
            self.assigner.discard(each)
        self._make_ready(change.ready)

    def _make_ready(self, positions: Sequence[int]) -> None:
        for position in positions:
            if self._has_locality[position]:
                self._ask_locality(position, self.assigner.workers)
        self.assigner.add(positions)


def _checked(found: Any, task: Task, workers: Sequence[Any]) -> list[tuple[Any, int]]:
    """Return what `locality` of a task has returned as pairs of a worker and a number."""
    pairs = list(found.items() if isinstance(found, Mapping) else found or ())
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[1], Real):
            raise SpecError(
                f"locality() of {task.name} must return pairs of a worker and a number, "
                f"not {pair!r}"
            )
        if not isinstance(pair[0], Worker) and pair[0] not in workers:
            raise SpecError(
                f"locality() of {task.name} has returned {pair[0]!r}, which is not a worker of the "
                "job: return the workers that it was called with"
            )
    return pairs
