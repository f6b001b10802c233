"""The entry point: executes jobs on the workers of a cluster.

Any number of threads may use a context, each with jobs of its own.
"""

from __future__ import annotations

import logging
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any

from daskbatch import config as settings
from daskbatch.batch.batch import Batch
from daskbatch.cluster.session import Session
from daskbatch.errors import LifecycleError, SpecError
from daskbatch.execute.engine import Engine
from daskbatch.execute.job import Job
from daskbatch.execute.lanes import Durations
from daskbatch.execute.lifecycle import Lifecycle
from daskbatch.execute.results import JobResults
from daskbatch.execute.scheduler import Scheduler, require_count
from daskbatch.execute.stability import is_stable
from daskbatch.execute.task import Task
from daskbatch.execute.worker import Worker
from daskbatch.execute.worker_watch import WorkerWatch
from daskbatch.timeouts import Deadline
from daskbatch.worker.execution.task_context import current_context, waiting

if TYPE_CHECKING:
    from daskbatch.execute.cpu_profiling import CpuProfiling
    from daskbatch.execute.memory_profiling import MemoryProfiling

_logger = logging.getLogger("daskbatch")

_SETTINGS = ("concurrency", "attempts")

#: Between two looks whether the workers have settled: they do so by time alone. Seconds.
_LOOK_SECONDS = 0.1


