"""The Batch: where a user makes tasks, puts them in order and ends the work.

Does not know how tasks are planned or run; it hands records to those who do.
"""

from __future__ import annotations

import atexit
import itertools
import logging
import os
import re
import uuid
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

from distributed import Client
from distributed.deploy import Cluster

from daskbatch import config
from daskbatch.compiled import CompiledTask, require_members, require_own
from daskbatch.configured import Accesses, Configured
from daskbatch.describe.access import Access, Mode, make_access
from daskbatch.describe.spec import (
    DEFAULT,
    make_options,
)
from daskbatch.dispatch.cell import Cell, Group, Phase
from daskbatch.dispatch.cluster import ClusterBackend
from daskbatch.dispatch.connection import connect
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.lower import Setting
from daskbatch.errors import LifecycleError, SubmitAfterCloseError
from daskbatch.task import Task
from daskbatch.worker.plugin import run_on_worker

_logger = logging.getLogger("daskbatch")


class Batch:
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

    def __init__(
        self,
        cluster: str | Client | Cluster | None = None,
        *,
        num_workers: int | None = None,
        name: str | None = None,
        background_batching: bool = True,
    ) -> None:
        self._uid = uuid.uuid4().hex[:8]
        self._name = name
        self.client_id = 0
        self._background_batching = bool(background_batching)
        self._directory = os.getcwd()
        self._numbers = itertools.count()
        self._closed = self._ended = False
        self._connection = connect(cluster, num_workers, self._directory)
        try:
            backend = ClusterBackend(self._connection.client, f"daskbatch-{self._uid}")
            setting = Setting(
                topic=f"daskbatch-{self._uid}",
                entry=run_on_worker,
                budget=config.get_seconds("block-budget"),
                share_limit=config.get_bytes("share-limit"),
                inline_limit=config.get_bytes("inline-limit"),
                output_limit=config.get_bytes("output-limit"),
            )
            self._dispatcher = Dispatcher(backend, setting)
            backend.connect(self._dispatcher.report, self._dispatcher.key_over)
        except BaseException:
            self._connection.close(kill=True)
            raise
        self._backend = backend
        self._plain = Configured(self, DEFAULT)
        # Not at exit: `_end_all` does that while other threads still work.
        self._finalizer = weakref.finalize(self, self._connection.abandon)
        self._finalizer.atexit = False
        _open_batches.add(self)

    # -- what it is -----------------------------------------------------------------------

    @property
    def client(self) -> Client:
        """The Dask client, for all that Dask offers."""
        return self._connection.client

    @property
    def dashboard_link(self) -> str:
        """The address of Dask's dashboard."""
        return str(self.client.dashboard_link)

    @property
    def num_workers(self) -> int:
        """How many tasks run at once: the threads of the cluster's workers."""
        return self._backend.slots

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._closed

    def __repr__(self) -> str:
        state = "ended" if self._ended else "closed" if self._closed else "open"
        return f"<Batch {state}, {self.num_workers} workers, {self._dispatcher.left} tasks left>"

    def __reduce__(self) -> tuple[Any, ...]:
        raise TypeError("a Batch cannot be sent to another process")

    # -- describing tasks -----------------------------------------------------------------

    def function(
        self,
        target: Callable[..., Any],
        *args: Any,
        reads: Accesses = None,
        writes: Accesses = None,
        name: str | None = None,
        timeout: float | timedelta | None = None,
        **kwargs: Any,
    ) -> Task:
        """Make a task of a Python function.

        Parameters
        ----------
        target : callable
            The function; a coroutine function is run to its end.
        *args, **kwargs
            Its arguments, as they are now. A `Task`, or its ``result``, ``stdout`` or
            ``stderr``, anywhere among them stands for the value, and is waited for. For
            keywords that are taken here use `options`. ``function(f, (a, b), [reads…], [writes…])``
            is the other way to write it.
        reads, writes : list of Access
            What it reads and writes; see `read` and `write`.
        name : str, optional
            What messages call it; the function's name by default.
        timeout : float or timedelta, optional
            How many seconds it may run.

        Raises
        ------
        SpecError
            Something is of the wrong type.
        SubmitAfterCloseError
            The Batch has been closed.

        Examples
        --------
        >>> three = batch.function(len, "abc")
        >>> power = batch.function(pow, 2, three.result)
        >>> batch.compile([three, power]).run()
        >>> power.get()
        8
        """
        if reads is None and writes is None and name is None and timeout is None:
            return self._plain.make_function(target, args, kwargs)
        options = self.options(reads=reads, writes=writes, name=name, timeout=timeout)
        return options.make_function(target, args, kwargs)

    def process(
        self,
        target: str | Path,
        *args: Any,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Any = None,
        check: bool = True,
        reads: Accesses = None,
        writes: Accesses = None,
        name: str | None = None,
        timeout: float | timedelta | None = None,
    ) -> Task:
        """Make a task of a serial executable. There is no shell.

        Parameters
        ----------
        target : str or Path
            The executable.
        *args
            Its arguments; a task among them stands for its result, as text.
        cwd : str or Path, optional
            Its working directory; by default the one in which this Batch was made.
        env : mapping, optional
            Added to the worker's environment.
        stdin : str, bytes, Path or task, optional
            What it reads: a text, or the content of a file; nothing by default.
        check : bool
            Whether an exit code other than 0 is a failure.
        reads, writes, name, timeout
            See `function`.

        Raises
        ------
        SpecError
            Something is of the wrong type.
        SubmitAfterCloseError
            The Batch has been closed.

        Examples
        --------
        >>> task = batch.process("echo", "hello")
        >>> task.run()
        >>> task.result.get(), task.stdout.get()
        (0, 'hello')
        """
        options = self.options(
            reads=reads, writes=writes, name=name, timeout=timeout, cwd=cwd, env=env
        )
        return options.process(target, *args, stdin=stdin, check=check)

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
    ) -> Configured:
        """Say how tasks are to be run, apart from their arguments.

        Parameters
        ----------
        reads, writes, name, timeout
            See `function`.
        retries : int
            How often a task is tried again after a failure of its own.
        resources : mapping, optional
            What it takes of Dask's abstract worker resources, such as ``{"GPU": 1}``.
        workers : str or list of str, optional
            Addresses or hosts of the workers that may run it.
        priority : float
            Higher runs first.
        isolation : str, optional
            ``"thread"``: the worker's thread.
        cwd, env
            For processes; see `process`.

        Returns
        -------
        Configured
            With ``function`` and ``process``, which pass all keywords on.

        Examples
        --------
        >>> task = batch.options(name="total", retries=2).function(sum, [1, 2], start=3)
        >>> task.run()
        >>> task.get()
        6
        """
        made = make_options(
            timeout=timeout,
            retries=retries,
            resources=resources,
            workers=workers,
            priority=priority,
            isolation=isolation,
        )
        return Configured(self, made, reads, writes, name, cwd, env)

    def read(self, obj: Any, *channels: Any) -> Access:
        """Say that something is read, for the ``reads=`` of a task.

        Parameters
        ----------
        obj : str, Path, DDict, Queue or CommunicationObject
            A directory, when file names follow; one file or a directory with all below it,
            when none do; or another object.
        *channels
            The file names, or keys, or channels.

        Raises
        ------
        SpecError
            Tasks cannot communicate through such an object.

        Examples
        --------
        >>> print(batch.read("/data", "a.txt", "b.txt"))
        read of /data/a.txt, /data/b.txt
        """
        return make_access(Mode.READ, obj, channels, self._directory)

    def write(self, obj: Any, *channels: Any) -> Access:
        """Say that something is written, for the ``writes=`` of a task; see `read`.

        Examples
        --------
        >>> print(batch.write("/data/../data/a.txt"))
        write of /data/a.txt
        """
        return make_access(Mode.WRITE, obj, channels, self._directory)

    def compile(self, tasks: Iterable[Task], name: str | None = None) -> CompiledTask:
        """Make one task of many.

        Parameters
        ----------
        tasks : list of Task
            In an order in which a sequential program could run them. What must keep that
            order does; all else runs in parallel.
        name : str, optional
            What messages and Dask's dashboard call it.

        Raises
        ------
        GraphError
            The list is no sequential program of tasks of this Batch.
        LifecycleError
            One of them has been started.
        SubmitAfterCloseError
            The Batch has been closed.

        Examples
        --------
        >>> squares = [batch.function(pow, i, 2) for i in range(3)]
        >>> program = batch.compile(squares)
        >>> program.run()
        >>> program.get()
        [0, 1, 4]
        """
        self._require_open()
        members = require_members(self, tasks)
        if name is None:
            names = {task.name for task in members}
            name = names.pop() if len(names) == 1 else self._name or "batch"
        return CompiledTask(self, Cell(self._uid, next(self._numbers), name, None), members)

    # -- running --------------------------------------------------------------------------

    def _submit(self, cells: Sequence[Cell], name: str, group: Group | None = None) -> None:
        self._require_open()
        for cell in cells:
            if cell.call is not None and cell.call.references:
                require_own(self, cell)
                _require_producers(cell)
        self._dispatcher.submit(cells, _dashboard_name(name), group)

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
        if not self._dispatcher.wait(lambda: not self._dispatcher.left, timeout):
            raise TimeoutError(f"{self._dispatcher.left} tasks are not over after {timeout:g} s")

    # -- the end --------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._closed:
            raise SubmitAfterCloseError(
                "this Batch has been closed: no task can be made or started any more"
            )

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
        self._end(kill=False)

    def terminate(self) -> None:
        """Give up all work, and leave the cluster at once; an embedded one is killed."""
        self._closed = True
        self._dispatcher.give_up()
        self._end(kill=True)

    def _end(self, kill: bool) -> None:
        if self._ended:
            return
        self._ended = True
        _open_batches.discard(self)
        self._finalizer.detach()
        self._backend.disconnect()
        self._connection.close(kill)

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


def _require_producers(cell: Cell) -> None:
    for producer in cell.producers:
        if producer.phase == Phase.CREATED and (
            producer.group is None or producer.group is not cell.group
        ):
            which = producer.label if producer.group is None else repr(producer.group.name)
            raise LifecycleError(
                f"task {cell.label} takes the result of {producer.label}, which has not been "
                f"started: start {which} first, or compile them together"
            )


def _dashboard_name(name: str) -> str:
    """Make a name that Dask's dashboard keeps whole: it cuts at what is no letter or digit."""
    plain = re.sub(r"[^A-Za-z0-9_.]+", "_", name)[:60]
    return plain if plain[:1].isalpha() else f"task_{plain}"


_open_batches: weakref.WeakSet[Batch] = weakref.WeakSet()


@atexit.register
def _end_all() -> None:
    for batch in list(_open_batches):
        left = batch._dispatcher.left
        if left:
            _logger.warning(
                "%d tasks were given up, because the program ended; "
                "call close() and join() on a Batch to wait for its tasks",
                left,
            )
        batch.terminate()
