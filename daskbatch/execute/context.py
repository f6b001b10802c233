"""The entry point of this package: executes jobs on the workers of a cluster.

Several threads may use one context at the same time; each thread executes different jobs.
"""

from __future__ import annotations

import logging
import math
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
from daskbatch.execute.jobs.job import Job
from daskbatch.execute.jobs.lifecycle import Lifecycle
from daskbatch.execute.jobs.task import Task
from daskbatch.execute.running.engine import Engine
from daskbatch.execute.running.results import JobResults
from daskbatch.execute.running.scheduler import Scheduler, require_count
from daskbatch.execute.scheduling.durations import Durations
from daskbatch.execute.workers.stability import is_stable
from daskbatch.execute.workers.worker import Worker
from daskbatch.execute.workers.worker_watch import WorkerWatch
from daskbatch.timeouts import Deadline, parse_timeout
from daskbatch.worker.execution.task_context import current_context, waiting

if TYPE_CHECKING:
    from daskbatch.execute.profiling.cpu_profiling import CpuProfiling
    from daskbatch.execute.profiling.memory_profiling import MemoryProfiling

_logger = logging.getLogger("daskbatch")

_SETTINGS = ("concurrency", "attempts")

#: The interval between two checks whether the number of workers is stable. It becomes stable
#: merely by the passing of time, so no event reports it. Seconds.
_POLL_INTERVAL_SECONDS = 0.1