class ExecutionContext(Lifecycle):
    """Executes jobs across the workers of a cluster.

    A context can be sent to a worker, where a task can execute jobs with it.

    Parameters
    ----------
    cluster : Batch, str, distributed.Client, cluster object or None
        Where: a Batch, which is used and never closed; or what `daskbatch.Batch` takes, None
        for a cluster on this machine, which ends with the context.
    config : mapping, optional
        ``concurrency`` and ``attempts``, for jobs that do not say otherwise; by default
        ``daskbatch.execute.concurrency`` and ``daskbatch.execute.attempts`` of Dask's
        configuration.

    Raises
    ------
    SpecError, ServiceLost
        A parameter is wrong; or there is no cluster.

    Examples
    --------
    >>> from daskbatch.execute import Job, RmiTask
    >>> with ExecutionContext(batch) as ctx:
    ...     tasks = [RmiTask(ctx, number, pow, (number, 2)) for number in range(4)]
    ...     [task.result() for task in ctx.execute(Job(ctx, tasks))]
    [0, 1, 4, 9]
    """

    def __init__(self, cluster: Any = None, config: Mapping[str, Any] | None = None) -> None:
        config = dict(config or {})
        for name, value in config.items():
            if name not in _SETTINGS:
                raise SpecError(f"config= may hold {' and '.join(_SETTINGS)}, not {name!r}")
            require_count(name, value)
        owned = not isinstance(cluster, Batch)
        self._be(Batch(cluster) if owned else cluster, owned, config)

    def _be(self, batch: Batch, owned: bool, config: dict[str, Any]) -> None:
        super().__init__("execution context")
        self._batch = batch
        self._owned = owned
        self._config = config
        #: The jobs that were executed so far, or are being executed.
        self.jobs: list[Job] = []
        self._watches: weakref.WeakKeyDictionary[Session, WorkerWatch] = weakref.WeakKeyDictionary()
        #: What is known of how long tasks take, from all jobs.
        self._durations = Durations()
        self._profilers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.Lock()
        self.signal_start()

    def __reduce__(self) -> tuple[Any, ...]:
        return _copy, (self._batch, self._config)

    def __repr__(self) -> str:
        return f"<ExecutionContext {'open' if self.running else 'stopped'}, {len(self.jobs)} jobs>"

    @property
    def batch(self) -> Batch:
        """The Batch that runs the tasks."""
        return self._batch

    # -- executing ------------------------------------------------------------------------

    def execute(
        self,
        job: Job,
        workers: Sequence[Worker] | None = None,
        order_results: bool = True,
        concurrency: int | None = None,
        attempts: int | None = None,
    ) -> JobResults:
        """Execute a job, and yield each task as it is executed.

        It starts with the first task that is asked for. The first task that fails for good
        raises its exception here, and cancels the others. To close or to drop the generator
        cancels the others, too; so does Ctrl-C while it waits.

        Parameters
        ----------
        job : Job
            The job.
        workers : sequence of Worker, optional
            Where to execute it; by default on all workers, also those that join meanwhile.
        order_results : bool
            Whether the tasks are yielded in the order of ``job.tasks``; else as they are done.
        concurrency : int, optional
            How many tasks to execute at a time on each worker, whatever its threads.
        attempts : int, optional
            How often a task is tried that fails. Neither the loss of a worker nor
            `DependenciesFailed` counts.

        Returns
        -------
        generator of Task
            Each task once; its `Task.result` is there.

        Raises
        ------
        SpecError
            A parameter is wrong; or, as it starts, the tasks are no graph.
        LifecycleError
            The context has been stopped; or, as it starts, the job is being executed already.
        RuntimeError
            As it starts: no worker has come within five seconds.
        """
        self._require_running()
        if not isinstance(job, Job):
            raise SpecError(f"a context executes a Job, not {job!r}")
        concurrency = self._setting("concurrency", concurrency)
        attempts = self._setting("attempts", attempts)

        def make_scheduler(done: Callable[[Task | BaseException | None], object]) -> Scheduler:
            self._require_running()
            if workers is None and not self._watch().current().threads:
                self.await_workers(worker_count=1, stable_timeout=0)
            tasks = job.tasks
            scheduler = Scheduler(tasks, done, workers, concurrency, attempts)
            with self._lock:
                if job not in self.jobs:
                    self.jobs.append(job)
            return scheduler

        return JobResults(job, make_scheduler, order_results)

    def _setting(self, name: str, given: int | None) -> int:
        value = given if given is not None else self._config.get(name)
        if value is None:
            value = settings.get(f"execute.{name}")
        require_count(name, value)
        return int(value)

    def _open_engine(self, name: str) -> tuple[Engine, WorkerWatch]:
        """Return what runs the tasks of a job, and what knows the workers for it."""
        self._require_running()
        return Engine(self._batch, name), self._watch()

    # -- workers --------------------------------------------------------------------------

    @property
    def workers(self) -> list[Worker]:
        """The workers that are connected, by name."""
        return list(self._watch().current().threads)

    @property
    def worker_count(self) -> int:
        """How many workers are connected."""
        return len(self._watch().current().threads)

    def await_workers(
        self,
        worker_count: int | None = None,
        connect_timeout: float = 5,
        stable_timeout: float = 60,
    ) -> int:
        """Wait for workers to be there, and for their number to settle.

        With one worker that has just connected, that is when no other has within
        `connect_timeout`. With several, it is when none has for twice as long as the longest time
        between two of them.

        Parameters
        ----------
        worker_count : int, optional
            How many workers are expected: with exactly so many, this returns at once.
        connect_timeout : float
            Seconds to wait at most for the first worker.
        stable_timeout : float
            Seconds to wait at most for the number to settle; if it has not by then, that is a
            warning.

        Returns
        -------
        int
            How many workers there are.

        Raises
        ------
        RuntimeError
            There is no worker within `connect_timeout`.
        """
        watch = self._watch()
        connect, stable = Deadline(connect_timeout), Deadline(stable_timeout)
        with waiting(current_context()):
            while not watch.current().threads:
                if connect.passed:
                    raise RuntimeError("no workers available")
                _await_change(watch, connect.remaining(_LOOK_SECONDS))
            while True:
                found = watch.current()
                if len(found.threads) == worker_count or is_stable(
                    found.connected.values(), monotonic(), connect_timeout, stable_timeout
                ):
                    return len(found.threads)
                if stable.passed:
                    break
                _await_change(watch, stable.remaining(_LOOK_SECONDS))
        if stable_timeout:
            warnings.warn(
                f"the number of workers has not settled within {stable_timeout:g} s", stacklevel=2
            )
        return len(watch.current().threads)

    def _watch(self) -> WorkerWatch:
        return self._connect()[0]

    def _connect(self) -> tuple[WorkerWatch, Session]:
        """Return what knows the workers, and the connection: here, in this process and task."""
        self._require_running()
        session = self._batch._session
        with self._lock:
            found = self._watches.get(session)
        if found is None:
            made = WorkerWatch(session)
            with self._lock:
                found = self._watches.setdefault(session, made)
        return found, session

    # -- profiling ------------------------------------------------------------------------

    @property
    def cpu_profiling(self) -> CpuProfiling:
        """A new CPU profiler across the cluster, by ``yappi``."""
        from daskbatch.execute.cpu_profiling import CpuProfiling

        return CpuProfiling(self)

    @property
    def memory_profiling(self) -> MemoryProfiling:
        """A new memory profiler across the cluster, by ``tracemalloc``."""
        from daskbatch.execute.memory_profiling import MemoryProfiling

        return MemoryProfiling(self)

    # -- the end --------------------------------------------------------------------------

    def stop(self) -> None:
        """Cancel the jobs that run, stop the profilers, and leave the cluster; twice does no harm.

        A Batch that the context was given goes on.
        """
        with self._lock:
            if not self.running:
                return
            jobs, profilers = list(self.jobs), list(self._profilers)
        for job in jobs:
            job.cancel()
        for profiler in profilers:
            try:
                profiler.stop()
            except Exception:
                _logger.exception("a profiler could not be stopped in good order")
        self.signal_stop()
        if self._owned:
            self._batch.terminate()

    def _require_running(self) -> None:
        if not self.running:
            raise LifecycleError("this context has been stopped: make another")

    def __enter__(self) -> ExecutionContext:
        """Return the context, which is stopped at the end of the block."""
        self._require_running()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Stop the context."""
        self.stop()


def _await_change(watch: WorkerWatch, seconds: float | None) -> None:
    with watch.changed:
        watch.changed.wait(seconds)


def _copy(batch: Batch, config: dict[str, Any]) -> ExecutionContext:
    """Make what a pickled context becomes elsewhere."""
    context: ExecutionContext = ExecutionContext.__new__(ExecutionContext)
    context._be(batch, False, config)
    return context
