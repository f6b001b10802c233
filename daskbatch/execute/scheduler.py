"""Executes the tasks of one job: waits for events, and acts on each of them.

`run` does all the work in the thread that calls it, and receives every event from a queue. So no
lock is held while it calls listeners or other user code. Any thread may call `abort`, `cancel`
and `call`.
"""

from __future__ import annotations

import logging
import queue
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Any

from daskbatch import config, errors
from daskbatch.errors import LifecycleError, SpecError, WorkerLost
from daskbatch.execute.assigner import Execution
from daskbatch.execute.engine import CallOutcome, Ending, EngineCall, LaneCalls, kind_of
from daskbatch.execute.events import (
    Aborted,
    CallOver,
    CallStarted,
    Event,
    ExecuteReturned,
    OutcomeKnown,
    TaskMarked,
    WorkersChanged,
)
from daskbatch.execute.job_state import JobState
from daskbatch.execute.lanes import Lane
from daskbatch.execute.launcher import Launcher
from daskbatch.execute.progress import Stage
from daskbatch.execute.rmi_task import RmiTask
from daskbatch.execute.task import Task, TaskState
from daskbatch.execute.worker import Worker
from daskbatch.execute.worker_watch import WorkerSet
from daskbatch.serialization.safe_text import callable_name
from daskbatch.timeouts import Deadline

_logger = logging.getLogger("daskbatch")

#: The time between two checks for conditions that no event reports.
_POLL_INTERVAL_SECONDS = 0.05

#: The longest time between two checks whether tasks have waited too long for a worker.
_WORKER_POLL_INTERVAL_SECONDS = 1.0

#: How long a job that ends waits for its cancelled tasks to end.
_STOP_TIMEOUT_SECONDS = 0.5