class ExecutionContext(Lifecycle):
    """Executes jobs across the workers of a cluster.

    A context can be pickled and sent to a worker, where a task can execute jobs with it. Several
    threads may use one context, each for different jobs.

    Parameters
    ----------
    cluster : Batch, str, distributed.Client, cluster object or None
        The cluster that runs the jobs: a Batch, which the context uses but never closes; or any
        value that `daskbatch.Batch` accepts. None starts a cluster on this machine, which is
        closed with the context.
    config : mapping, optional
        The default ``concurrency`` and ``attempts`` of `execute`; if not given,
        ``daskbatch.execute.concurrency`` and ``daskbatch.execute.attempts`` of Dask's
        configuration.

    Raises
    ------
    SpecError
        A parameter is wrong.
    ServiceLost
        There is no cluster.

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
        self._set_up(Batch(cluster) if owned else cluster, owned, config)

    def _set_up(self, batch: Batch, owned: bool, config: dict[str, Any]) -> None:
        super().__init__("execution context")
        self._batch = batch
        self._owned = owned
        self._config = config
        #: The jobs that have been executed or are being executed.
        self.jobs: list[Job] = []
        self._watches: weakref.WeakKeyDictionary[Session, WorkerWatch] = weakref.WeakKeyDictionary()
        #: The durations of tasks, measured in all jobs of this context.
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
        """Execute a job and yield its tasks as they finish.

        The execution starts when the caller requests the first task of the generator. When a
        task fails permanently, the generator raises its exception and the other tasks are
        cancelled. They are also cancelled when the generator is closed or deleted, and by Ctrl-C
        while the generator waits.

        Parameters
        ----------
        job : Job
            The job to execute.
        workers : sequence of Worker, optional
            The workers that execute the job; by default all workers, including those that join
            during the execution. If the cluster has no worker yet, the job waits for one.
        order_results : bool
            Whether the tasks are yielded in the order of ``job.tasks``; otherwise in the order in
            which they finish.
        concurrency : int, optional
            How many tasks each worker executes at the same time, independent of its number of
            threads.
        attempts : int, optional
            How many times a failing task is tried at most. The loss of a worker and
            `DependenciesFailed` do not count as attempts.

        Returns
        -------
        generator of Task
            Yields each task once; its `Task.result` is available.

        Raises
        ------
        SpecError
            A parameter is wrong; or, when the execution starts, the job has no task, an id is
            used twice, or priorities cannot be compared.
        GraphError
            When the execution starts: tasks wait for each other in a circle, or for a task of
            another job.
        LifecycleError
            The context has been stopped; or, when the execution starts, another generator is
            executing the job or one of its tasks.
        """
        self._require_running()
        if not isinstance(job, Job):
            raise SpecError(f"a context executes a Job, not {job!r}")
        concurrency = self._setting("concurrency", concurrency)
        attempts = self._setting("attempts", attempts)

        def make_scheduler(done: Callable[[Task | BaseException | None], object]) -> Scheduler:
            self._require_running()
            scheduler = Scheduler._of_context(self, job.tasks, done, workers, concurrency, attempts)
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
        """Return a new engine for a job, and the watch of the workers of the cluster."""
        self._require_running()
        return Engine(self._batch, name), self._watch()

    # -- workers --------------------------------------------------------------------------

    @property
    def workers(self) -> list[Worker]:
        """The connected workers, sorted by name."""
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
        """Wait until workers are connected and their number is stable.

        The number of one worker is stable when no other worker connects within
        `connect_timeout`. The number of several workers is stable when no other worker connects
        for twice the longest time that passed between the connections of two of them.

        Parameters
        ----------
        worker_count : int, optional
            The expected number of workers. When exactly this number is connected, the method
            returns at once.
        connect_timeout : float
            How many seconds to wait at most for the first worker.
        stable_timeout : float
            How many seconds to wait at most for a stable number; after that, the method issues a
            warning and returns.

        Returns
        -------
        int
            The number of connected workers.

        Raises
        ------
        RuntimeError
            No worker has connected within `connect_timeout`.
        SpecError
            A timeout is not a number of seconds.
        """
        watch = self._watch()
        seconds = [parse_timeout(each) for each in (connect_timeout, stable_timeout)]
        connect_timeout, stable_timeout = (math.inf if each is None else each for each in seconds)
        connect, stable = (Deadline(each) for each in seconds)
        with waiting(current_context()):
            while not watch.current().threads:
                if connect.passed:
                    raise RuntimeError("no workers available")
                _await_change(watch, connect.remaining(_POLL_INTERVAL_SECONDS))
            while True:
                found = watch.current()
                if len(found.threads) == worker_count or is_stable(
                    found.connected.values(), monotonic(), connect_timeout, stable_timeout
                ):
                    return len(found.threads)
                if stable.passed:
                    break
                _await_change(watch, stable.remaining(_POLL_INTERVAL_SECONDS))
        if stable_timeout:
            warnings.warn(
                f"the number of workers has not settled within {stable_timeout:g} s", stacklevel=2
            )
        return len(watch.current().threads)

    def _watch(self) -> WorkerWatch:
        return self._connect()[0]

    def _connect(self) -> tuple[WorkerWatch, Session]:
        """Return the watch of the workers and the session, for this process and task."""
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
        from daskbatch.execute.profiling.cpu_profiling import CpuProfiling

        return CpuProfiling(self)

    @property
    def memory_profiling(self) -> MemoryProfiling:
        """A new memory profiler across the cluster, by ``tracemalloc``."""
        from daskbatch.execute.profiling.memory_profiling import MemoryProfiling

        return MemoryProfiling(self)

    # -- closing --------------------------------------------------------------------------

    def stop(self) -> None:
        """Cancel the running jobs, stop the profilers, and disconnect from the cluster.

        A Batch that was passed to the context stays open. A second call has no effect.
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
                _logger.exception("stopping a profiler of the execution context has failed")
        self.signal_stop()
        if self._owned:
            self._batch.terminate()

    def _require_running(self) -> None:
        if not self.running:
            raise LifecycleError("this context has been stopped: create another ExecutionContext")

    def __enter__(self) -> ExecutionContext:
        """Return the context; it is stopped at the end of the ``with`` block."""
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
    """Create the copy of a pickled context; the copy does not close the Batch."""
    context: ExecutionContext = ExecutionContext.__new__(ExecutionContext)
    context._set_up(batch, False, config)
    return context
