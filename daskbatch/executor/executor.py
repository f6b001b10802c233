"""An executor of `concurrent.futures` on any Dask cluster.

Several threads may use a `BatchPoolExecutor`. It checks its parameters and makes the records of
calls; its `Pool` does the rest.
"""

# How a call gets from `submit` to its future, and which thread does what:
#
# |======================= the user's thread =======================|=== thread "submit" ====|
#
#  submit(fn, args)                                                    ConcurrencyLimit
#      |                                                               orders the calls, if
#      v                                                               max_workers < slots
#  CallFactory ---- TaskRecord ----> Pool ------> SubmitQueue ------>        |
#  (pickles the arguments)            |           (collects calls)           v
#                                     v                               Session.submit
#                              BatchPoolFuture                               |
#                                     ^                                      v
#                                     |                                 Dispatcher
#                                     |                                      |
# |==== threads "settle", "fetch" ====|========== Dask's event loop =========|===============|
#                                     |                                      v
#                                  Settler <-- CompletionTracker <-- Dask: scheduler, workers
#                       (unpickles the result;                       (reports of blocks)
#                        "fetch" first fetches
#                        large results)
#
# - A `TaskRecord` is the only thing that travels down; `Settler.watch` ties it to its future.
# - One condition, `CompletionTracker.changed`, guards the queue, the settler and the records. Each
#   thread waits on it, and no user code runs while it is held.
# - `map` makes no futures: `MapCall` gives records to the pool ahead of the results, and unpickles
#   the results in the thread that asks for them. A chunk of calls is one record.

from __future__ import annotations

import os
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from dask.system import CPU_COUNT
from distributed import Client
from distributed.deploy import Cluster

from daskbatch.batch.batch import Batch, open_batch
from daskbatch.batch.factory import Accesses, require_name
from daskbatch.describe.gang import count_cores, thread_limits
from daskbatch.errors import SpecError
from daskbatch.executor.call_factory import CallFactory
from daskbatch.executor.future import BatchPoolFuture
from daskbatch.executor.map_call import MapCall
from daskbatch.executor.pool import Pool, require_interpreter
from daskbatch.executor.worker_count import count_workers
from daskbatch.serialization.safe_text import safe_repr


