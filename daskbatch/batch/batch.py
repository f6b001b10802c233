"""The Batch: the life of tasks on a cluster, from the first to the last.

Does not know how tasks are made (`making`), planned or run; it hands them on.
"""

from __future__ import annotations

import builtins
import os
import uuid
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from types import FunctionType, MappingProxyType, TracebackType
from typing import IO, Any

from distributed import Client
from distributed.deploy import Cluster

from daskbatch.batch.compiled import require_own, require_producers
from daskbatch.batch.identity import Address, Identity
from daskbatch.batch.making import TaskMaker
from daskbatch.batch.sharing import SharedMaker
from daskbatch.batch.task import Task
from daskbatch.cluster.session import make_session
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.task_record import Group, TaskRecord
from daskbatch.errors import LifecycleError, SpecError
from daskbatch.timeouts import parse_timeout


class Batch(TaskMaker, SharedMaker):
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
        There is no cluster, or it did not start; later, of whatever needs the cluster: it, or
        the Batch that a copy is of, is there no more.

    Examples
    --------
    >>> with Batch(num_workers=2) as batch:
    ...     task = batch.function(pow, 2, 10)
    ...     task.run()
    ...     task.result.get()
    1024

    Without a block, it is closed and joined by hand:

    >>> batch = Batch(num_workers=1)
    >>> batch.client_id, batch.num_workers, batch.closed
    (0, 1, False)
    >>> client, link = batch.client, batch.dashboard_link
    >>> batch.function(len, "four").start()
    >>> batch.close()
    >>> batch.join(timeout=60)
    >>> batch.closed
    True

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
        uid, directory = uuid.uuid4().hex[:12], os.getcwd()
        session = make_session(uid, cluster, num_workers, directory, self._environment)
        session.background.name = name or "batch"
        # What waits may know this Batch, and must not keep it when it is dropped.
        self._backlog = session.background.lend()
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

        Raises
        ------
        ServiceLost
            It is a copy, not used before, and there is no such Batch any more.
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
        left = session.dispatcher.outcomes.unfinished + len(session.background.backlog)
        return f"<Batch {state}, {session.slots} workers, {left} tasks left>"

    def __reduce__(self) -> tuple[Any, ...]:
        # Who it is, and where; never what it takes to connect there.
        settings = self._name, self._directory, self._background_batching
        return _copy, (tuple(self._identity.address), *settings)

    # -- running --------------------------------------------------------------------------

    def _submit(self, records: Sequence[TaskRecord], name: str, group: Group | None = None) -> None:
        self._require_open()
        session = self._session
        for record in records:
            if record.client_id != session.client_id:
                require_own(self, record)
            if record.call is not None and record.call.references:
                require_own(self, record)
                require_producers(record)
                session.background.start_queued(record.producers)
        session.submit(records, name, group)

    def _made_by_template(self, task: Task) -> Task:
        if self._background_batching:
            record = task._record
            if record.call is not None and record.call.references:
                require_own(self, record)
                require_producers(record)
            task._session.background.queue(record)
            task._in_background = True
        return task

    def open(self, path: str | Path, mode: str = "r", *args: Any, **kwargs: Any) -> IO[Any]:
        """Open a file, once the tasks that touch it are over, however they have ended.

        Parameters
        ----------
        path : str or Path
            What tasks read and write by this path is the same file. A relative one is relative
            to the directory in which this Batch was made.
        mode : str
            See the built-in `open`. To read, the tasks are waited for that write the file or a
            directory above it; to write, append or update, those that read it as well. What
            waits in the background is started first.
        *args, **kwargs
            See the built-in `open`.

        Returns
        -------
        file object
            As the built-in `open` gives it. Tasks that are made later do not wait until it is
            closed.

        Raises
        ------
        SpecError
            It is no path.
        OSError
            It cannot be opened.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     path = Path(directory) / "sum.txt"
        ...     task = batch.function(path.write_text, "42", writes=[batch.write(path)])
        ...     task.start()
        ...     with batch.open(path) as file:
        ...         file.read()
        '42'
        """
        if not isinstance(path, (str, os.PathLike)):
            raise SpecError(f"batch.open takes a path as a str or a Path, not {path!r}")
        file = os.fspath(path)
        writes = isinstance(mode, str) and not set(mode).isdisjoint("wax+")
        self._await_conflicting_tasks(self.write(file) if writes else self.read(file))
        # The directory is no answer to no name at all.
        return builtins.open(file and self._absolute(file), mode, *args, **kwargs)

    def fence(self, timeout: float | None = None) -> None:
        """Wait for all that this client has started, and for what waits in the background.

        What template tasks read and write before puts nothing in order that comes after.

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
        session, seconds = self._identity.known(), parse_timeout(timeout)
        if session is None:
            return
        outcomes, background = session.dispatcher.outcomes, session.background
        background.flush()
        pools = background.executor_pools
        for pool in pools:
            pool.flush()

        def left() -> int:
            return outcomes.unfinished + sum(len(pool.waiting) for pool in pools)

        if not outcomes.wait(lambda: not left(), seconds):
            raise TimeoutError(f"{left()} tasks are not over after {seconds:g} s")
        background.backlog.start_over()

    # -- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Say that this client makes and starts no more tasks; twice does no harm.

        What is started still runs, and what waits in the background is started. Every client
        must close: the one that made the Batch, and each copy that was used. A task need not,
        since what it does with a Batch ends with it. To make or to start a task later is a
        `SubmitAfterCloseError`.
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
        seconds = parse_timeout(timeout)
        deadline = None if seconds is None else monotonic() + seconds
        self.fence(timeout)
        if session.ended:
            return
        others = session.wait_until_alone(None if deadline is None else deadline - monotonic())
        if others:
            raise TimeoutError(f"after {seconds:g} s: {'; '.join(others)}")
        session.end()

    def terminate(self) -> None:
        """Give up all that is not over, and leave the cluster; an embedded one is killed.

        With the client that made the Batch, all others end. A copy gives up its own tasks only.
        What is given up is cancelled, also where it runs. To terminate twice does no harm.

        Examples
        --------
        >>> batch = Batch(num_workers=1)
        >>> task = batch.process("sleep", 3600)
        >>> task.start()
        >>> batch.terminate()
        >>> task.state
        'cancelled'
        """
        self._identity.close()
        session = self._identity.known()
        if session is not None:
            session.end()

    def __enter__(self) -> Batch:
        """Give the Batch itself, which ends with the block."""
        self._require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the Batch: `close` and `join` it, or `terminate` it where the block has raised.

        A copy does not join: it waits, by `fence`, for its own tasks. What tasks have raised
        is not raised here.
        """
        if kind is not None:
            self.terminate()
            return
        self.close()
        session = self._identity.known()
        if session is not None and session.number == 0:
            self.join()
        else:
            self.fence()


# Users know Batch alone, and so do the messages of Python that name a method.
for _base in (TaskMaker, SharedMaker):
    for _name, _method in vars(_base).items():
        if isinstance(_method, FunctionType) and not _name.startswith("_"):
            _method.__qualname__ = f"Batch.{_name}"
            _method.__module__ = __name__


def _copy(
    address: tuple[str, str, bool], name: str | None, directory: str, background_batching: bool
) -> Batch:
    """Make what a pickled Batch becomes: a client of its own, once it is used."""
    batch: Batch = Batch.__new__(Batch)
    batch._be(Identity(Address(*address)), name, directory, background_batching)
    return batch
