"""The Batch: the life of tasks on a cluster, from the first to the last.

Does not know how tasks are made (`making`), planned or run; it hands them on.
"""

from __future__ import annotations

import uuid
import weakref
from collections.abc import Mapping, Sequence
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any

from distributed import Client
from distributed.deploy import Cluster

from daskbatch.compiled import require_own, require_producers
from daskbatch.dispatch.cell import Cell, Group
from daskbatch.dispatch.outcomes import patience
from daskbatch.dispatch.session import Session
from daskbatch.errors import LifecycleError
from daskbatch.making import TaskMaker

if TYPE_CHECKING:
    from daskbatch.pool import Pool


class Batch(TaskMaker):
    """Runs a sequential program of tasks in parallel, on any Dask cluster.

    Parameters
    ----------
    cluster : str, distributed.Client, cluster object or None
        The address of a scheduler, a client of it, or any of Dask's cluster objects: used, and
        never closed. None starts a cluster on this machine, which ends with the Batch;
        unless ``DASKBATCH_CLUSTER`` or the setting ``daskbatch.cluster`` names a scheduler.
    num_workers : int, optional
        Task slots of the cluster on this machine, each a process of its own; by default all
        CPUs that this process may use. Not used where ``DASKBATCH_CLUSTER`` names another.
    name : str, optional
        What Dask's dashboard calls tasks that have no better name.
    background_batching : bool
        Whether tasks made by `import_func` start by themselves when they are needed.

    Raises
    ------
    SpecError
        A parameter is wrong. It is a `ValueError`.
    ServiceLost
        There is no cluster, or it did not start.

    Examples
    --------
    >>> with Batch(num_workers=2) as batch:
    ...     task = batch.function(pow, 2, 10)
    ...     task.run()
    ...     task.result.get()
    1024
    """

    #: What is added to the environment of the workers of a cluster on this machine.
    _environment: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        cluster: str | Client | Cluster | None = None,
        *,
        num_workers: int | None = None,
        name: str | None = None,
        background_batching: bool = True,
    ) -> None:
        super().__init__(uuid.uuid4().hex[:8], name)
        self._background_batching = bool(background_batching)
        self._session = Session(
            cluster, num_workers, self._directory, f"daskbatch-{self._uid}", self._environment
        )
        self._dispatcher = self._session.dispatcher
        #: The executors that hand over calls from a thread of their own.
        self._pools: weakref.WeakSet[Pool] = weakref.WeakSet()
        # A Batch that is dropped, in a notebook cell that is run again, leaves nothing behind.
        self._finalizer = weakref.finalize(self, self._session.abandon)
        self._finalizer.atexit = False

    # -- what it is -----------------------------------------------------------------------

    @property
    def client_id(self) -> int:
        """The number of this client of the Batch: 0 for the one that made it."""
        return 0

    @property
    def client(self) -> Client:
        """The Dask client, for all that Dask offers."""
        return self._session.client

    @property
    def dashboard_link(self) -> str:
        """The address of Dask's dashboard; empty when there is none, or none any more."""
        return str(self.client.dashboard_link or "")

    @property
    def num_workers(self) -> int:
        """How many tasks run at once: the threads of the cluster's workers."""
        return self._session.slots

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def __repr__(self) -> str:
        state = "ended" if self._session.ended else "closed" if self._closed else "open"
        left = self._dispatcher.outcomes.left
        return f"<Batch {state}, {self.num_workers} workers, {left} tasks left>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Batch cannot be sent to another process")

    # -- running --------------------------------------------------------------------------

    def _submit(self, cells: Sequence[Cell], name: str, group: Group | None = None) -> None:
        self._require_open()
        for cell in cells:
            if cell.call is not None and cell.call.references:
                require_own(self, cell)
                require_producers(cell)
                for pool in self._pools:
                    pool.hand_over(cell.producers)
        self._session.submit(cells, name, group)

    def fence(self, timeout: float | None = None) -> None:
        """Wait for all that this client has started.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        TimeoutError
            The time is up first.

        Examples
        --------
        >>> batch.function(len, "abc").start()
        >>> batch.fence()
        """
        outcomes, seconds = self._dispatcher.outcomes, patience(timeout)
        pools = list(self._pools)
        for pool in pools:
            pool.hurry()

        def left() -> int:
            return outcomes.left + sum(pool.gathered for pool in pools)

        if not outcomes.wait(lambda: not left(), seconds):
            raise TimeoutError(f"{left()} tasks are not over after {seconds:g} s")

    # -- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Say that this client makes and starts no more tasks. What is started still runs."""
        self._closed = True

    def join(self, timeout: float | None = None) -> None:
        """Wait until all work is done, then leave the cluster, and end it if it is embedded.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        LifecycleError
            `close` has not been called.
        TimeoutError
            The time is up first; the Batch can be joined again.
        """
        if not self._closed:
            raise LifecycleError("close() the Batch before join(): join waits for the last task")
        self.fence(timeout)
        self._session.end()

    def terminate(self) -> None:
        """Give up all that is not over, and leave the cluster; an embedded one is killed."""
        self._closed = True
        for pool in list(self._pools):
            pool.abandon()
        self._session.end()

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
            self.join()
        else:
            self.terminate()
