"""The tasks of a job that is executed, and what follows from what becomes of each.

The thread of the scheduler uses it; code of the user's, such as listeners and localities, is
called by it, while no lock is held.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from daskbatch import config
from daskbatch.errors import GraphError, SpecError, WorkerLost
from daskbatch.execute.assigner import Assigner
from daskbatch.execute.exceptions import DependenciesFailed, FailedDependency
from daskbatch.execute.graph import TaskGraph
from daskbatch.execute.lanes import Durations
from daskbatch.execute.progress import Change, JobProgress, Stage
from daskbatch.execute.task import Task, TaskState


class JobState:
    """The tasks of a job, how far each is, and where the ready ones may go.

    Parameters
    ----------
    tasks : sequence of Task
        The tasks.
    kinds : sequence
        See `Assigner`.
    concurrency, attempts : int
        See `Scheduler`.
    durations : Durations, optional
        What is known of how long tasks take.
    done : callable
        Called with each task that is over, once.
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
        most = int(config.get("execute.max-reexecutions"))
        self.progress = JobProgress(self.graph, attempts, most)
        self.assigner = Assigner(self.graph.ranks, kinds, concurrency, durations)
        #: Why the job is given up.
        self.failure: BaseException | None = None
        #: Where each task was executed last.
        self.last_worker: dict[int, Any] = {}
        self._asks = [type(task).locality is not Task.locality for task in tasks]
        self._done = done
        self._told: set[int] = set()

    # -- the beginning, and workers that join ----------------------------------------------

    def begin(self) -> None:
        """Make ready what may run; nothing is, if a task may run nowhere."""
        for task in self.tasks:
            task._require_not_cancelled()
        done = [position for position, task in enumerate(self.tasks) if task.succeeded]
        ready = self.progress.begin(done)
        for position in done:
            self.tell(position)
        workers = self.assigner.workers
        for position, asks in enumerate(self._asks):
            if asks and self.progress.stages[position] != Stage.DONE:
                self._ask_locality(position, workers)
                if workers and self.assigner.is_forbidden_everywhere(position):
                    name = self.tasks[position].name
                    error = SpecError(f"{name} is forbidden on every worker, by its locality")
                    self.give_up(position, error)
                    return
        self.assigner.add(ready)

    def ask_again(self, joined: Sequence[Any]) -> None:
        """Ask the ready tasks what they say of workers that have joined."""
        for position in self.assigner.ready():
            if self._asks[position]:
                self._ask_locality(position, joined, more=True)
                self.assigner.add([position])

    def _ask_locality(self, position: int, workers: Sequence[Any], more: bool = False) -> None:
        found = self.tasks[position].locality(tuple(workers))
        self.assigner.set_locality(position, found or (), more)

    # -- what becomes of tasks -------------------------------------------------------------

    def tell(self, position: int) -> None:
        """Tell that a task is over, if that was not told."""
        if position not in self._told:
            self._told.add(position)
            self._done(self.tasks[position])

    def give_up(self, position: int, error: BaseException) -> None:
        """Give the job up, because of a task that has failed for good."""
        self.tasks[position]._complete(None, error, TaskState.FAILED)
        self.tell(position)
        self.failure = error

    def succeed(self, position: int) -> None:
        """Handle that a task is done."""
        ready = self.progress.succeeded(position)
        self.tell(position)
        if ready:
            self._make_ready(ready)

    def fail(self, position: int, error: BaseException, worker: Any) -> None:
        """Handle that an execution has raised."""
        if isinstance(error, DependenciesFailed):
            self._fail_dependencies(position, error)
        elif isinstance(error, FailedDependency):
            self._lose_if_named(position, error)
            self._apply(position, self.progress.dependency_failed(position), error)
        else:
            self.assigner.failed_on(position, worker)
            self._apply(position, self.progress.failed(position), error)

    def lose(self, position: int, deaths: int, error: BaseException | None) -> None:
        """Handle that an execution was lost with its worker, or taken back from it."""
        task = self.tasks[position]
        change = self.progress.lost(position, deaths)
        if change.given_up:
            if not isinstance(error, WorkerLost):
                error = WorkerLost(f"{task.name} was lost: workers have died while they ran it")
            self.give_up(position, error)
            return
        task._withdraw()
        self._make_ready(change.ready)

    def mark_failed(self, position: int, error: BaseException) -> None:
        """Handle that a task was marked as failed from outside; it does not run."""
        if isinstance(error, FailedDependency):
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
        """Have the tasks executed again whose results another one misses."""
        ancestors = self.graph.ancestors(position)
        marks: dict[int, str | None] = {}
        for name, ids in error.failures.items():
            for each in ids:
                found = self.graph.positions.get(each)
                if found is None or found not in ancestors:
                    unknown = GraphError(
                        f"{self.tasks[position].name} says that the result of task {each!r} is "
                        "missing, which is not one of its dependencies"
                    )
                    unknown.__cause__ = error
                    self.give_up(position, unknown)
                    return
                last = self.last_worker.get(found)
                if name is not None and last is not None:
                    if getattr(last, "name", None) != name:
                        continue  # it has been executed elsewhere since
                    self.assigner.lose_worker(last)
                marks[found] = name
        change = self.progress.dependencies_failed(position, list(marks))
        for each in change.redone:
            mark = FailedDependency(marks[each])
            self.tasks[each]._complete(None, mark, TaskState.FAILED, again=True)
        self._apply(position, change, error)

    def _apply(self, position: int, change: Change, error: BaseException) -> None:
        """Do what follows from the failure of a task."""
        if change.given_up:
            self.give_up(position, error)
            return
        self.tasks[position]._complete(None, error, TaskState.FAILED)
        for each in change.blocked:
            self.assigner.discard(each)
        self._make_ready(change.ready)

    def _make_ready(self, positions: Sequence[int]) -> None:
        for position in positions:
            if self._asks[position]:
                self._ask_locality(position, self.assigner.workers)
        self.assigner.add(positions)
