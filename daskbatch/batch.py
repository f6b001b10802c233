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
from types import MappingProxyType, TracebackType
from typing import IO, TYPE_CHECKING, Any

from distributed import Client
from distributed.deploy import Cluster

from daskbatch.backlog import Backlog
from daskbatch.compiled import require_own, require_producers
from daskbatch.describe.access import Access, Mode
from daskbatch.dispatch.cell import Cell, Group, Phase
from daskbatch.dispatch.outcomes import patience
from daskbatch.dispatch.session import Session
from daskbatch.errors import LifecycleError, SpecError
from daskbatch.making import TaskMaker
from daskbatch.plan.program import overlap
from daskbatch.task import Task

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
        self._backlog = Backlog(self._uid)
        # The session outlives a Batch that is dropped, and must not keep its tasks, which may
        # know it.
        backlog = weakref.ref(self._backlog)
        self._session.queued = lambda: len(backlog() or ())
        #: The executors that hand over calls from a thread of their own; with the dispatcher's
        #: lock.
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
        left = self._dispatcher.outcomes.left + len(self._backlog)
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
                self._start_queued(cell.producers)
        self._session.submit(cells, name, group)

    def _made_by_template(self, task: Task) -> Task:
        if self._background_batching:
            cell = task._cell
            if cell.call is not None and cell.call.references:
                require_own(self, cell)
                require_producers(cell)
            self._backlog.add(cell)
            task._in_background = True
        return task

    def _flush(self, wanted: Sequence[Cell] | None = None) -> None:
        """Start what waits in the background; at least some of it, or all."""
        self._backlog.flush(
            self._start_all, self._dispatcher.settle_unstarted, self._hand_over, wanted
        )

    def _start_all(self, cells: Sequence[Cell]) -> None:
        names = {cell.name for cell in cells if cell.call is not None}
        self._session.submit(cells, names.pop() if len(names) == 1 else self._name or "batch", None)

    def _hand_over(self, cells: Sequence[Cell]) -> None:
        """Wait until the executors have handed over those of some tasks that are their calls."""
        for pool in self._all_pools():
            pool.hand_over(cells)

    def _all_pools(self) -> list[Pool]:
        with self._dispatcher.outcomes.changed:
            return list(self._pools)

    def _start_queued(self, cells: Sequence[Cell]) -> None:
        """Have those of some tasks started that are queued, whoever has queued them."""
        queued = [cell for cell in cells if cell.phase == Phase.QUEUED]
        if any(cell.group is None for cell in queued):
            self._flush(queued)
        if any(cell.group is not None for cell in queued):
            self._hand_over(queued)

    def _touch(self, access: Access) -> None:
        """Wait for the tasks that must be over before something is read or written here."""

        def in_the_way(cell: Cell) -> bool:
            channels = cell.writes if access.mode is Mode.READ else cell.writes + cell.reads
            return overlap(access.channels, channels)

        # In the order in which tasks move on, or one could slip through.
        found = [cell for cell in self._backlog.cells if in_the_way(cell)]
        for pool in self._all_pools():
            found += [cell for cell in pool.waiting if in_the_way(cell)]
        self._start_queued(found)
        found += [cell for cell in self._dispatcher.unfinished() if in_the_way(cell)]
        self._dispatcher.outcomes.wait(lambda: all(cell.over for cell in found))

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
        self._touch(self.write(file) if writes else self.read(file))
        return builtins.open(self._absolute(file), mode, *args, **kwargs)

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
        outcomes, seconds = self._dispatcher.outcomes, patience(timeout)
        self._flush()
        pools = self._all_pools()
        for pool in pools:
            pool.hurry()

        def left() -> int:
            return outcomes.left + sum(len(pool.waiting) for pool in pools)

        if not outcomes.wait(lambda: not left(), seconds):
            raise TimeoutError(f"{left()} tasks are not over after {seconds:g} s")
        self._backlog.start_over()

    # -- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Say that this client makes and starts no more tasks. What is started still runs."""
        self._closed = True
        self._flush()

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
        self._dispatcher.settle_unstarted(self._backlog.drop(), None)
        for pool in self._all_pools():
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
