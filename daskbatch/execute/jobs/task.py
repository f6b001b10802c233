"""Defines the tasks of a job: their dependencies, their state, and their result or exception.

Any thread may use a task. Listeners are called while no lock is held.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from typing import Any

from daskbatch import errors
from daskbatch.errors import LifecycleError, SpecError
from daskbatch.execute.jobs.lifecycle import Lifecycle
from daskbatch.execute.jobs.task_outcome import TaskOutcome, state_lock
from daskbatch.execute.jobs.task_state import TaskState
from daskbatch.execute.workers.worker import Worker


class Task(Lifecycle):
    """One node in the graph of a job. A subclass defines its work by overriding `execute`.

    Any thread may use a task.

    Parameters
    ----------
    ctx : ExecutionContext
        The context that executes its job.
    task_id : hashable
        The id, which no other task of the job may have.
    priority : optional
        Of the ready tasks, the one with the smallest priority runs first. By default the
        `task_id`.
    name : str, optional
        The name; by default ``task`` and the id.
    desc : str, optional
        A description.
    group : str, optional
        A label that several tasks may share; see `Job.group`.

    Attributes
    ----------
    dependencies, dependents : set of Task
        The tasks that must be done before this one, and the tasks that wait for it. They only
        define an order; they do not pass results on. It is enough to set one of the two sides:
        the start of the job adds the other.
    executed_on : list of str
        The names of the workers that have executed it, one name for each execution.

    Examples
    --------
    A barrier, which takes ``n + m`` dependencies in place of ``n * m``:

    >>> class Barrier(Task):
    ...     def execute(self, scheduler, worker):
    ...         self.set_executing(worker)
    ...         self.mark_done(sorted(task.id for task in self.dependencies))
    >>> barrier = Barrier(None, "all mapped", group="barriers")
    >>> barrier.started, barrier.pending, barrier.done
    (False, False, False)
    """

    def __init__(
        self,
        ctx: Any,
        task_id: Hashable,
        *,
        priority: Any = None,
        name: str | None = None,
        desc: str | None = None,
        group: str | None = None,
    ) -> None:
        try:
            hash(task_id)
        except TypeError:
            raise SpecError(f"a task_id must be hashable, such as a number: {task_id!r}") from None
        super().__init__(f"task {task_id}" if name is None else name, desc)
        self.ctx = ctx
        self.id = task_id
        self.priority = task_id if priority is None else priority
        self.group = group
        # These sets are made at their first use: many tasks have none.
        self._dependencies: set[Task] | None = None
        self._dependents: set[Task] | None = None
        self.executed_on: list[str] = []
        self._outcome = TaskOutcome()
        #: Called with this task at each change that does not come from the scheduler.
        self._observer: Callable[[Task], None] | None = None

    # -- for subclasses -------------------------------------------------------------------

    def execute(self, scheduler: Any, worker: Worker) -> Future[Any] | None:
        """Execute the task; subclasses override this.

        It is called in a separate thread of the driver, which it may block. It may register the
        execution by `set_executing`. It completes the task in one of three ways: it calls
        `mark_done`; or it returns a future, whose result becomes the task's; or it returns None,
        and other code calls `mark_done` later.

        Parameters
        ----------
        scheduler : Scheduler
            The scheduler that executes the task; `Scheduler.call` calls a method on a worker.
        worker : Worker
            The worker that the scheduler has chosen for the task.

        Returns
        -------
        concurrent.futures.Future or None
            The future that completes the task, if there is one.
        """
        raise NotImplementedError(
            f"{self.name} cannot be executed: its class {type(self).__name__} must define "
            "execute(scheduler, worker)"
        )

    def locality(self, workers: Sequence[Worker]) -> Iterable[tuple[Worker, int]]:
        """Return which workers the task prefers, and which are forbidden; subclasses override it.

        The scheduler calls it when the job starts, when the task has become ready, and when
        workers join.

        Parameters
        ----------
        workers : sequence of Worker
            The workers to judge.

        Returns
        -------
        iterable of (Worker, int)
            For each worker a number: above 0 the task prefers the worker, a larger number more
            strongly; 0 means no preference, and can be omitted; -1 forbids the worker. A
            preference never keeps a worker idle. A forbidden worker never executes the task.
        """
        return ()

    def set_executing(self, worker: Worker) -> None:
        """Register that the task is executing on a worker, and call the listeners.

        Parameters
        ----------
        worker : Worker
            The worker.

        Raises
        ------
        TaskCancelled
            The task has been cancelled. It is a `concurrent.futures.CancelledError`.
        LifecycleError
            The task is executing already.
        """
        with state_lock:
            self._require_not_cancelled()
            if self._outcome.state == TaskState.EXECUTING:
                raise LifecycleError(f"{self.name} is executing already")
            self._outcome.state, self._outcome.process = TaskState.EXECUTING, os.getpid()
            self.executed_on.append(getattr(worker, "name", str(worker)))
        self.signal_start()

    # -- state and result -----------------------------------------------------------------

    @property
    def dependencies(self) -> set[Task]:
        """The tasks that must be done before this one: a set, to which tasks can be added."""
        if self._dependencies is None:
            self._dependencies = set()
        return self._dependencies

    @dependencies.setter
    def dependencies(self, tasks: Iterable[Task]) -> None:
        self._dependencies = set(tasks)

    @property
    def dependents(self) -> set[Task]:
        """The tasks that wait for this one: a set, to which tasks can be added."""
        if self._dependents is None:
            self._dependents = set()
        return self._dependents

    @dependents.setter
    def dependents(self, tasks: Iterable[Task]) -> None:
        self._dependents = set(tasks)

    @property
    def _is_connected(self) -> bool:
        return bool(self._dependencies or self._dependents)

    @property
    def attempts(self) -> int:
        """How many executions have started."""
        return len(self.executed_on)

    @property
    def started(self) -> bool:
        """Whether the task has started."""
        return self._outcome.state != TaskState.NEW

    @property
    def pending(self) -> bool:
        """Whether the task has started and not completed."""
        return self._outcome.state == TaskState.EXECUTING

    @property
    def done(self) -> bool:
        """Whether the task has completed: it succeeded, failed or was cancelled."""
        return self._outcome.done

    @property
    def succeeded(self) -> bool:
        """Whether the task has completed with a result."""
        return self._outcome.state == TaskState.SUCCEEDED

    @property
    def failed(self) -> bool:
        """Whether the task has completed with an exception, or was marked as failed."""
        return self._outcome.state == TaskState.FAILED

    def executed_on_last(self) -> str | None:
        """Return the name of the worker of the latest execution; None if there was none."""
        return self.executed_on[-1] if self.executed_on else None

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, and wait for it if the task is executing.

        Once the task has a result, the result is kept: this method returns it even while the
        task is executed again because it was marked as failed.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        Exception
            The exception that the task raised.
        TaskCancelled
            The task was cancelled. It is a `concurrent.futures.CancelledError`.
        LifecycleError
            The task has not started.
        TimeoutError
            The task is not done within `timeout` seconds.
        """
        outcome = self._outcome
        if outcome.state != TaskState.SUCCEEDED and not outcome.has_kept_value:
            error = self.exception(timeout)
            if error is not None:
                raise error
        return outcome.value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return the exception that the task raised, or None; wait if it is executing.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TaskCancelled, LifecycleError, TimeoutError
            See `result`.
        """
        outcome = self._outcome
        if outcome.state == TaskState.NEW:
            raise LifecycleError(f"{self.name} has not started: execute its job first")
        if outcome.is_abandoned:
            raise LifecycleError(
                f"this is a copy of {self.name}: another process executes it; get its result there"
            )
        if not outcome.wait(timeout):
            raise TimeoutError(f"{self.name} is not done after {timeout} s")
        if outcome.state == TaskState.CANCELLED:
            self._require_not_cancelled()
        return outcome.error

    def _require_not_cancelled(self) -> None:
        if self.cancelled:
            raise errors.TaskCancelled(f"{self.name} was cancelled")

    # -- changes from outside -------------------------------------------------------------

    def mark_done(self, result: Any = None) -> None:
        """Mark the task as done, because its work is done already; no effect if it is done.

        Parameters
        ----------
        result : object
            The value that `result` returns from now on.
        """
        if self._complete(result, None, TaskState.SUCCEEDED):
            self._notify_observer()

    def mark_failed(self, exc: BaseException) -> None:
        """Mark the task as failed, even if it has succeeded.

        A running job executes it again if `exc` is a `FailedDependency`, or if the task has
        attempts remaining. Otherwise the job fails.

        Parameters
        ----------
        exc : Exception
            The reason, for example a `FailedDependency`.
        """
        if not isinstance(exc, BaseException):
            raise TypeError(f"mark_failed takes an exception, not {exc!r}")
        self._complete(None, exc, TaskState.FAILED, again=True)
        self._notify_observer()

    def cancel(self) -> bool:
        """Cancel the task if it is not done; returns whether it is cancelled.

        A running job does not execute it again, but fails: the consumer of its results receives
        a `concurrent.futures.CancelledError`.
        """
        if self._complete(None, None, TaskState.CANCELLED):
            self._notify_observer()
        return self.cancelled

    def release(self) -> None:
        """Drop the result, the dependencies and the listeners, to save memory, if it is done."""
        with state_lock:
            if not self.done:
                return
            self._outcome.value = None
            self._dependencies = self._dependents = None
            self._started_listeners = self._stopped_listeners = ()
            self.executed_on = self.executed_on[-1:]

    def _notify_observer(self) -> None:
        observer = self._observer
        if observer is not None:
            observer(self)

    # -- the scheduler --------------------------------------------------------------------

    def _complete(
        self,
        value: Any,
        error: BaseException | None,
        state: TaskState,
        again: bool = False,
        seconds: float | None = None,
    ) -> bool:
        """Record how the task ended and call the listeners; False if it was done already."""
        with state_lock:
            if self._outcome.done and not again:
                return False
            self._outcome.record(state, value, error)
            self.cancelled = state == TaskState.CANCELLED
            self.stopped_on = now = datetime.now()
            if seconds is not None:
                # The worker that ran the task measured this time.
                self.started_on = now - timedelta(seconds=seconds)
            elif self.started_on is None:
                self.started_on = now
        if self._stopped_listeners:
            self.signal_stop()
        return True

    def _complete_at_once(self, worker: Worker, value: Any, seconds: float) -> None:
        """Record a success on a worker whose start has not been recorded before."""
        if self._started_listeners:
            with contextlib.suppress(errors.TaskCancelled, LifecycleError):
                self.set_executing(worker)
            self._complete(value, None, TaskState.SUCCEEDED, seconds=seconds)
            return
        now = datetime.now()
        with state_lock:
            # If the task was cancelled or marked as done since then, that stays. A failure does
            # not: it may come from an earlier attempt.
            if self.cancelled or self._outcome.state == TaskState.SUCCEEDED:
                return
            self._outcome.record(TaskState.SUCCEEDED, value, None)
            self.executed_on.append(worker.name)
            self.started_on, self.stopped_on = now - timedelta(seconds=seconds), now
        if self._stopped_listeners:
            self.signal_stop()

    def _withdraw(self) -> None:
        """Reset the state, so that the task can be executed again, as when its worker is lost."""
        with state_lock:
            if self._outcome.state == TaskState.EXECUTING:
                self._outcome.state = TaskState.NEW

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self._outcome.state.name.lower()}>"

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_observer"] = None
        return state


def claim(tasks: Sequence[Task], observer: Callable[[Task], None]) -> None:
    """Make the caller the only scheduler that executes some tasks, until `release_claim`.

    Parameters
    ----------
    tasks : sequence of Task
        The tasks.
    observer : callable
        Called with a task that code outside of the scheduler has changed.

    Raises
    ------
    LifecycleError
        Another job is executing one of the tasks; then no task has been claimed.
    """
    with state_lock:
        for task in tasks:
            if task._observer is not None:
                raise LifecycleError(f"{task.name} is being executed by another job")
        for task in tasks:
            task._observer = observer


def release_claim(tasks: Sequence[Task]) -> None:
    """Let other schedulers execute tasks that were claimed."""
    with state_lock:
        for task in tasks:
            task._observer = None
