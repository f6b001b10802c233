"""An executor of `concurrent.futures` on any Dask cluster.

Does not know how calls are gathered, run or settled: it describes them for its pool.
"""

from __future__ import annotations

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

from daskbatch.batch.batch import Batch
from daskbatch.batch.options import Accesses, require_name
from daskbatch.errors import SpecError
from daskbatch.executor.call_factory import CallFactory
from daskbatch.executor.cpus import count_cpus, count_workers, thread_limits
from daskbatch.executor.future import BatchPoolFuture
from daskbatch.executor.map_call import MapCall
from daskbatch.executor.pool import Pool, require_interpreter
from daskbatch.worker.cores import CORES


class BatchPoolExecutor(Executor):
    """Runs calls on a Dask cluster, as the executors of `concurrent.futures` do on a machine.

    Parameters
    ----------
    name : str, optional
        Stands before the functions' names on Dask's dashboard.
    cluster : str, distributed.Client or cluster object, optional
        See `Batch`; by default a cluster on this machine, which ends with the executor.
    max_workers : int, optional
        How many calls run at once at most; by default as many as there are slots, or CPUs.
    cpus_per_job : int, float or str, optional
        How many cores each call is to have: 2, ``"0.5"``, ``"500m"``. The libraries of linear
        algebra that it uses are held to these.
    wait_on_exit : bool
        Whether a ``with`` block waits at its end for all calls.
    initializer, initargs : callable and tuple, optional
        Called once in each worker process, before its first call. If it raises, the executor is
        broken: calls that are left, and later ones, raise `ServiceLost`, a `BrokenExecutor`.

    Raises
    ------
    SpecError, ServiceLost
        A parameter is wrong; or there is no cluster, or it did not start.

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
        cluster: str | Client | Cluster | None = None,
        max_workers: int | None = None,
        cpus_per_job: int | float | str | None = None,
        wait_on_exit: bool = True,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        require_interpreter()
        require_name(name)
        max_workers = None if max_workers is None else count_workers(max_workers)
        if initializer is not None and not callable(initializer):
            raise TypeError("initializer must be a callable")
        cpus = None if cpus_per_job is None else count_cpus(cpus_per_job)
        limits = {} if cpus is None else thread_limits(cpus)
        own = None
        if cluster is None:
            own = max_workers or max(1, int(CPU_COUNT // max(1.0, cpus or 1.0)))
        batch = _PoolBatch(cluster, own, name, limits)
        if not batch._session.grows:
            calls, cap = CallFactory(batch), None
        else:
            cores = {}
            if cpus is not None and cpus > 1:
                batch._session.reserve_cores()
                cores = {CORES: cpus}
            # Calls with an environment of their own run in children, which have it from before
            # they load any library.
            calls, cap = CallFactory(batch, cores, limits), max_workers
        if initializer is not None:
            calls = calls.prepared(initializer, initargs)
        self._set_up(Pool(batch, owned=True, name=name, cap=cap), calls, wait_on_exit)

    def _set_up(self, pool: Pool, calls: CallFactory, wait_on_exit: bool) -> None:
        self._pool = pool
        self._calls = calls
        self._keeper = _Keeper(pool)
        self._wait_on_exit = bool(wait_on_exit)

    @property
    def _max_workers(self) -> int:
        """How many calls run at once: what some libraries ask any executor for."""
        return self._pool.slots

    @property
    def _broken(self) -> BaseException | None:
        return self._pool.broken

    @property
    def batch(self) -> Batch:
        """The Batch that runs the calls; it ends with the executor, but for `as_executor`."""
        return self._pool.batch

    def __repr__(self) -> str:
        return f"<{type(self).__name__} on {self._pool.batch!r}>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("an executor cannot be sent to another process: make another one there")

    # -- calls ------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> BatchPoolFuture:
        """Have a function called.

        Parameters
        ----------
        fn : callable
            The function; a coroutine function is run to its end. A worker loads a function once:
            what calls change in its closure is there for the next ones of it, or of its equal.
        *args, **kwargs
            All are its own. A future of this executor among them, at any depth, stands for its
            result, and is waited for.

        Returns
        -------
        BatchPoolFuture
            A `concurrent.futures.Future`, awaitable, with the call as ``task``.

        Raises
        ------
        RuntimeError, ServiceLost
            The executor has been shut down, or its Batch closed; or the initializer has failed.
        SpecError, GraphError, LifecycleError
            It is no function, or takes the result of another Batch's task, or of one not started.

        Examples
        --------
        >>> ten = executor.submit(int, "a", base=16)
        >>> executor.submit(pow, 2, ten).result()
        1024
        """
        self._pool.require_open()
        return self._pool.put_future(self._calls.one(fn, args, kwargs))

    def map(
        self,
        fn: Callable[..., Any],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[Any]:
        """Call a function with arguments from iterables, as `map` does, and give the results.

        Parameters
        ----------
        fn : callable
            The function.
        *iterables
            Its arguments; the shortest ends it.
        timeout : float, optional
            Seconds from now, after which a result that is not there is a `TimeoutError`.
        chunksize : int
            So many calls are sent, run and answered together. Each keeps its own exception.
            Short calls share the cost of their way as they are; larger chunks save memory and
            time on the client.
        buffersize : int, optional
            How many calls, or chunks, are sent ahead of what has been taken of the results. By
            default all are sent at once, which an endless iterable does not allow.

        Raises
        ------
        RuntimeError, ServiceLost, SpecError, TypeError
            As by `submit`; or `chunksize` or `buffersize` is no whole number from 1. What calls
            raise, or `TimeoutError`, comes with a result; calls that are left are cancelled then.

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
        """Have a function called; see `submit`, also for what is raised. The future is awaitable.

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
        """Call a function with arguments from iterables, and give the results as they are awaited.

        Parameters
        ----------
        fn : callable
            The function.
        iterables : iterable of iterable
            Its arguments, in one list.
        timeout, chunksize, buffersize
            See `map`, also for what is raised.

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
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
    ) -> BatchPoolExecutor:
        """Give the same executor with other options for its calls; see `Batch.options`.

        What calls read and write says which may run again when a worker dies; it puts them in
        no order. To shut down what this returns is to shut down the executor. An option that is
        wrong is a `SpecError`.

        Examples
        --------
        >>> patient = executor.options(timeout=60, retries=2)
        >>> patient.submit(sum, [1, 2]).result()
        3
        """
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._calls = self._calls.configured(
            reads=reads,
            writes=writes,
            name=name,
            timeout=timeout,
            retries=retries,
            resources=resources,
            workers=workers,
            priority=priority,
            isolation=isolation,
            cwd=cwd,
            env=env,
        )
        return other

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
        """Take no more calls, and let the cluster end when those given are over.

        Parameters
        ----------
        wait : bool
            Whether to wait for that. If not, the calls are run all the same, and waited for when
            the interpreter ends.
        cancel_futures : bool
            Whether to cancel those calls that have not begun.

        Raises
        ------
        RuntimeError
            A callback of one of its futures waits for it, which it would wait for.

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
        """Shut down; with `wait_on_exit`, wait for all calls, also where the block has raised."""
        self.shutdown(wait=self._wait_on_exit)


def as_executor(batch: Batch) -> BatchPoolExecutor:
    """Give an executor on a Batch, so that its calls and the tasks of the Batch share a cluster.

    To shut it down leaves the Batch as it is. `SpecError` if it is no Batch, and
    `SubmitAfterCloseError` if it has been closed.

    Parameters
    ----------
    batch : Batch
        The Batch; its tasks can be arguments of the calls, and its tasks can be given futures.

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
        raise SpecError(f"as_executor takes a Batch, not {batch!r}")
    batch._require_open()
    executor = object.__new__(BatchPoolExecutor)
    pool = Pool(batch, owned=False, name=batch._name, cap=None)
    executor._set_up(pool, CallFactory(batch), wait_on_exit=True)
    return executor


class _PoolBatch(Batch):
    """The Batch of an executor."""

    def __init__(
        self,
        cluster: str | Client | Cluster | None,
        num_workers: int | None,
        name: str | None,
        environment: Mapping[str, str],
    ) -> None:
        self._environment = environment
        super().__init__(cluster, num_workers=num_workers, name=name)


class _Keeper:
    """What an executor and those with other options share; when it goes, the pool may end."""

    def __init__(self, pool: Pool) -> None:
        finalizer = weakref.finalize(self, pool.let_go)
        finalizer.atexit = False
