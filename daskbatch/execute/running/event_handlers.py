"""Acts on the events of a job that is being executed: ends of calls, marks, changes of workers.

The thread of the scheduler calls it, and holds no lock: so it may call listeners and other user
code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

from daskbatch import errors
from daskbatch.errors import WorkerLost
from daskbatch.execute.jobs.task import Task
from daskbatch.execute.jobs.task_state import TaskState
from daskbatch.execute.running.calls import CallOutcome, Ending
from daskbatch.execute.running.events import (
    Aborted,
    CallOver,
    CallStarted,
    Event,
    ExecuteReturned,
    OutcomeKnown,
    TaskMarked,
    WorkersChanged,
)
from daskbatch.execute.running.job_state import JobState
from daskbatch.execute.running.launcher import Launcher
from daskbatch.execute.running.worker_pool import WorkerPool
from daskbatch.execute.scheduling.execution import Execution
from daskbatch.execute.scheduling.progress import Stage
from daskbatch.execute.scheduling.worker_queues import WorkerQueue


class EventHandlers:
    """Applies each event to the state of a job.

    Only the thread of the scheduler uses it.

    Parameters
    ----------
    tasks : sequence of Task
        The tasks of the job.
    state : JobState
        The state of the job.
    launcher : Launcher
        The executions that are not over.
    pool : WorkerPool
        The workers of the job.
    query_workers : callable
        Is called when the list of the workers may be out of date.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        state: JobState,
        launcher: Launcher,
        pool: WorkerPool,
        query_workers: Callable[[], object],
    ) -> None:
        self._tasks = tasks
        self._state = state
        self._launcher = launcher
        self._pool = pool
        self._query_workers = query_workers
        self._assigner = state.assigner
        #: The queues in which an execution has ended since the last `mark_first_executions`.
        self._advanced: set[WorkerQueue] = set()
        self._handlers: dict[type, Callable[[Any], None]] = {
            CallOver: self._on_call_over,
            OutcomeKnown: self._on_outcome,
            ExecuteReturned: self._on_returned,
            CallStarted: self._on_call_started,
            TaskMarked: self._on_mark,
            WorkersChanged: self._on_workers,
            Aborted: self._on_abort,
        }

    def handle(self, event: Event) -> None:
        """Act on one event."""
        self._handlers[type(event)](event)

    def mark_first_executions(self) -> None:
        """Mark the executions as begun that have become the first of their queues."""
        for queue in self._advanced:
            if queue.head is not None:
                self._launcher.note_begun(queue.head)
        self._advanced.clear()

    def check_overdue(self) -> None:
        """Act on what no event reports: overdue executions, lost workers, the wait for a worker."""
        launcher = self._launcher
        launcher.take_back(self._assigner.held_up(monotonic()))
        launcher.look_after_orphans()
        self._pool.warn_if_empty()
        overdue = self._pool.overdue()
        if overdue is not None:
            waiting = [*launcher.current, *self._assigner.ready()][:5]
            names = ", ".join(str(self._tasks[each].name) for each in waiting)
            self._state.failure = WorkerLost(f"no worker that may execute {names} {overdue}")

    # -- calls ----------------------------------------------------------------------------

    def _on_call_started(self, event: CallStarted) -> None:
        if not self._pool.has_address(event.future.worker):
            self._launcher.adopt(event.future)

    def _on_returned(self, event: ExecuteReturned) -> None:
        """Mark a task as executing if its own `execute` has not done so."""
        execution = event.execution
        task = self._tasks[execution.task]
        current = self._launcher.current.get(execution.task) is execution
        if current and not (task.pending or task.succeeded or task.cancelled):
            task.set_executing(execution.worker)

    def _on_call_over(self, event: CallOver) -> None:
        execution = event.execution
        if self._launcher.orphans:
            self._launcher.orphans.pop(execution, None)
        self._assigner.over(execution, monotonic())
        self._advanced.add(execution.queue)
        if self._launcher.current.get(execution.task) is execution:
            outcome = self._launcher.outcome(execution)
            if outcome is not None:
                self._end_execution(execution, outcome)

    def _on_outcome(self, event: OutcomeKnown) -> None:
        if self._launcher.current.get(event.execution.task) is event.execution:
            self._end_execution(event.execution, event.outcome)

    def _end_execution(self, execution: Execution, outcome: CallOutcome) -> None:
        position = execution.task
        del self._launcher.current[position]
        if execution.record is None:
            self._assigner.over(execution, monotonic())
        task = self._tasks[position]
        if outcome.ending is Ending.RETURNED:
            self._complete(execution, task, outcome)
            if task.succeeded:
                self._state.succeed(position)
            return
        if execution.record is not None and outcome.ending is not Ending.CANCELLED:
            self._launcher.note_begun(execution)
        if outcome.ending is Ending.RAISED:
            assert outcome.error is not None
            self._state.fail(position, outcome.error, execution.worker)
        elif outcome.ending is not Ending.SERVICE_LOST:
            # One death at most counts: the engine may also have placed the task on another worker
            # that died, but the task cannot have run there.
            deaths = int(execution.died or outcome.deaths > 0)
            self._state.lose(position, deaths, outcome.error)
            if outcome.ending is Ending.LOST:
                self._query_workers()
        else:
            self._state.failure = outcome.error

    def _complete(self, execution: Execution, task: Task, outcome: CallOutcome) -> None:
        if execution.record is None:
            task._complete(outcome.value, None, TaskState.SUCCEEDED)
            return
        durations = self._assigner.durations
        durations.learn(execution.kind, outcome.seconds)
        if outcome.large:
            durations.learn_large(execution.kind)
        self._state.last_worker[execution.task] = execution.worker
        if execution.begun:
            task._complete(outcome.value, None, TaskState.SUCCEEDED, seconds=outcome.seconds)
        else:
            task._complete_at_once(execution.worker, outcome.value, outcome.seconds)

    # -- the user's code, and the cluster --------------------------------------------------

    def _on_mark(self, event: TaskMarked) -> None:
        position = event.position
        task, done = self._tasks[position], self._state.progress.stages[position] == Stage.DONE
        state, error = task._outcome.state, task._outcome.error
        if state in (TaskState.NEW, TaskState.EXECUTING):
            return  # the task has been started again since then
        if state == TaskState.CANCELLED:
            self._state.report(position)
            self._state.failure = errors.TaskCancelled(f"{task.name} was cancelled")
            return
        if state == TaskState.SUCCEEDED and done:
            return
        execution = self._launcher.revoke(position)
        if execution is not None and execution.record is None:
            self._assigner.over(execution, monotonic())
        if state == TaskState.SUCCEEDED:
            self._assigner.discard(position)
            self._state.succeed(position)
        else:
            assert error is not None
            self._state.mark_failed(position, error)

    def _on_workers(self, event: WorkersChanged) -> None:
        joined, departed = self._pool.update(event.workers)
        for worker in departed:
            self._launcher.worker_gone(worker)
        if joined:
            self._state.ask_again(joined)

    def _on_abort(self, event: Aborted) -> None:
        self._state.failure = event.error
        if event.cancels_tasks:
            for task in self._tasks:
                task.cancel()
