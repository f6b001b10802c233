"""Executes the tasks of one job: what happens, and what follows from it.

`run` does everything in the thread that calls it, and is told of all that happens by a queue. So
no lock is held when listeners, or other code of the user's, are called. Any thread may call
`abort` and `call`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import takewhile
from time import monotonic
from typing import Any

from daskbatch import config, errors
from daskbatch.errors import GraphError, LifecycleError, SpecError, WorkerLost
from daskbatch.execute.assigner import Assigner, Execution
from daskbatch.execute.driver_future import DriverFuture, when_done
from daskbatch.execute.engine import CallOutcome, Ending, EngineCall, kind_of
from daskbatch.execute.exceptions import DependenciesFailed, FailedDependency
from daskbatch.execute.graph import TaskGraph
from daskbatch.execute.helper_threads import HelperThreads
from daskbatch.execute.lanes import Lane
from daskbatch.execute.progress import Change, JobProgress, Stage
from daskbatch.execute.rmi_task import RmiTask
from daskbatch.execute.task import Task, TaskState
from daskbatch.execute.worker import Worker
from daskbatch.execute.worker_watch import WorkerSet
from daskbatch.timeouts import Deadline

_logger = logging.getLogger("daskbatch")

#: Between two looks at what no event tells of. Seconds.
_LOOK_SECONDS = 0.05

#: Between two looks whether a worker has come for tasks that wait for one. Seconds.
_SLOW_LOOK_SECONDS = 1.0

#: How long the engine may take to say what a worker that is gone had done. Seconds.
_TOLD_SECONDS = 2.0

#: How long tasks that are cancelled are given to end. Seconds.
_STOP_SECONDS = 0.5


class Scheduler:
    """Executes tasks with regard to their dependencies, priorities and locality.

    What it costs grows with the number of dependencies. Where each of ``n`` tasks must come
    before each of ``m`` others, let a task in between, a barrier, stand for all of them: that is
    ``n + m`` dependencies, not ``n * m``.

    Parameters
    ----------
    tasks : sequence of Task
        The tasks.
    done : callable
        Called, in the thread of `run`, with each task that is over, once; then with None. If the
        job is given up, it is called with the exception before that.
    workers : sequence of Worker, or None
        Where the tasks may be executed; None for all workers of the tasks' context, also those
        that join later.
    concurrency : int
        How many tasks to execute at a time on each worker.
    attempts : int
        How often a task is tried that fails by itself.

    Raises
    ------
    SpecError
        A parameter is wrong; it is a `ValueError`. Or the tasks are no graph; see `TaskGraph`.

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
        self._graph = TaskGraph(self._tasks)
        most = int(config.get("execute.max-reexecutions"))
        self._progress = JobProgress(self._graph, attempts, most)
        self._plain = [
            isinstance(task, RmiTask) and type(task).execute is RmiTask.execute
            for task in self._tasks
        ]
        self._kinds = [
            kind_of(task.method) if isinstance(task, RmiTask) and plain else None
            for task, plain in zip(self._tasks, self._plain, strict=True)
        ]
        self._asks = [type(task).locality is not Task.locality for task in self._tasks]
        context = next((task.ctx for task in self._tasks if task.ctx is not None), None)
        self._given = None if workers is None else list(workers)
        self._engine = self._watch = None
        durations = None if context is None else context._durations
        self._assigner = Assigner(self._graph.ranks, self._kinds, concurrency, durations)
        if context is not None:
            self._engine, self._watch = context._open_engine(_name_of(self._tasks))
        elif not self._given:
            raise LifecycleError("no workers are available")
        elif any(isinstance(task, RmiTask) for task in self._tasks):
            raise LifecycleError("an RmiTask needs a context: give it as ctx")
        self._inbox: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        self._helpers = HelperThreads("daskbatch-job-helper")
        #: The execution of each task that is given to a worker.
        self._current: dict[int, Execution] = {}
        self._last_worker: dict[int, Any] = {}
        self._threads: dict[Any, int | None] = {}
        #: The executions whose workers are gone, and since when.
        self._orphans: dict[Execution | DriverFuture, Deadline] = {}
        self._calls: set[DriverFuture] = set()
        self._told: set[int] = set()
        #: The lanes of which something was over since the last look.
        self._advanced: set[Lane] = set()
        self._failure: BaseException | None = None
        self._unplaced: Deadline | None = None
        self._ended = False

    # -- any thread -----------------------------------------------------------------------

    def run(self) -> None:
        """Execute the tasks, and return when all are over or the job is given up."""
        try:
            self._begin()
            while self._progress.unfinished and self._failure is None:
                self._step()
        except Exception as error:
            self._failure = error
        except BaseException as error:
            self._failure = error
            raise
        finally:
            self._end()

    def abort(self, exc: BaseException | None = None) -> None:
        """Give the job up: all that is not over is cancelled. Does not wait for that.

        Parameters
        ----------
        exc : Exception, optional
            What `done` is called with; by default a `concurrent.futures.CancelledError`.
        """
        # A queue that even a finalizer may put to, whatever its thread was doing.
        self._inbox.put((self._take_abort, exc or errors.TaskCancelled("the job was cancelled")))

    def cancel(self, why: str) -> None:
        """Give the job up with a `concurrent.futures.CancelledError`; see `abort`."""
        self._inbox.put((self._take_cancel, errors.TaskCancelled(why)))

    def call(
        self,
        worker: Worker,
        method: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        name: str | None = None,
    ) -> Future[Any]:
        """Call a method on a worker; for the `execute` of tasks of one's own.

        Parameters
        ----------
        worker : Worker
            The worker.
        method, args, kwargs
            What is called.
        name : str, optional
            What messages call it.

        Returns
        -------
        concurrent.futures.Future
            Of what the method returns. To cancel it stops the method.
        """
        if self._engine is None:
            raise LifecycleError("a method is called on a worker by a task that has a context")
        if self._ended:
            raise errors.TaskCancelled("the job has ended")
        described = EngineCall(
            worker.address,
            object(),
            self._releases_slot(worker),
            method,
            tuple(args),
            dict(kwargs or {}),
            name or str(getattr(method, "__name__", type(method).__name__)),
            kind_of(method),
        )
        future = DriverFuture.start(self._engine, described, self._calls, self._helpers)
        self._inbox.put((self._take_call, future))
        return future

    # -- the thread of `run` --------------------------------------------------------------

    def _begin(self) -> None:
        observer = partial(_put, weakref.ref(self))
        for task in self._tasks:
            task._observer = observer
        if self._watch is not None:
            self._watch.add_listener(self._workers_listener)
            self._take_workers(self._watch.current())
        else:
            for worker in self._given or ():
                self._add_worker(worker, None)
        if not self._assigner.workers and self._given is not None:
            raise LifecycleError("none of the workers that the job was given is there")
        for task in self._tasks:
            task._require_not_cancelled()
        done = [position for position, task in enumerate(self._tasks) if task.succeeded]
        ready = self._progress.begin(done)
        for position in done:
            self._tell(position)
        asking = [
            position
            for position, asks in enumerate(self._asks)
            if asks and self._progress.stages[position] != Stage.DONE
        ]
        for position in asking:
            self._ask_locality(position, self._assigner.workers)
            if self._assigner.workers and self._assigner.is_forbidden_everywhere(position):
                self._refuse(position)
                return
        self._assigner.add(ready)

    def _step(self) -> None:
        self._start(self._assigner.assign(monotonic()))
        try:
            event = self._inbox.get(timeout=self._seconds_to_wait())
        except queue.Empty:
            self._look()
            return
        while True:
            handle, *args = event
            handle(*args)
            if self._failure is not None:
                return
            try:
                event = self._inbox.get_nowait()
            except queue.Empty:
                break
        self._note_advanced()
        if self._orphans:
            self._look()

    def _seconds_to_wait(self) -> float | None:
        if self._orphans or self._assigner.may_be_held_up():
            return _LOOK_SECONDS
        waits = not self._current and bool(self._assigner.ready())
        if not waits and not self._assigner.stranded:
            self._unplaced = None
            return None
        if self._unplaced is None:
            seconds = config.get("unmet-timeout")
            self._unplaced = Deadline(
                None if seconds is None else config.get_seconds("unmet-timeout")
            )
        return self._unplaced.left(_SLOW_LOOK_SECONDS)

    def _look(self) -> None:
        """Do what is due without an event."""
        held_up = self._assigner.held_up(monotonic())
        if held_up and self._engine is not None:
            self._take_back(held_up)
        for execution, deadline in list(self._orphans.items()):
            if self._engine is None or execution.record is None:
                continue
            told = self._engine.has_moved(execution.record, execution.block)
            if told or deadline.passed:
                del self._orphans[execution]
                execution.died = execution.begun and not told
                self._take_back([execution])
        if self._unplaced is not None and self._unplaced.passed:
            names = ", ".join(str(self._tasks[each].name) for each in self._assigner.ready()[:5])
            self._failure = WorkerLost(f"no worker has come that may execute {names}")

    def _take_back(self, executions: Sequence[Execution | DriverFuture]) -> None:
        """Ask for executions back that have not begun; the answer is that they are cancelled."""
        records = []
        for execution in executions:
            execution.taken_back = True
            if execution.record is not None:
                records.append(execution.record)
        if records and self._engine is not None:
            self._helpers.do(partial(self._engine.cancel, records, False))

    # -- starting -------------------------------------------------------------------------

    def _start(self, executions: Sequence[Execution]) -> None:
        remote: list[Execution] = []
        for execution in executions:
            position = execution.task
            self._progress.executing(position)
            self._current[position] = execution
            if self._plain[position]:
                remote.append(execution)
            else:
                execution.begun = True
                self._last_worker[position] = execution.worker
                self._helpers.do(partial(self._execute_here, execution))
        if remote:
            self._start_remote(remote)

    def _start_remote(self, executions: Sequence[Execution]) -> None:
        assert self._engine is not None
        calls = []
        before: dict[Lane, bool] = {}
        for execution in executions:
            task = self._tasks[execution.task]
            assert isinstance(task, RmiTask)
            lane = execution.lane
            earlier = () if lane in before else _records_before(execution)
            before[lane] = True
            call = EngineCall(
                lane.worker.address,
                lane.number,
                not lane.bulk,
                task.method,
                task.args,
                task.kwargs,
                str(task.name),
                self._kinds[execution.task],
            )
            calls.append((call, earlier))
        put, take = self._inbox.put, self._take_over

        def over(position: int, record: Any) -> None:
            put((take, executions[position]))

        records = self._engine.start(calls, over)
        for execution, record in zip(executions, records, strict=True):
            execution.record, execution.block = record, record.block
            if execution.lane.head is execution:
                self._note_begun(execution)

    def _note_begun(self, execution: Execution) -> None:
        """Count an execution as executing: it is the first of its lane."""
        if execution.begun:
            return
        execution.begun = True
        self._last_worker[execution.task] = execution.worker
        # If it was cancelled or marked meanwhile, an event says so.
        with contextlib.suppress(errors.TaskCancelled, LifecycleError):
            self._tasks[execution.task].set_executing(execution.worker)

    def _execute_here(self, execution: Execution) -> None:
        """Execute a task of the user's own; in a helper thread."""
        task = self._tasks[execution.task]
        try:
            execution.future = task.execute(self, execution.worker)
        except BaseException as error:
            self._inbox.put((self._take_executing, execution))
            self._put_outcome(execution, None, error)
            return
        self._inbox.put((self._take_executing, execution))
        if execution.future is not None:
            when_done(execution.future, partial(self._put_outcome, execution))

    def _put_outcome(self, execution: Execution, value: Any, error: BaseException | None) -> None:
        ending = Ending.RETURNED if error is None else Ending.RAISED
        deaths = 0
        if isinstance(error, WorkerLost):
            ending, deaths = Ending.LOST, 1
        outcome = CallOutcome(ending, value, error, 0.0, deaths)
        self._inbox.put((self._take_outcome, execution, outcome))

    # -- events ---------------------------------------------------------------------------

    def _take_abort(self, error: BaseException) -> None:
        self._failure = error

    def _take_cancel(self, error: BaseException) -> None:
        self._failure = error
        for task in self._tasks:
            if not task.done:
                task.cancel()

    def _take_call(self, future: DriverFuture) -> None:
        if future.worker not in {worker.address for worker in self._assigner.workers}:
            self._orphans[future] = Deadline(_TOLD_SECONDS)

    def _take_executing(self, execution: Execution) -> None:
        """Count a task of the user's own as executing, if it has not said so itself."""
        task = self._tasks[execution.task]
        current = self._current.get(execution.task) is execution
        if current and not (task.pending or task.succeeded or task.cancelled):
            task.set_executing(execution.worker)

    def _take_over(self, execution: Execution) -> None:
        """Handle that a call of the engine is over."""
        if self._orphans:
            self._orphans.pop(execution, None)
        self._assigner.over(execution, monotonic())
        self._advanced.add(execution.lane)
        if self._current.get(execution.task) is not execution:
            return
        engine = self._engine
        assert engine is not None
        if engine.is_far(execution.record):
            self._note_begun(execution)
            self._helpers.do(partial(self._fetch, execution))
        else:
            self._take_outcome(execution, engine.outcome(execution.record))

    def _note_advanced(self) -> None:
        """Count what is the first of its lane by now as executing."""
        for lane in self._advanced:
            if lane.head is not None:
                self._note_begun(lane.head)
        self._advanced.clear()

    def _fetch(self, execution: Execution) -> None:
        """Bring a large value here; in a helper thread."""
        assert self._engine is not None
        outcome = self._engine.outcome(execution.record)
        if self._engine.is_large(execution.record):
            self._assigner.durations.learn_large(execution.kind)
        self._inbox.put((self._take_outcome, execution, outcome))

    def _take_outcome(self, execution: Execution, outcome: CallOutcome) -> None:
        position = execution.task
        if self._current.get(position) is not execution:
            return
        self._drop(execution)
        task = self._tasks[position]
        if outcome.ending is Ending.RETURNED:
            if execution.record is None:
                task._complete(outcome.value, None, TaskState.SUCCEEDED)
            else:
                self._assigner.durations.learn(execution.kind, outcome.seconds)
                self._last_worker[position] = execution.worker
                if execution.begun:
                    task._complete(
                        outcome.value, None, TaskState.SUCCEEDED, seconds=outcome.seconds
                    )
                else:
                    task._complete_at_once(execution.worker, outcome.value, outcome.seconds)
            if task.succeeded:
                self._succeed(position)
            return
        if execution.record is not None and outcome.ending is not Ending.CANCELLED:
            self._note_begun(execution)
        if outcome.ending == Ending.RAISED:
            assert outcome.error is not None
            self._fail(position, outcome.error, execution.worker)
        elif outcome.ending == Ending.LOST or execution.taken_back:
            self._lose(execution, outcome)
        elif outcome.ending == Ending.SERVICE_LOST:
            self._failure = outcome.error
        elif not task.cancelled:
            self._failure = errors.TaskCancelled("the Batch of the job has ended")

    def _take_mark(self, position: int) -> None:
        """Handle that a task was marked or cancelled from outside."""
        task, stage = self._tasks[position], self._progress.stages[position]
        state, error = task._state, task._error
        if state in (TaskState.NEW, TaskState.EXECUTING):
            return  # it has been started again meanwhile
        if state == TaskState.SUCCEEDED:
            if stage != Stage.DONE:
                self._revoke(position)
                self._assigner.discard(position)
                self._succeed(position)
        elif state == TaskState.CANCELLED:
            self._tell(position)
            self._failure = errors.TaskCancelled(f"{task.name} was cancelled")
        elif isinstance(error, FailedDependency):
            worker = self._last_worker.get(position)
            if worker is not None and error.worker_failed == worker.name:
                self._assigner.lose_worker(worker)
            self._revoke(position)
            self._apply(position, self._progress.dependency_failed(position), error)
        else:
            assert error is not None
            self._revoke(position)
            self._assigner.discard(position)
            for blocked in self._progress.undone(position):
                self._assigner.discard(blocked)
            self._apply(position, self._progress.failed(position), error)

    def _take_workers(self, workers: WorkerSet) -> None:
        there = {
            worker: threads
            for worker, threads in workers.threads.items()
            if self._given is None or _is_given(worker, self._given)
        }
        for worker in [each for each in self._assigner.workers if each not in there]:
            self._assigner.remove_worker(worker)
            for call in list(self._calls):
                if call.worker == worker.address:
                    self._orphans[call] = Deadline(_TOLD_SECONDS)
            for execution in self._current.values():
                if execution.worker == worker and execution.record is not None:
                    self._orphans[execution] = Deadline(_TOLD_SECONDS)
        joined = [worker for worker in there if worker not in self._threads]
        for worker in joined:
            self._add_worker(worker, there[worker])
        self._threads = dict(there)
        if joined:
            for position in self._assigner.ready():
                if self._asks[position]:
                    self._ask_locality(position, joined, more=True)
                    self._assigner.add([position])
            self._unplaced = None

    def _add_worker(self, worker: Any, threads: int | None) -> None:
        self._threads[worker] = threads
        self._assigner.add_worker(worker, bulk=threads is None or self._concurrency <= threads)

    def _releases_slot(self, worker: Worker) -> bool:
        threads = self._threads.get(worker)
        return threads is not None and self._concurrency > threads

    # -- what follows ---------------------------------------------------------------------

    def _succeed(self, position: int) -> None:
        ready = self._progress.succeeded(position)
        self._tell(position)
        if ready:
            self._make_ready(ready)

    def _fail(self, position: int, error: BaseException, worker: Any) -> None:
        if isinstance(error, DependenciesFailed):
            self._fail_dependencies(position, error)
        elif isinstance(error, FailedDependency):
            if worker is not None and error.worker_failed == getattr(worker, "name", None):
                self._assigner.lose_worker(worker)
            self._apply(position, self._progress.dependency_failed(position), error)
        else:
            if worker is not None:
                self._assigner.failed_on(position, worker)
            self._apply(position, self._progress.failed(position), error)

    def _lose(self, execution: Execution, outcome: CallOutcome) -> None:
        position = execution.task
        gone = execution.worker not in self._assigner.workers
        deaths = outcome.deaths or int(execution.died)
        change = self._progress.lost(position, deaths)
        task = self._tasks[position]
        if change.given_up:
            error = outcome.error
            if not isinstance(error, WorkerLost):
                error = WorkerLost(f"{task.name} was lost: workers have died while they ran it")
            self._apply(position, change, error)
            return
        task._withdraw()
        if outcome.ending == Ending.LOST and not gone and self._watch is not None:
            self._watch.workers_changed()
        self._make_ready(change.ready)

    def _fail_dependencies(self, position: int, error: DependenciesFailed) -> None:
        """Have the tasks executed again whose results another one misses."""
        ancestors = self._graph.ancestors(position)
        named: list[int] = []
        marks: dict[int, str | None] = {}
        for worker_name, ids in error.failures.items():
            for each in ids:
                found = self._graph.positions.get(each)
                if found not in ancestors or found is None:
                    unknown = GraphError(
                        f"{self._tasks[position].name} says that the result of task {each!r} is "
                        "missing, which is not one of its dependencies"
                    )
                    unknown.__cause__ = error
                    self._tasks[position]._complete(None, unknown, TaskState.FAILED)
                    self._tell(position)
                    self._failure = unknown
                    return
                last = self._last_worker.get(found)
                if worker_name is not None and last is not None:
                    if getattr(last, "name", None) != worker_name:
                        continue  # it has been executed elsewhere since
                    self._assigner.lose_worker(last)
                named.append(found)
                marks[found] = worker_name
        change = self._progress.dependencies_failed(position, named)
        for each in change.redone:
            mark = FailedDependency(marks[each])
            self._tasks[each]._complete(None, mark, TaskState.FAILED, again=True)
        self._apply(position, change, error)

    def _apply(self, position: int, change: Change, error: BaseException) -> None:
        """Do what follows from the failure of a task."""
        task = self._tasks[position]
        task._complete(None, error, TaskState.FAILED)
        if change.given_up:
            self._tell(position)
            self._failure = error
            return
        for each in change.blocked:
            self._assigner.discard(each)
        self._make_ready(change.ready)

    def _make_ready(self, positions: Sequence[int]) -> None:
        for position in positions:
            if self._asks[position]:
                self._ask_locality(position, self._assigner.workers)
        self._assigner.add(positions)

    def _ask_locality(self, position: int, workers: Sequence[Any], more: bool = False) -> None:
        found = self._tasks[position].locality(tuple(workers))
        self._assigner.set_locality(position, found or (), more)

    def _refuse(self, position: int) -> None:
        task = self._tasks[position]
        error = SpecError(f"{task.name} is forbidden on every worker, by its locality")
        task._complete(None, error, TaskState.FAILED)
        self._tell(position)
        self._failure = error

    def _revoke(self, position: int) -> None:
        """Stop the execution of a task, if it has one: its outcome counts no longer."""
        execution = self._current.get(position)
        if execution is None:
            return
        self._drop(execution)
        if execution.future is not None:
            execution.future.cancel()
        if execution.record is not None and self._engine is not None:
            self._helpers.do(partial(self._engine.cancel, [execution.record]))

    def _drop(self, execution: Execution) -> None:
        self._current.pop(execution.task, None)
        if execution.record is None:
            self._assigner.over(execution, monotonic())

    def _tell(self, position: int) -> None:
        if position not in self._told:
            self._told.add(position)
            self._done(self._tasks[position])

    # -- the end --------------------------------------------------------------------------

    def _end(self) -> None:
        self._ended = True
        try:
            self._stop_all()
        except Exception:
            _logger.exception("a job could not be stopped in good order")
        for task in self._tasks:
            task._observer = None
            if task.pending:
                task._complete(None, None, TaskState.CANCELLED)
        if self._watch is not None:
            self._watch.remove_listener(self._workers_listener)
        self._helpers.close()
        if self._failure is not None:
            self._done(self._failure)
        self._done(None)

    def _stop_all(self) -> None:
        """Cancel what runs, and give it a moment to end."""
        records = []
        for execution in self._current.values():
            if execution.future is not None:
                execution.future.cancel()
            if execution.record is not None:
                records.append(execution.record)
        for call in list(self._calls):
            call.cancel()
        if not records or self._engine is None:
            return
        self._engine.cancel(records)
        deadline = Deadline(_STOP_SECONDS)
        while not all(record.over for record in records) and not deadline.passed:
            try:
                self._inbox.get(timeout=deadline.left(_LOOK_SECONDS))
            except queue.Empty:
                continue

    def _workers_listener(self, workers: WorkerSet) -> None:
        self._inbox.put((self._take_workers, workers))


def require_count(name: str, value: object) -> None:
    """Raise `SpecError` if a number is not a whole number from 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise SpecError(f"{name}= must be a whole number from 1, not {value!r}")


def _put(this: weakref.ref[Scheduler], task: Task) -> None:
    scheduler = this()
    if scheduler is not None:
        scheduler._inbox.put((scheduler._take_mark, scheduler._graph.positions[task.id]))


def _records_before(execution: Execution) -> list[Any]:
    """Return the records of the first and the last execution before one in its lane."""
    before: list[Any] = list(takewhile(lambda each: each is not execution, execution.lane.items))
    return [each.record for each in dict.fromkeys((*before[:1], *before[-1:])) if each.record]


def _is_given(worker: Worker, given: Sequence[Any]) -> bool:
    # A worker that was started anew has the same name, and another address.
    return any(
        worker == each or worker.name == getattr(each, "name", each) or worker.address == each
        for each in given
    )


def _name_of(tasks: Sequence[Task]) -> str:
    """Return what Dask's dashboard calls the tasks of a job."""
    for task in tasks:
        if isinstance(task, RmiTask):
            return str(getattr(task.method, "__name__", type(task.method).__name__))
    return "job"
