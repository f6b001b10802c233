"""The Batch: the life of tasks on a cluster, from the first to the last.

Does not know how tasks are made (`making`), planned or run; it hands them on.
"""

from __future__ import annotations

import os
import uuid
import weakref
from collections.abc import Sequence
from time import monotonic
from types import TracebackType
from typing import Any

from distributed import Client
from distributed.deploy import Cluster

from daskbatch.compiled import require_own, require_producers
from daskbatch.dispatch.cell import Cell, Group
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.outcomes import patience
from daskbatch.dispatch.session import make_session
from daskbatch.errors import LifecycleError
from daskbatch.identity import Address, Identity
from daskbatch.making import TaskMaker


class Batch(TaskMaker):
    """Runs a sequential program of tasks in parallel, on any Dask cluster.

    A Batch can be sent to other processes and to tasks. What is sent is where it is, and no
    credentials. A copy is another client of the Batch from its first use on, with tasks of its
    own, and must be closed. A task that uses a copy need not close it: it is over when all is
    that it has started; if it fails, that is stopped. While a task waits for others, its slot is
    free for them.

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

    A task that submits tasks to the Batch that runs it:

    >>> def factorial(batch, n):
    ...     if n == 0:
    ...         return 1
    ...     smaller = batch.function(factorial, batch, n - 1)
    ...     smaller.start()
    ...     return n * smaller.get()
    >>> with Batch(num_workers=1) as batch:
    ...     task = batch.function(factorial, batch, 5)
    ...     task.run()
    ...     task.get()
    120
    """

    def __init__(
        self,
        cluster: str | Client | Cluster | None = None,
        *,
        num_workers: int | None = None,
        name: str | None = None,
        background_batching: bool = True,
    ) -> None:
        uid, directory = uuid.uuid4().hex[:12], os.getcwd()
        session = make_session(uid, cluster, num_workers, directory)
        address = Address(session.client.scheduler.address, uid, session.grows)
        self._be(Identity(address, session), name, directory, bool(background_batching))

    def _be(
        self, identity: Identity, name: str | None, directory: str, background_batching: bool
    ) -> None:
        super().__init__(identity, name, directory)
        self._background_batching = background_batching
        # A Batch that is dropped, in a notebook cell that is run again, leaves nothing behind.
        self._finalizer = weakref.finalize(self, identity.abandon)
        self._finalizer.atexit = False

    # -- what it is -----------------------------------------------------------------------

    @property
    def client_id(self) -> int:
        """The number of this client of the Batch: 0 for the one that made it.

        A copy is a client from its first use on, each task that uses one is a client of its own.
        """
        return self._session.number

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
        return self._identity.closed

    @property
    def _dispatcher(self) -> Dispatcher:
        return self._session.dispatcher

    def __repr__(self) -> str:
        session = self._identity.known()
        state = "closed" if self.closed else "open"
        if session is None:
            return f"<Batch {state}, not used here>"
        if session.ended:
            state = "ended"
        left = session.dispatcher.outcomes.left
        return f"<Batch {state}, {session.slots} workers, {left} tasks left>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Who it is, and where; never what it takes to connect there.
        settings = self._name, self._directory, self._background_batching
        return _copy, (tuple(self._identity.address), *settings)

    # -- running --------------------------------------------------------------------------

    def _submit(self, cells: Sequence[Cell], name: str, group: Group | None = None) -> None:
        self._require_open()
        session = self._session
        for cell in cells:
            if cell.home != session.home:
                require_own(self, cell)
            if cell.call is not None and cell.call.references:
                require_own(self, cell)
                require_producers(cell)
        session.submit(cells, name, group)

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
        session, seconds = self._identity.known(), patience(timeout)
        if session is None:
            return
        outcomes = session.dispatcher.outcomes
        if not outcomes.wait(lambda: not outcomes.left, seconds):
            raise TimeoutError(f"{outcomes.left} tasks are not over after {seconds:g} s")

    # -- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Say that this client makes and starts no more tasks. What is started still runs.

        Every client must do so: the one that made the Batch, and each copy that was used. A
        task need not, since what it does with a Batch ends with it.
        """
        self._identity.close()

    def join(self, timeout: float | None = None) -> None:
        """Wait until every client has closed and all work is done, then end the Batch.

        A cluster that was made for it ends, too; one that was given stays.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        LifecycleError
            `close` has not been called, or this is not the client that made the Batch.
        TimeoutError
            The time is up first; the Batch can be joined again.
        """
        session = self._identity.known()
        if session is None or session.number:
            raise LifecycleError(
                "only the client that made a Batch joins it; a copy is done with close(), and "
                "waits for its own tasks with fence()"
            )
        if not session.closed:
            raise LifecycleError("close() the Batch before join(): join waits for the last task")
        seconds = patience(timeout)
        deadline = None if seconds is None else monotonic() + seconds
        self.fence(timeout)
        if session.ended:
            return
        others = session.others_left(None if deadline is None else deadline - monotonic())
        if others:
            raise TimeoutError(f"after {seconds:g} s: {'; '.join(others)}")
        session.end()

    def terminate(self) -> None:
        """Give up all that is not over, and leave the cluster; an embedded one is killed.

        With the client that made the Batch, all others end. A copy gives up its own tasks only.
        """
        self._identity.close()
        session = self._identity.known()
        if session is not None:
            session.end()

    def __enter__(self) -> Batch:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self.terminate()
            return
        self.close()
        session = self._identity.known()
        if session is not None and session.number == 0:
            self.join()
        else:
            self.fence()


def _copy(
    address: tuple[str, str, bool], name: str | None, directory: str, background_batching: bool
) -> Batch:
    """Make what a pickled Batch becomes: a client of its own, once it is used."""
    batch: Batch = Batch.__new__(Batch)
    batch._be(Identity(Address(*address)), name, directory, background_batching)
    return batch