class Scheduler:
    """Executes tasks in the order of their dependencies and priorities, and by their locality.

    Its cost grows with the number of dependencies. If each of ``n`` tasks must run before each of
    ``m`` others, put one task, a barrier, between the two groups: this takes ``n + m``
    dependencies in place of ``n * m``.

    Any thread may call `abort`, `cancel` and `call`; one thread calls `run`, once.

    Parameters
    ----------
    tasks : sequence of Task
        The tasks.
    done : callable
        Is called, in the thread of `run`, once with each task that is over, and at the end with
        None. If the job fails, it is called with the exception before it is called with None.
    workers : sequence of Worker, or None
        The workers that may execute the tasks; None for all workers of the tasks' context,
        including those that join later.
    concurrency : int
        How many tasks to execute at a time on each worker.
    attempts : int
        How often a task is executed at most if its own code fails.

    Raises
    ------
    SpecError
        A parameter is wrong, or the tasks do not form a graph; see `TaskGraph`. It is a
        `ValueError`.

    Examples
    --------
    >>> from daskbatch.execute import RmiTask
    >>> tasks = [RmiTask(ctx, number, pow, (number, 2)) for number in range(3)]
    >>> over = []
    >>> Scheduler(tasks, over.append, ctx.workers).run()
    >>> [task.result() for task in tasks], len(over), over[-1]
    ([0, 1, 4], 4, None)
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        done: Callable[[Task | BaseException | None], object],
        workers: Sequence[Worker] | None,
        concurrency: int = 1,
        attempts: int = 1,
    ) -> None:
        require_count("concurrency", concurrency)
        require_count("attempts", attempts)
        self._tasks = list(tasks)
        self._done = done
        self._concurrency = concurrency
        self._allowed = None if workers is None else list(workers)
        kinds = [_kind(task) for task in self._tasks]
        context = next((task.ctx for task in self._tasks if task.ctx is not None), None)
        durations = None if context is None else context._durations
        self._state = JobState(self._tasks, kinds, concurrency, attempts, durations, done)
        engine = self._watch = None
        if context is not None:
            engine, self._watch = context._open_engine(_name_of(self._tasks))
        elif not self._allowed:
            raise LifecycleError(
                "the job has no workers and no context: pass workers, or give the tasks a ctx"
            )
        elif any(isinstance(task, RmiTask) for task in self._tasks):
            raise LifecycleError("an RmiTask needs a context: give it as ctx")
        self._assigner = self._state.assigner
        self._progress = self._state.progress
        # A `SimpleQueue`, since a finalizer may also put to it, at any point of any thread.
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._launcher = Launcher(
            self._tasks, kinds, engine, self._state.last_worker, self._inbox.put
        )
        self._handlers: dict[type, Callable[[Any], None]] = {
            CallOver: self._on_call_over,
            OutcomeKnown: self._on_outcome,
            ExecuteReturned: self._on_returned,
            CallStarted: self._on_call_started,
            TaskMarked: self._on_mark,
            WorkersChanged: self._on_workers,
            Aborted: self._on_abort,
        }
        self._threads: dict[Any, int | None] = {}
        #: The lanes in which an execution has ended in the current step.
        self._advanced_lanes: set[Lane] = set()
        #: When the job fails, if by then no worker has joined that may execute its tasks; None
        #: while no task waits for a worker.
        self._placement_deadline: Deadline | None = None
        self._ended = False
        #: Passes on the messages to `done`, if `done` collects them; see `results.Outbox`.
        self._flush: Callable[[], object] = getattr(done, "flush", _nothing)

    # -- any thread -----------------------------------------------------------------------

    def run(self) -> None:
        """Execute the tasks, and return when all are over or the job has failed."""
        try:
            self._begin()
            while self._progress.unfinished and self._state.failure is None:
                self._step()
        except Exception as error:
            self._state.failure = error
        except BaseException as error:
            self._state.failure = error
            raise
        finally:
            self._end()

    def abort(self, exc: BaseException | None = None) -> None:
        """End the job: cancel all its unfinished tasks, without waiting until they have ended.

        Parameters
        ----------
        exc : Exception, optional
            The exception to call `done` with; by default a `concurrent.futures.CancelledError`.
        """
        error = exc or errors.TaskCancelled("the job was cancelled")
        self._inbox.put(Aborted(error, cancels_tasks=False))

    def cancel(self, why: str) -> None:
        """End the job as `abort` does, and mark all tasks that are not done as cancelled.

        Parameters
        ----------
        why : str
            The message of the `concurrent.futures.CancelledError`.
        """
        self._inbox.put(Aborted(errors.TaskCancelled(why), cancels_tasks=True))

    def call(
        self,
        worker: Worker,
        method: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Future[Any]:
        """Call a method on a worker; for a subclass of `Task`, which calls this in `execute`.

        Parameters
        ----------
        worker : Worker
            The worker.
        method, args, kwargs
            The method to call, and its arguments.
        name : str, optional
            The name of the call in messages; by default the method's name.

        Returns
        -------
        concurrent.futures.Future
            The future of the method's return value. If it is cancelled, the method is stopped.

        Raises
        ------
        LifecycleError
            No task of the job has a context.
        TaskCancelled
            The job has ended.
        """
        if self._ended:
            raise errors.TaskCancelled("the job has ended")
        threads = self._threads.get(worker)
        called = EngineCall(
            *(method, tuple(args), dict(kwargs or {})),
            name=name or callable_name(method),
            kind=kind_of(method),
            told=_nothing,
        )
        releases_slot = threads is not None and self._concurrency > threads
        return self._launcher.call(LaneCalls(worker.address, object(), releases_slot, (), [called]))

    # -- the thread of `run` --------------------------------------------------------------

    def _begin(self) -> None:
        observer = partial(_post_mark, weakref.ref(self))
        for task in self._tasks:
            task._observer = observer
        if self._watch is not None:
            self._watch.add_listener(self._post_workers)
            self._on_workers(WorkersChanged(self._watch.current()))
        else:
            for worker in self._allowed or ():
                self._add_worker(worker, None)
        if not self._assigner.workers and self._allowed is not None:
            raise LifecycleError("none of the workers that the job may use is connected")
        self._state.begin()
        self._flush()

    def _step(self) -> None:
        executions = self._assigner.assign(monotonic())
        for execution in executions:
            self._progress.executing(execution.task)
        self._launcher.start(self, executions)
        try:
            event = self._inbox.get(timeout=self._seconds_to_wait())
        except queue.Empty:
            self._check_overdue()
            return
        while True:
            self._handlers[type(event)](event)
            if self._state.failure is not None:
                return
            try:
                event = self._inbox.get_nowait()
            except queue.Empty:
                break
        for lane in self._advanced_lanes:
            if lane.head is not None:
                self._launcher.note_begun(lane.head)
        self._advanced_lanes.clear()
        self._flush()
        if self._launcher.orphans:
            self._check_overdue()

    def _seconds_to_wait(self) -> float | None:
        needs_worker = not self._assigner.workers or bool(self._assigner.stranded)
        if not needs_worker:
            self._placement_deadline = None
        elif self._placement_deadline is None:
            never = config.get("unmet-timeout") is None
            self._placement_deadline = Deadline(
                None if never else config.get_seconds("unmet-timeout")
            )
        if self._launcher.orphans or self._assigner.may_be_held_up():
            return _POLL_INTERVAL_SECONDS
        return (
            None
            if self._placement_deadline is None
            else self._placement_deadline.remaining(_WORKER_POLL_INTERVAL_SECONDS)
        )

    def _check_overdue(self) -> None:
        """Act on what no event reports: overdue executions, lost workers, the wait for a worker."""
        self._launcher.take_back(self._assigner.held_up(monotonic()))
        self._launcher.look_after_orphans()
        if self._placement_deadline is not None and self._placement_deadline.passed:
            waiting = [*self._launcher.current, *self._assigner.ready()][:5]
            names = ", ".join(str(self._tasks[each].name) for each in waiting)
            self._state.failure = WorkerLost(
                f"no worker that may execute {names} has joined within the unmet-timeout"
            )

    # -- events ---------------------------------------------------------------------------

    def _on_abort(self, event: Aborted) -> None:
        self._state.failure = event.error
        if event.cancels_tasks:
            for task in self._tasks:
                task.cancel()

    def _on_call_started(self, event: CallStarted) -> None:
        addresses = {getattr(worker, "address", None) for worker in self._assigner.workers}
        if event.future.worker not in addresses:
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
        self._advanced_lanes.add(execution.lane)
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
            if outcome.ending is Ending.LOST and self._watch is not None:
                self._watch.workers_changed()
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

    def _on_mark(self, event: TaskMarked) -> None:
        position = event.position
        task, done = self._tasks[position], self._progress.stages[position] == Stage.DONE
        state, error = task._state, task._error
        if state in (TaskState.NEW, TaskState.EXECUTING):
            return  # the task has been started again since then
        if state == TaskState.CANCELLED:
            self._state.tell(position)
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

    def _post_workers(self, workers: WorkerSet) -> None:
        self._inbox.put(WorkersChanged(workers))

    def _on_workers(self, event: WorkersChanged) -> None:
        connected = {
            worker: threads
            for worker, threads in event.workers.threads.items()
            if self._allowed is None or _is_allowed(worker, self._allowed)
        }
        for worker in [each for each in self._assigner.workers if each not in connected]:
            self._assigner.remove_worker(worker)
            self._launcher.worker_gone(worker)
        joined = [worker for worker in connected if worker not in self._threads]
        for worker in joined:
            self._add_worker(worker, connected[worker])
        self._threads = dict(connected)
        if joined:
            self._state.ask_again(joined)
            self._placement_deadline = None

    def _add_worker(self, worker: Any, threads: int | None) -> None:
        self._threads[worker] = threads
        self._assigner.add_worker(worker, bulk=threads is None or self._concurrency <= threads)

    # -- the end --------------------------------------------------------------------------

    def _end(self) -> None:
        self._ended = True
        try:
            self._stop_all()
        except Exception:
            _logger.exception("an error occurred while a job was stopped")
        for task in self._tasks:
            task._observer = None
            if task.pending:
                task._complete(None, None, TaskState.CANCELLED)
        if self._watch is not None:
            self._watch.remove_listener(self._post_workers)
        self._launcher.close()
        if self._state.failure is not None:
            self._done(self._state.failure)
        self._done(None)

    def _stop_all(self) -> None:
        """Cancel all executions, and wait a short time until they have ended."""
        records = self._launcher.cancel_all()
        deadline = Deadline(_STOP_TIMEOUT_SECONDS)
        while not all(record.over for record in records) and not deadline.passed:
            try:
                self._inbox.get(timeout=deadline.remaining(_POLL_INTERVAL_SECONDS))
            except queue.Empty:
                continue


def require_count(name: str, value: object) -> None:
    """Raise `SpecError` if a number is not a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"{name}= must be a whole number from 1, not {value!r}")


def _nothing() -> None:
    pass


def _kind(task: Task) -> Any:
    """Return a task's kind if the engine calls its method directly; None for other tasks."""
    if isinstance(task, RmiTask) and type(task).execute is RmiTask.execute:
        return kind_of(task.method)
    return None


def _post_mark(this: weakref.ref[Scheduler], task: Task) -> None:
    scheduler = this()
    if scheduler is not None:
        scheduler._inbox.put(TaskMarked(scheduler._state.graph.positions[task.id]))


def _is_allowed(worker: Worker, allowed: Sequence[Any]) -> bool:
    # A worker that was restarted has the same name, and another address.
    return any(
        worker == each or worker.name == getattr(each, "name", each) or worker.address == each
        for each in allowed
    )


def _name_of(tasks: Sequence[Task]) -> str:
    """Return the name of a job's tasks on Dask's dashboard."""
    for task in tasks:
        if isinstance(task, RmiTask):
            return callable_name(task.method)
    return "job"
