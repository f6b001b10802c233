"""The tasks of a job: their place in the graph, their state, and what became of them.

Any thread may use a task. Listeners are called while no lock is held.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from concurrent.futures import Future
from datetime import datetime, timedelta
from enum import IntEnum
from typing import Any

from daskbatch import errors
from daskbatch.errors import LifecycleError
from daskbatch.execute.exceptions import FailedDependency
from daskbatch.execute.lifecycle import Lifecycle
from daskbatch.execute.worker import Worker
from daskbatch.forking import make_lock
from daskbatch.timeouts import parse_timeout
from daskbatch.worker.execution.task_context import current_context, wait_releasing_slot

#: Held while the state of any task changes. One for all tasks: a change takes a microsecond,
#: and a lock for each of ten thousand tasks takes memory.
_lock = make_lock()

#: Notified when a task is over for which somebody waits.
_changed = threading.Condition(_lock)


class TaskState(IntEnum):
    """What a task does now."""

    NEW = 0
    EXECUTING = 1
    SUCCEEDED = 2
    FAILED = 3
    CANCELLED = 4


class Task(Lifecycle):
    """One node in the graph of a job. Subclasses say what is done, by `execute`.

    Parameters
    ----------
    ctx : ExecutionContext
        Where its job is executed.
    task_id : hashable
        What no other task of the job has.
    priority : optional
        A smaller one runs first; by default the `task_id`.
    name : str, optional
        By default ``task`` and the id.
    desc : str, optional
        A description.
    group : str, optional
        A label that several tasks may share; see `Job.group`.

    Attributes
    ----------
    dependencies, dependents : set of Task
        The tasks that must be done before this one, and those that wait for it. They put tasks in
        order; results do not travel along them. A side that was left out is added when the job
        starts.
    executed_on : list of str
        The names of the workers that have executed it, one for each execution.

    Examples
    --------
    A barrier, which has ``n + m`` edges where ``n * m`` would be needed without it:

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
        super().__init__(f"task {task_id}" if name is None else name, desc)
        self.ctx = ctx
        self.id = task_id
        self.priority = task_id if priority is None else priority
        self.group = group
        # Made when they are asked for: many tasks have neither.
        self._dependencies: set[Task] | None = None
        self._dependents: set[Task] | None = None
        self.executed_on: list[str] = []
        self._state = TaskState.NEW
        self._value: Any = None
        #: Whether an execution has succeeded, now or before.
        self._has_value = False
        self._error: BaseException | None = None
        #: Told of changes that come from outside of the scheduler.
        self._observer: Callable[[Task], None] | None = None

    # -- for subclasses -------------------------------------------------------------------

    def execute(self, scheduler: Any, worker: Worker) -> Future[Any] | None:
        """Execute the task; subclasses override this.

        It is called on the driver's side, in a thread that may be held up. It may register the
        execution by `set_executing`, and complete at once by `mark_done`; or return a future,
        whose result becomes the task's; or return None, and have `mark_done` called later.

        Parameters
        ----------
        scheduler : Scheduler
            Who executes it; `Scheduler.call` runs a function on a worker.
        worker : Worker
            Where it is to be executed, as far as that matters.

        Returns
        -------
        concurrent.futures.Future or None
            What completes it.
        """
        raise NotImplementedError(f"{type(self).__name__} must define execute(scheduler, worker)")

    def locality(self, workers: Sequence[Worker]) -> Iterable[tuple[Worker, int]]:
        """Say on which workers the task is better off; subclasses override this.

        It is asked when the job starts, again when the task has become ready, and for workers
        that join.

        Parameters
        ----------
        workers : sequence of Worker
            The workers.

        Returns
        -------
        iterable of (Worker, int)
            0 is indifferent and can be left out, -1 is forbidden, and the more above 0 the
            better. A preference never keeps a worker idle; a prohibition always holds.
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
            It is executing already.
        """
        with _lock:
            self._require_not_cancelled()
            if self._state == TaskState.EXECUTING:
                raise LifecycleError(f"{self.name} is executing already")
            self._state = TaskState.EXECUTING
            self.executed_on.append(getattr(worker, "name", str(worker)))
        self.signal_start()

    # -- what it is -----------------------------------------------------------------------

    @property
    def dependencies(self) -> set[Task]:
        """The tasks that must be done before this one: a set to be filled."""
        if self._dependencies is None:
            self._dependencies = set()
        return self._dependencies

    @dependencies.setter
    def dependencies(self, tasks: Iterable[Task]) -> None:
        self._dependencies = set(tasks)

    @property
    def dependents(self) -> set[Task]:
        """The tasks that wait for this one: a set to be filled."""
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
        return self._state != TaskState.NEW

    @property
    def pending(self) -> bool:
        """Whether the task has started and not completed."""
        return self._state == TaskState.EXECUTING

    @property
    def done(self) -> bool:
        """Whether the task has completed execution, however."""
        return self._state > TaskState.EXECUTING

    @property
    def succeeded(self) -> bool:
        """Whether the task has completed with a result."""
        return self._state == TaskState.SUCCEEDED

    @property
    def failed(self) -> bool:
        """Whether the task has completed with an exception, or was marked as failed."""
        return self._state == TaskState.FAILED

    def executed_on_last(self) -> str | None:
        """Return the name of the worker that executed it last; None if none has."""
        return self.executed_on[-1] if self.executed_on else None

    def result(self, timeout: float | None = None) -> Any:
        """Return the result, and wait for it if the task is executing.

        Once there was a result it stays, also while the task is executed again since it was
        marked as failed afterwards.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        Exception
            What the task raised.
        TaskCancelled
            It was cancelled. It is a `concurrent.futures.CancelledError`.
        LifecycleError
            It has not started.
        TimeoutError
            The time is up first.
        """
        if self._state != TaskState.SUCCEEDED:
            if self._has_value and (
                self._state in (TaskState.EXECUTING, TaskState.NEW)
                or isinstance(self._error, FailedDependency)
            ):
                return self._value
            error = self.exception(timeout)
            if error is not None:
                raise error
        return self._value

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Return what the task raised, or None; wait if it is executing.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TaskCancelled, LifecycleError, TimeoutError
            See `result`.
        """
        if not self.done:
            if self._state == TaskState.NEW:
                raise LifecycleError(f"{self.name} has not started: execute its job first")
            seconds = parse_timeout(timeout)

            def wait(seconds: float | None) -> bool:
                with _changed:
                    return _changed.wait_for(lambda: self.done, seconds)

            if not wait_releasing_slot(current_context(), wait, seconds):
                raise TimeoutError(f"{self.name} is not done after {seconds:g} s")
        if self._state == TaskState.CANCELLED:
            self._require_not_cancelled()
        return self._error

    def _require_not_cancelled(self) -> None:
        if self.cancelled:
            raise errors.TaskCancelled(f"{self.name} was cancelled")

    # -- changes from outside -------------------------------------------------------------

    def mark_done(self, result: Any = None) -> None:
        """Mark the task as done, since its effect is there already; nothing if it is done.

        Parameters
        ----------
        result : object
            What `result` returns from now on.
        """
        if self._complete(result, None, TaskState.SUCCEEDED):
            self._tell_observer()

    def mark_failed(self, exc: BaseException) -> None:
        """Mark the task as failed, also if it had succeeded.

        A running job executes it again if `exc` is a `FailedDependency`, or if it has attempts
        left; else the job fails.

        Parameters
        ----------
        exc : Exception
            Why, such as `FailedDependency`.
        """
        if not isinstance(exc, BaseException):
            raise TypeError(f"mark_failed takes an exception, not {exc!r}")
        self._complete(None, exc, TaskState.FAILED, again=True)
        self._tell_observer()

    def cancel(self) -> bool:
        """Cancel the task, if it is not done; returns whether it will not complete.

        In a running job it counts as failed for good: the consumer gets a
        `concurrent.futures.CancelledError`.
        """
        if self._complete(None, None, TaskState.CANCELLED):
            self._tell_observer()
        return self.cancelled

    def release(self) -> None:
        """Forget the result, the dependencies and the listeners of a task that is done."""
        with _lock:
            if not self.done:
                return
            self._value = None
            self._dependencies = self._dependents = None
            self._started_listeners = self._stopped_listeners = ()
            self.executed_on = self.executed_on[-1:]

    def _tell_observer(self) -> None:
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
        """Note what became of it and call the listeners; False if it was done already."""
        with _lock:
            if self._state > TaskState.EXECUTING and not again:
                return False
            self._state = state
            self._error = error
            self.cancelled = state == TaskState.CANCELLED
            if state == TaskState.SUCCEEDED:
                self._value, self._has_value = value, True
            self.stopped_on = now = datetime.now()
            if seconds is not None:
                # As it was measured where it ran.
                self.started_on = now - timedelta(seconds=seconds)
            elif self.started_on is None:
                self.started_on = now
            _changed.notify_all()
        if self._stopped_listeners:
            self.signal_stop()
        return True

    def _complete_at_once(self, worker: Worker, value: Any, seconds: float) -> None:
        """Note that it has been executed on a worker, before anybody had heard that it began."""
        if self._started_listeners:
            with contextlib.suppress(errors.TaskCancelled, LifecycleError):
                self.set_executing(worker)
            self._complete(value, None, TaskState.SUCCEEDED, seconds=seconds)
            return
        now = datetime.now()
        with _lock:
            # Only what was cancelled or marked meanwhile is done; it may have failed before.
            if self.cancelled or self._state == TaskState.SUCCEEDED:
                return
            self._state, self._error = TaskState.SUCCEEDED, None
            self._value, self._has_value = value, True
            self.executed_on.append(worker.name)
            self.started_on, self.stopped_on = now - timedelta(seconds=seconds), now
            _changed.notify_all()
        if self._stopped_listeners:
            self.signal_stop()

    def _withdraw(self) -> None:
        """Have it executed again: it was on a worker that is gone, say."""
        with _lock:
            if self._state == TaskState.EXECUTING:
                self._state = TaskState.NEW

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name} {self._state.name.lower()}>"

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        state["_observer"] = None
        return state
