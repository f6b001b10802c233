"""Executes the tasks of one job: waits for events, and has each of them acted on.

`Scheduler.run` does all the work in the thread that calls it, and receives every event from a
queue. So no lock is held while it calls listeners or other user code. Any thread may call `abort`,
`cancel` and `call`.
"""

from __future__ import annotations

import logging
import queue
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from time import monotonic
from typing import Any

from daskbatch import errors
from daskbatch.errors import LifecycleError, SpecError
from daskbatch.execute.jobs.rmi_task import RmiTask
from daskbatch.execute.jobs.task import Task, claim, release_claim
from daskbatch.execute.jobs.task_state import TaskState
from daskbatch.execute.running.calls import CallSequence, EngineCall, kind_of
from daskbatch.execute.running.event_handlers import EventHandlers
from daskbatch.execute.running.events import Aborted, Event, TaskMarked, WorkersChanged
from daskbatch.execute.running.job_state import JobState
from daskbatch.execute.running.launcher import Launcher
from daskbatch.execute.running.worker_pool import WorkerPool
from daskbatch.execute.workers.worker import Worker
from daskbatch.execute.workers.worker_watch import WorkerSet
from daskbatch.serialization.safe_text import callable_name
from daskbatch.timeouts import Deadline

_logger = logging.getLogger("daskbatch")

#: The time between two checks for conditions that no event reports.
_POLL_INTERVAL_SECONDS = 0.05

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
        tasks = list(tasks)
        context = next((task.ctx for task in tasks if task.ctx is not None), None)
        self._set_up(context, tasks, done, workers, concurrency, attempts)

    @classmethod
    def _of_context(
        cls,
        context: Any,
        tasks: Sequence[Task],
        done: Callable[[Task | BaseException | None], object],
        workers: Sequence[Worker] | None,
        concurrency: int,
        attempts: int,
    ) -> Scheduler:
        """Return a scheduler that executes tasks by a context, whatever the `ctx` of the tasks."""
        scheduler = cls.__new__(cls)
        scheduler._set_up(context, list(tasks), done, workers, concurrency, attempts)
        return scheduler

    def _set_up(
        self,
        context: Any,
        tasks: list[Task],
        done: Callable[[Task | BaseException | None], object],
        workers: Sequence[Worker] | None,
        concurrency: int,
        attempts: int,
    ) -> None:
        require_count("concurrency", concurrency)
        require_count("attempts", attempts)
        if workers is not None and (isinstance(workers, str) or not isinstance(workers, Iterable)):
            raise SpecError(f"workers= must be a sequence of workers, not {workers!r}")
        self._tasks = tasks
        self._done = done
        selected = None if workers is None else list(workers)
        kinds = [_kind(task) for task in self._tasks]
        durations = None if context is None else context._durations
        self._state = JobState(self._tasks, kinds, concurrency, attempts, durations, done)
        engine = self._watch = None
        if context is not None:
            engine, self._watch = context._open_engine(_name_of(self._tasks))
        elif not selected:
            raise LifecycleError(
                "the job has no workers and no context: pass workers, or give the tasks a ctx"
            )
        elif any(isinstance(task, RmiTask) for task in self._tasks):
            raise LifecycleError("an RmiTask needs a context: give it as ctx")
        self._is_restricted = selected is not None
        self._assigner = self._state.assigner
        self._progress = self._state.progress
        # A `SimpleQueue`, since a finalizer may also put to it, at any point of any thread.
        self._inbox: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._launcher = Launcher(
            self._tasks, kinds, engine, self._state.last_worker, self._inbox.put
        )
        self._pool = WorkerPool(self._assigner, selected, concurrency, self._watch)
        query_workers = _nothing if self._watch is None else self._watch.workers_changed
        self._handlers = EventHandlers(
            self._tasks, self._state, self._launcher, self._pool, query_workers
        )
        self._ended = self._has_claimed = False
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
        called = EngineCall(
            *(method, tuple(args), dict(kwargs or {})),
            name=name or callable_name(method),
            kind=kind_of(method),
            on_over=_nothing,
        )
        releases_slot = self._pool.must_release_slot(worker)
        return self._launcher.call(
            CallSequence(worker.address, object(), releases_slot, (), [called])
        )

    # -- the thread of `run` --------------------------------------------------------------

    def _begin(self) -> None:
        claim(self._tasks, partial(_post_mark, weakref.ref(self)))
        self._has_claimed = True
        if self._watch is not None:
            self._watch.add_listener(self._post_workers)
            self._handlers.handle(WorkersChanged(self._watch.current()))
        else:
            self._pool.add_fixed()
        if self._is_restricted and not self._assigner.workers and not self._pool.departed:
            raise LifecycleError("none of the workers that the job may use is connected")
        self._state.begin(self._pool.departed)
        self._flush()

    def _step(self) -> None:
        executions = self._assigner.assign(monotonic())
        for execution in executions:
            self._progress.executing(execution.task)
        self._launcher.start(self, executions)
        try:
            event = self._inbox.get(timeout=self._seconds_to_wait())
        except queue.Empty:
            self._handlers.check_overdue()
            return
        while True:
            self._handlers.handle(event)
            if self._state.failure is not None:
                return
            try:
                event = self._inbox.get_nowait()
            except queue.Empty:
                break
        self._handlers.mark_first_executions()
        self._flush()
        if self._launcher.orphans:
            self._handlers.check_overdue()

    def _seconds_to_wait(self) -> float | None:
        seconds = self._pool.seconds_to_wait()
        if self._launcher.orphans or self._assigner.may_be_held_up():
            return _POLL_INTERVAL_SECONDS
        return seconds

    def _post_workers(self, workers: WorkerSet) -> None:
        self._inbox.put(WorkersChanged(workers))

    # -- the end --------------------------------------------------------------------------

    def _end(self) -> None:
        self._ended = True
        try:
            self._stop_all()
        except Exception:
            _logger.exception("an error occurred while a job was stopped")
        if self._has_claimed:
            for task in self._tasks:
                if task.pending:
                    task._complete(None, None, TaskState.CANCELLED)
            release_claim(self._tasks)
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


def _name_of(tasks: Sequence[Task]) -> str:
    """Return the name of a job's tasks on Dask's dashboard."""
    for task in tasks:
        if isinstance(task, RmiTask):
            return callable_name(task.method)
    return "job"