class BatchPoolExecutor(Executor):
    """Runs calls on a Dask cluster, with the interface of `concurrent.futures` executors.

    Parameters
    ----------
    name : str, optional
        Prefix of the functions' names on Dask's dashboard.
    cluster : str, distributed.Client or cluster object, optional
        See `Batch`; by default a cluster on this machine, which ends with the executor.
    max_workers : int, optional
        Maximum number of calls that run at once; by default the number of the cluster's slots. A
        cluster on this machine gets this number of workers; by default one for each CPU, or for
        each `cpus_per_job` CPUs.
    cpus_per_job : int, float or str, optional
        Number of CPU cores for each call: 2, ``"0.5"``, ``"500m"``. Linear algebra libraries that
        the call uses are limited to this number of threads.
    wait_on_exit : bool
        Whether a ``with`` block waits at its end for all calls.
    initializer, initargs : callable and tuple, optional
        Called once in each worker process, before its first call. If it raises, the executor is
        broken: unfinished and later calls raise `ServiceLost`, which is a `BrokenExecutor`.

    Raises
    ------
    SpecError
        A parameter is wrong.
    ServiceLost
        There is no cluster, or it did not start.

    Notes
    -----
    Several threads may use an executor at the same time. `submit` pickles the arguments and
    returns; another thread sends the calls to the cluster, many at once.

    Examples
    --------
    >>> with BatchPoolExecutor(max_workers=2) as executor:
    ...     future = executor.submit(pow, 2, 10)
    ...     squares = list(executor.map(lambda x: x * x, range(5)))
    >>> future.result(), squares, executor.batch.closed
    (1024, [0, 1, 4, 9, 16], True)
    """

    def __init__(
        self,
        *,
        name: str | None = None,
        cluster: str | os.PathLike[str] | Client | Cluster | None = None,
        max_workers: int | None = None,
        cpus_per_job: int | float | str | None = None,
        wait_on_exit: bool = True,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        require_interpreter()
        name = require_name(name)
        max_workers = None if max_workers is None else count_workers(max_workers)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        cpus = None if cpus_per_job is None else count_cores(cpus_per_job, "cpus_per_job=")
        limits = {} if cpus is None else thread_limits(cpus)
        num_workers = None
        if cluster is None:
            num_workers = max_workers or max(1, int(CPU_COUNT // max(1.0, cpus or 1.0)))
        batch = open_batch(cluster, num_workers, name, limits)
        session = batch._context.session
        if not session.grows:
            # The number of workers limits the calls, and the workers have the environment.
            calls, max_running = CallFactory(batch._context), None
        else:
            # Calls with `cores=` run in child processes, which have the limits of threads before
            # they load any library.
            calls, max_running = CallFactory(batch._context, cpus), max_workers
        if initializer is not None:
            calls = calls.with_initializer(initializer, initargs)
        pool = Pool(batch, owned=True, name=name, max_running=max_running)
        self._set_up(pool, calls, wait_on_exit)

    def _set_up(self, pool: Pool, calls: CallFactory, wait_on_exit: bool) -> None:
        self._pool = pool
        self._calls = calls
        self._pool_reference = _PoolReference(pool)
        self._wait_on_exit = bool(wait_on_exit)

    @classmethod
    def _on_batch(cls, batch: Batch) -> BatchPoolExecutor:
        """Make an executor that leaves its Batch open; see `as_executor`."""
        context = batch._context
        context.require_open()
        executor = cls.__new__(cls)
        pool = Pool(batch, owned=False, name=context.name, max_running=None)
        executor._set_up(pool, CallFactory(context), wait_on_exit=True)
        return executor

    def _with_calls(self, calls: CallFactory) -> BatchPoolExecutor:
        """Return a shallow copy whose calls have other options; `__reduce__` forbids `copy`."""
        executor = type(self).__new__(type(self))
        vars(executor).update(vars(self))
        executor._calls = calls
        return executor

    @property
    def _max_workers(self) -> int:
        """How many calls run at once; some libraries read this attribute of any executor."""
        return self._pool.slots

    @property
    def _broken(self) -> BaseException | None:
        return self._pool.broken

    @property
    def batch(self) -> Batch:
        """The Batch that runs the calls.

        It ends with the executor, unless the executor was made by `as_executor`.
        """
        return self._pool.batch

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._pool.batch!r}>"

    def _repr_html_(self) -> str:
        from daskbatch.batch.reporting.notebook_forms import executor_html  # few programs do

        return executor_html(self._pool.slots, self._pool.count_unfinished(), self._pool.batch)

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("an executor cannot be sent to another process: make another one there")

    # -- calls ------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> BatchPoolFuture:
        """Submit a call, and do not wait for it.

        Parameters
        ----------
        fn : callable
            The function. A coroutine function is run until it returns. A worker unpickles a
            function once: if a call changes an object of the function's closure, later calls of
            the same or an equal function see the change.
        *args, **kwargs
            Arguments of the function. A future of this executor among them, at any depth, stands
            for its result, and the call waits for it.

        Returns
        -------
        BatchPoolFuture
            A `concurrent.futures.Future` that is awaitable, with the call as ``task``.

        Raises
        ------
        RuntimeError, ServiceLost
            The executor has been shut down, its Batch has been closed, or the initializer has
            failed.
        SpecError, GraphError, LifecycleError
            `fn` is not callable, or an argument is the result of a task that belongs to another
            Batch or was never started.

        Examples
        --------
        >>> ten = executor.submit(int, "a", base=16)
        >>> executor.submit(pow, 2, ten).result()
        1024
        """
        self._pool.require_open()
        return self._pool.submit_future(self._calls.make_call(fn, args, kwargs))

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Call a function with arguments from iterables, and return an iterator of the results.

        Parameters
        ----------
        fn : callable
            The function.
        *iterables
            Its arguments; the calls end with the shortest iterable.
        timeout : float, optional
            Seconds from now. After that, a result that is not there raises `TimeoutError`.
        chunksize : int
            How many calls are sent, run and returned together; each keeps its own exception. Short
            calls are sent together in any case; a larger chunk saves memory and time on the
            client.
        buffersize : int, optional
            How many calls, or chunks, are submitted ahead of the results that have been taken. By
            default all are submitted at once, which requires that the iterables end.

        Raises
        ------
        RuntimeError, ServiceLost, SpecError, TypeError
            See `submit`; or `chunksize` or `buffersize` is not a whole number from 1. The
            exception of a call, and `TimeoutError`, are raised when the result is taken; the calls
            that remain are then cancelled.

        Notes
        -----
        One thread at a time may take results from the iterator.

        Examples
        --------
        >>> list(executor.map(pow, [2, 3], [5, 2]))
        [32, 9]
        >>> from itertools import count, islice
        >>> list(islice(executor.map(abs, count(-2), buffersize=4), 4))
        [2, 1, 0, 1]
        """
        return self._map(fn, iterables, chunksize, buffersize).results(timeout)

    async def async_submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> BatchPoolFuture:
        """Submit a call; see `submit`, also for what it raises. The future is awaitable.

        Examples
        --------
        >>> import asyncio
        >>> async def ask() -> int:
        ...     return await (await executor.async_submit(pow, 2, 10))
        >>> asyncio.run(ask())
        1024
        """
        return self.submit(fn, *args, **kwargs)

    def async_map(
        self,
        fn: Callable[..., Any],
        iterables: Iterable[Iterable[Any]],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> AsyncIterator[Any]:
        """Call a function with arguments from iterables, and return an asynchronous iterator.

        Parameters
        ----------
        fn : callable
            The function.
        iterables : iterable of iterable
            Its arguments: the iterables of `map`, in one list.
        timeout, chunksize, buffersize
            See `map`, also for what it raises.

        Examples
        --------
        >>> import asyncio
        >>> async def ask() -> list[int]:
        ...     return [each async for each in executor.async_map(abs, [[-1, 2, -3]])]
        >>> asyncio.run(ask())
        [1, 2, 3]
        """
        mapped = self._map(fn, tuple(iterables), chunksize, buffersize)
        return mapped.results_async(timeout)

    def options(
        self,
        *,
        reads: Accesses = None,
        writes: Accesses = None,
        name: str | None = None,
        timeout: float | timedelta | None = None,
        retries: int = 0,
        resources: Mapping[str, float] | None = None,
        workers: str | Sequence[str] | None = None,
        priority: float = 0,
        isolation: str | None = None,
        cores: int | float | str | None = None,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        restartable: bool = False,
        walltime: float | timedelta | None = None,
    ) -> BatchPoolExecutor:
        """Return the same executor with other options for its calls; see `Batch.options`.

        `reads` and `writes` say which calls may run again when a worker dies; they do not order
        the calls. To shut down the returned executor shuts down this one, too. An option that is
        wrong raises `SpecError`.

        Examples
        --------
        >>> patient = executor.options(timeout=60, retries=2)
        >>> patient.submit(sum, [1, 2]).result()
        3
        """
        calls = self._calls.with_options(
            reads=reads,
            writes=writes,
            name=name,
            timeout=timeout,
            retries=retries,
            resources=resources,
            workers=workers,
            priority=priority,
            isolation=isolation,
            cores=cores,
            cwd=cwd,
            env=env,
            restartable=restartable,
            walltime=walltime,
        )
        return self._with_calls(calls)

    def _map(
        self,
        fn: Callable[..., Any],
        iterables: tuple[Iterable[Any], ...],
        chunksize: int,
        buffersize: int | None,
    ) -> MapCall:
        arguments = zip(*iterables, strict=False)
        return MapCall(self._pool, self._calls, fn, arguments, chunksize, buffersize)

    # -- the end ------------------------------------------------------------------------------

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more calls, and end the Batch when all submitted calls are over.

        Parameters
        ----------
        wait : bool
            Whether to wait until the calls are over. If not, they are run all the same, and the
            interpreter waits for them before it ends.
        cancel_futures : bool
            Whether to cancel the calls that have not begun.

        Raises
        ------
        RuntimeError
            A callback of a future of this executor calls this with `wait`: each would wait for the
            other.

        Examples
        --------
        >>> other = BatchPoolExecutor(max_workers=1)
        >>> future = other.submit(abs, -3)
        >>> other.shutdown()
        >>> future.result()
        3
        """
        self._pool.shutdown(wait, cancel_futures)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Shut down; with `wait_on_exit`, wait for all calls, also if the block has raised."""
        self.shutdown(wait=self._wait_on_exit)


def as_executor(batch: Batch) -> BatchPoolExecutor:
    """Return an executor on a Batch, so that its calls and the tasks of the Batch share a cluster.

    To shut the executor down leaves the Batch open. Raises `SpecError` if `batch` is not a Batch,
    and `SubmitAfterCloseError` if it has been closed.

    Parameters
    ----------
    batch : Batch
        The Batch. Its tasks can be arguments of the calls, and futures can be arguments of its
        tasks.

    Examples
    --------
    >>> with as_executor(batch) as executor:
    ...     future = executor.submit(pow, 2, 3)
    ...     task = batch.function(pow, future, 2)
    ...     task.run()
    >>> task.get()
    64
    """
    if not isinstance(batch, Batch):
        raise SpecError(f"as_executor takes a Batch, not {safe_repr(batch)}")
    return BatchPoolExecutor._on_batch(batch)


class _PoolReference:
    """Shared by an executor and those that its `options` returned; the pool ends with the last."""

    def __init__(self, pool: Pool) -> None:
        finalizer = weakref.finalize(self, pool.release)
        finalizer.atexit = False
