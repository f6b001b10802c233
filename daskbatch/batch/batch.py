"""The class `Batch`: makes tasks, and starts, waits for and ends them on a cluster.

What a Batch and its tasks share is in its `BatchContext`. Several threads may use a Batch.
"""

from __future__ import annotations

import atexit
import builtins
import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from distributed import Client
from distributed.deploy import Cluster

from daskbatch.batch.attentive_wait import wait_for_all
from daskbatch.batch.compiled import CompiledTask, require_members
from daskbatch.batch.context import BatchContext
from daskbatch.batch.context_creation import create_context, make_initializer
from daskbatch.batch.factory import Accesses, make_function, make_settings, require_name
from daskbatch.batch.identity import Address, Identity
from daskbatch.batch.job_factory import Target
from daskbatch.batch.keywords import require_no_typo, suggesting
from daskbatch.batch.notebook import watch
from daskbatch.batch.options import TaskFactory
from daskbatch.batch.program_check import check_declarations, require_check
from daskbatch.batch.started_tasks import started_tasks
from daskbatch.batch.task import Task
from daskbatch.batch.template_function import ImportedFunction, import_template
from daskbatch.batch.told_failures import collect, tell, tell_at_exit
from daskbatch.batch.user_warnings import warn_all
from daskbatch.cluster.session import Session, open_sessions
from daskbatch.describe.access import Access, Mode
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.errors import BatchWarning, LifecycleError, SpecError
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.timeouts import Deadline, parse_timeout

if TYPE_CHECKING:
    from daskbatch.shared.creation import OwnerContext
    from daskbatch.shared.ddict import DDict
    from daskbatch.shared.queue import Queue


class Batch:
    """Runs a sequential program of tasks in parallel, on any Dask cluster.

    A Batch can be pickled and sent to other processes and to tasks. The pickle holds the
    scheduler's address and the Batch's id, never credentials. A copy that was unpickled in another
    process is a separate client from then on, registered in the background, and must be closed;
    one that is dropped, or whose process ends, has closed. A copy used inside a task closes
    itself: the task completes only when everything that it submitted has completed, and if the
    task fails, what it submitted is cancelled. A task that waits releases its worker slot.

    Parameters
    ----------
    cluster : str, path, distributed.Client, cluster object or None
        The address of a scheduler, the file that ``dask scheduler --scheduler-file`` has written
        or will write soon, a client, or any of Dask's cluster objects. The Batch uses it and
        never closes it. None uses the scheduler that the environment variable
        ``DASKBATCH_CLUSTER`` or the setting ``daskbatch.cluster`` names; if there is none, it
        starts a cluster on this machine, which ends with the Batch.
    num_workers : int or (int, int), optional
        Number of worker processes of the cluster on this machine, one task slot each; by default
        the number of CPUs that this process may use. A pair is the least and the most: the cluster
        grows while tasks wait for a slot, and shrinks when slots are idle for
        ``daskbatch.idle-timeout``. Not allowed with `cluster`, and ignored if
        ``DASKBATCH_CLUSTER`` or the setting names a scheduler.
    name : str, optional
        Name on Dask's dashboard for tasks that have no better one.
    background_batching : bool
        Whether tasks made by `import_func` start by themselves when they are needed.
    strict : bool
        Whether a task fails if a declared input or output is missing (`MissingInput`,
        `MissingOutput`), or if a Python function accesses a file below the current directory, a
        declared path, a dictionary's key or a queue in another way than it declares
        (`UndeclaredAccess`). By default the first two are warnings. Executables are not watched.
    log_dir : str or Path, optional
        A directory to which all that happens to the tasks of this client is written while it
        happens: ``events.jsonl``, and the output of each task. A second run appends to it. See
        ``docs/looking-at-a-run.md``.
    initializer : callable, optional
        Each process that runs functions of this Batch calls it once, before the first one. What it
        sets is seen by the functions: also global variables of the script. If it raises, all
        tasks of functions fail with a `ServiceLost` that names the exception.
    initargs : tuple
        The arguments of `initializer`.

    Raises
    ------
    SpecError
        A parameter is wrong. It is a `ValueError`.
    ServiceLost
        There is no cluster, or it did not start. Later, any method that needs the cluster raises
        it if the cluster is gone, or if the Batch that this is a copy of has ended.

    Notes
    -----
    Several threads may use a Batch at the same time: they may make, start and wait for tasks,
    open files and close the Batch. See `Task` for the methods of a task.

    Examples
    --------
    >>> with Batch(num_workers=2) as batch:
    ...     task = batch.function(pow, 2, 10)
    ...     task.run()
    ...     task.result.get()
    1024

    Without a ``with`` block, close and join it:

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

    @suggesting
    def __init__(
        self,
        cluster: str | os.PathLike[str] | Client | Cluster | None = None,
        *,
        num_workers: int | tuple[int, int] | None = None,
        name: str | None = None,
        background_batching: bool = True,
        strict: bool = False,
        log_dir: str | Path | None = None,
        initializer: Callable[..., Any] | None = None,
        initargs: tuple[Any, ...] = (),
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise SpecError(f"initializer= must be a callable, not {safe_repr(initializer)}")
        prepared = None if initializer is None else (initializer, tuple(initargs))
        self._context = create_context(
            *(cluster, num_workers, name, background_batching, None, bool(strict), prepared),
            log_dir,
        )
        watch(self)

    @classmethod
    def _from_context(cls, context: BatchContext) -> Batch:
        batch = cls.__new__(cls)
        batch._context = context
        return batch

    # -- description ----------------------------------------------------------------------

    @property
    def client_id(self) -> int:
        """The number of this client of the Batch; 0 is the client that created the Batch.

        Each copy is a client: one that was unpickled in another process is registered in the
        background, any other one on its first use.

        Raises
        ------
        ServiceLost
            This is a copy that has not been used before, and the Batch has ended.
        """
        return self._session.number

    @property
    def client(self) -> Client:
        """The `distributed.Client`, for everything that Dask offers."""
        return self._session.client

    @property
    def dashboard_link(self) -> str:
        """The address of Dask's dashboard; empty if there is none or if it has ended."""
        return str(self.client.dashboard_link or "")

    @property
    def num_workers(self) -> int:
        """How many tasks run at once: the number of threads of all workers of the cluster."""
        return self._session.slots

    @property
    def closed(self) -> bool:
        """Whether `close` has been called."""
        return self._context.identity.closed

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that this client has started, as long as the program holds them.

        They stand in the order in which they were started. The members of compiled tasks are
        among them, and those of the background that have begun; a compiled task itself is not.

        Examples
        --------
        >>> task = batch.function(len, "four")
        >>> task.start()
        >>> task in batch.tasks
        True
        """
        session = self._session_or_none
        return () if session is None else started_tasks(session)  # type: ignore[return-value]

    def _is_idle(self) -> bool:
        """Return whether nothing is left to do here."""
        session = self._session_or_none
        return session is None or (session.idle and not len(session.background.backlog))

    def _abandon(self) -> None:
        """End without waiting: no name of the program stands for it any longer."""
        self._context.identity.abandon()

    @property
    def _session(self) -> Session:
        return self._context.session

    @property
    def _session_or_none(self) -> Session | None:
        return self._context.identity.session_or_none()

    def __repr__(self) -> str:
        session = self._session_or_none
        state = "closed" if self.closed else "open"
        if session is None:
            return f"<Batch {state}, not used here>"
        if session.ended:
            state = "ended"
        remaining = session.dispatcher.outcomes.unfinished + len(session.background.backlog)
        return f"<Batch {state}, {session.slots} workers, {remaining} tasks left>"

    def _repr_html_(self) -> str:
        from daskbatch.batch.reporting.batch_views import batch_form  # few programs need it

        return batch_form(self._context, self.tasks)

    def _ipython_display_(self) -> None:
        from daskbatch.batch.reporting.live_display import show

        show(self, lambda batch: not batch._is_idle())

    def __reduce__(self) -> tuple[Any, ...]:
        # The id and the address of the Batch, but nothing that is secret.
        context = self._context
        settings = context.name, context.directory, context.background_batching, context.strict
        arguments: tuple[Any, ...] = (tuple(context.identity.address), *settings)
        if type(self) is Batch and context.initializer is None:
            return _copy, arguments
        initializer = None if context.initializer is None else context.initializer.call
        # A subclass arrives as itself, with its attributes.
        state = {name: value for name, value in vars(self).items() if name != "_context"}
        return _copy, (*arguments, initializer, type(self)), state or None

    # -- making tasks ---------------------------------------------------------------------

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
            The function. A coroutine function is run until it returns.
        *args, **kwargs
            Arguments of the function, pickled now. A `Task`, or its ``result``, ``stdout`` or
            ``stderr``, at any depth among them stands for its value, and the new task waits for
            it. If the function has a keyword that this method uses, use `options`. Another way to
            write a call is ``function(f, (a, b), [reads…], [writes…])``.
        reads, writes : Access or list of Access, optional
            What the task reads and writes; see `read` and `write`.
        name : str, optional
            Name of the task in messages; by default the name of the function.
        timeout : float or timedelta, optional
            Maximum run time in seconds. A task that runs longer is stopped, and its result raises
            `TaskTimeout`. A task with a timeout runs in a child process of the worker; see
            `isolation` of `options`.

        Returns
        -------
        Task
            The task, not started. If its arguments cannot be pickled, its result raises
            `SerializationError`.

        Raises
        ------
        SpecError
            A parameter is of the wrong type.
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
        if kwargs:
            require_no_typo(target, kwargs)
        if reads is None and writes is None and name is None and timeout is None:
            return make_function(self._context, target, args, kwargs)
        options = self.options(reads=reads, writes=writes, name=name, timeout=timeout)
        return options.function(target, *args, **kwargs)

    @suggesting
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
        """Make a task of a serial executable. It is run without a shell.

        Parameters
        ----------
        target : str or Path
            The executable.
        *args
            Its arguments. A task among them stands for its result, as text.
        cwd : str or Path, optional
            Working directory; by default the directory in which this Batch was made.
        env : mapping, optional
            Environment variables that are added to those of the worker.
        stdin : str, bytes, Path or task, optional
            Standard input: a text, or the path of a file that is read; by default it is empty.
        check : bool
            Whether an exit code other than 0 is a failure.
        reads, writes, name, timeout
            See `function`. An executable that runs too long is killed with all processes that it
            started.

        Returns
        -------
        Task
            The task, not started. Its result is the exit code: negative for a signal, 127 if the
            executable is not found. With `check`, an exit code other than 0 raises
            `ProcessFailed`.

        Raises
        ------
        SpecError
            A parameter is of the wrong type.
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

    def job(
        self,
        target: Target,
        *args: Any,
        num_procs: int | None = None,
        cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None,
        stdin: Any = None,
        check: bool = True,
        reads: Accesses = None,
        writes: Accesses = None,
        name: str | None = None,
        timeout: float | timedelta | None = None,
        **kwargs: Any,
    ) -> Task:
        """Make a task of a parallel job: several processes, its *ranks*, which can use MPI.

        All ranks get their slots at once. A launcher of MPI starts them; see the setting
        ``daskbatch.mpi-launcher``, and the page ``docs/mpi.md``. Each rank has its number in the
        variable ``DASKBATCH_RANK``, and the number of ranks in ``DASKBATCH_SIZE``.

        Parameters
        ----------
        target : str, Path, callable, or list of (int, ProcessTemplate)
            The executable or the function that every rank runs. Or several executables, each with
            its number of ranks and its arguments.
        *args
            Arguments of the executable or function. A task among them stands for its result.
        num_procs : int
            The number of ranks; with a list it is the sum of its numbers, and can be left out.
        cwd, env
            See `process`.
        stdin : str, bytes, Path or task, optional
            Standard input of the first rank of executables; that of the others is empty.
        check : bool
            Whether an exit code other than 0 is a failure, for executables.
        reads, writes, name, timeout
            See `function`. When the time is up, all ranks are ended, with all processes that they
            have started.
        **kwargs
            Arguments of the function.

        Returns
        -------
        Task
            The task, not started. The result of an executable is its exit code: that of the lowest
            rank that failed by itself. The result of a list is a list, with one code for each
            executable. The result of a function is the list of what it has returned on each rank.
            ``stdout`` has the lines of all ranks in the order of the ranks, and ``stdout.rank(i)``
            those of one rank.

        Raises
        ------
        SpecError
            A parameter is of the wrong type, or the number of ranks is not a whole number from 1.
        SubmitAfterCloseError
            The Batch has been closed.

        Examples
        --------
        >>> job = batch.job("sh", "-c", "echo rank $DASKBATCH_RANK of $DASKBATCH_SIZE", num_procs=2)
        >>> job.run()
        >>> job.get(), job.stdout.get(), job.stdout.rank(1)
        (0, 'rank 0 of 2\\nrank 1 of 2', 'rank 1 of 2')
        """
        options = self.options(
            reads=reads, writes=writes, name=name, timeout=timeout, cwd=cwd, env=env
        )
        return options.job(target, *args, num_procs=num_procs, stdin=stdin, check=check, **kwargs)

    @suggesting
    def options(
        self,
        *,
        reads: Accesses = None,
        writes: Accesses = None,
        removes: Accesses = None,
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
    ) -> TaskFactory:
        """Set how tasks are run, apart from their arguments.

        Parameters
        ----------
        reads, writes, name, timeout
            See `function`.
        removes : Access or list of Access, optional
            Writes by which a task removes files, as ``[batch.write(path)]``: like other writes for
            the order, but the files need not be there afterwards.
        retries : int
            How often a task may run again after it has failed: by an exception, an exit code other
            than 0, a timeout or a crash.
        resources : mapping, optional
            Amounts of Dask's abstract worker resources that a task takes, such as ``{"GPU": 1}``.
        workers : str or list of str, optional
            Addresses or host names of the workers that may run the tasks.
        priority : float
            Tasks of higher priority run first.
        isolation : str, optional
            Where functions run: ``"thread"``, in a thread of the worker, or ``"process"``, in a
            child process, which can be killed and has its own files, environment and directory.
            ``"fresh"`` is a child process that nothing has used before, and nothing uses after.
            By default a process if `timeout`, `cores`, `cwd` or `env` is given, else a thread.
        cores : int, float or str, optional
            The number of slots of one host that a task takes, all granted at once: 2, ``"1.5"``,
            ``"500m"`` (thousandths; a part of a slot counts as a slot). Tasks that need several
            slots wait for them in the order of their priority and their start; other tasks run
            meanwhile. Linear algebra libraries are limited to this number of threads, unless
            `env` says otherwise. For a parallel job, the slots of each rank.
        cwd, env
            Working directory, and added environment variables, of executables and of isolated
            functions; see `process`.
        restartable : bool
            Whether a task may run again after the loss of its worker though it reads what it
            writes, since it continues from what it has saved itself.
        walltime : float or timedelta, optional
            How long a task may take, in seconds. It does not begin on a worker whose announced end
            comes sooner (``--lifetime``, or the time limit of its SLURM job). Nothing stops it; see
            `timeout`.

        Returns
        -------
        TaskFactory
            An object with the methods ``function``, ``process`` and ``job``. There all keywords go
            to the function, but for ``num_procs``, ``stdin`` and ``check`` of a job.

        Raises
        ------
        SpecError
            A parameter is of the wrong type or out of range, or isolation is ``"thread"`` and
            `cwd` or `env` is given. A missing resource or worker is reported when a task is
            started.

        Examples
        --------
        >>> task = batch.options(name="total", retries=2).function(sum, [1, 2], start=3)
        >>> task.run()
        >>> task.get()
        6
        """
        settings = make_settings(
            self._context,
            reads=reads,
            writes=writes,
            removes=removes,
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
        return TaskFactory(self._context, settings)

    def read(self, obj: Any, *channels: Any) -> Access:
        """Declare a read, for the ``reads=`` of a task.

        Parameters
        ----------
        obj : str, Path, DDict, Queue or CommunicationObject
            If file names follow: the directory that they are in. If none follow: one file, or a
            directory with everything below it. Or another object.
        *channels
            File names in the directory, or keys or channels of the object. They are taken
            literally: ``*.txt`` is the name of one file, and not a pattern.

        Returns
        -------
        Access
            What ``reads=`` takes.

        Raises
        ------
        SpecError
            Tasks cannot communicate through an object of this type.

        Examples
        --------
        >>> print(batch.read("/data", "a.txt", "b.txt"))
        read of /data/a.txt, /data/b.txt
        """
        return self._context.access(Mode.READ, obj, channels)

    def write(self, obj: Any, *channels: Any) -> Access:
        """Declare a write, for the ``writes=`` of a task; see `read`.

        Raises
        ------
        SpecError
            Tasks cannot communicate through an object of this type.

        Examples
        --------
        >>> print(batch.write("/data/../data/a.txt"))
        write of /data/a.txt
        """
        return self._context.access(Mode.WRITE, obj, channels)

    def import_func(
        self, ptd_file: str | Path, *import_args: Any, **import_kwargs: Any
    ) -> ImportedFunction:
        """Import a function that makes tasks by a template, a PTD file.

        Parameters
        ----------
        ptd_file : str or Path
            Path of the file; ``examples/template.yml`` explains the format.
        *import_args, **import_kwargs
            Values for what the file declares below ``import_args`` and ``import_kwargs``:
            functions, directories, and whatever else all tasks share.

        Returns
        -------
        callable
            Takes what the file declares below ``args`` and ``kwargs``; each call makes a task.
            The task waits in the background until it, or another task in the background, is
            needed: a task is needed when the program asks for its result, waits for it or starts
            it, when a task that takes its result is started, when `Batch.open` needs its writes,
            and at a `fence`. Then all tasks in the background are started, in parallel as far as
            their reads and writes allow. With ``background_batching=False`` the tasks must be
            compiled and started like all others. Functions that the file calls are called in this
            process, at each call.

        Raises
        ------
        TemplateError
            The file has an error; the message says in which line, and what was expected.
        SpecError
            An argument is missing, too many, or of the wrong type; also when the returned function
            is called. It is a `ValueError`.

        Examples
        --------
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
        ...     _ = file.write(
        ...         "{import_args: [f], args: [i], type: function,"
        ...         " executables: [{target: f, args: [i]}]}"
        ...     )
        ...     file.flush()
        ...     absolute = batch.import_func(file.name, abs)
        >>> tasks = [absolute(-1), absolute(-2)]
        >>> tasks[0].state
        'queued'
        >>> [task.get() for task in tasks]
        [1, 2]
        """
        return import_template(self._context, ptd_file, import_args, import_kwargs)

    @suggesting
    def compile(
        self, tasks: Iterable[Task], name: str | None = None, check: str | None = "warn"
    ) -> CompiledTask:
        """Make one task of many. A compiled task without members is over at once.

        Members of the same name are numbered: ``clean[0]``, ``clean[1]``. What they declare is
        checked: a path that is read, that no earlier task writes, and that is not there; and a
        write that the next one of the same path replaces before any task has read it.

        Parameters
        ----------
        tasks : list of Task
            The members, in an order in which a sequential program could run them. Members keep
            this order where their reads, writes and arguments require it; otherwise they run in
            parallel.
        name : str, optional
            Name in messages and on Dask's dashboard.
        check : str, optional
            ``"warn"`` for a `ProgramWarning`, ``"error"`` for a `GraphError`, None for no check.

        Raises
        ------
        GraphError
            The list is not a sequential program of tasks of this Batch: a task is in it twice,
            takes the result of a later one, or is a member of another compiled task. The message
            names the tasks.
        LifecycleError
            One of the tasks has been started, or waits in the background.
        SpecError
            The name is not a text, or there is no check of this name.
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
        self._context.require_open()
        session = self._session
        members = require_members(session.client_id, tasks)
        require_name(name)
        require_check(check)
        if name is None:
            names = {task._record.base_name for task in members}
            name = names.pop() if len(names) == 1 else self._context.name or "batch"
        record = TaskRecord(session.client_id, next(session.numbers), name, None)

        def check_members(records: Sequence[TaskRecord]) -> None:
            check_declarations(records, str(name), check, session.background.writers)

        return CompiledTask(self._context, record, members, check_members)

    # -- shared objects -------------------------------------------------------------------

    def ddict(
        self,
        *,
        shards: int | None = None,
        replicas: int = 1,
        wait_for_keys: bool = False,
        timeout: float | timedelta | None = None,
        memory_limit: int | str | None = None,
        name: str | None = None,
    ) -> DDict:
        """Make a dictionary on the workers of this Batch; it ends with the Batch.

        Before this process reads or writes a key, the background tasks that access the key and
        must come first are started and waited for.

        Parameters
        ----------
        shards, replicas, wait_for_keys, timeout, memory_limit, name
            See `DDict`.

        Raises
        ------
        SpecError
            A parameter is wrong, or there are fewer workers than replicas.
        SubmitAfterCloseError
            The Batch has been closed.
        ServiceLost
            The cluster is gone, or has no worker.

        Examples
        --------
        >>> d = batch.ddict()
        >>> task = batch.function(d.update, {"a": 1}, writes=[batch.write(d, "a")])
        >>> task.run()
        >>> d["a"]
        1
        """
        from daskbatch.shared.ddict import DDict  # few programs need it

        return DDict(
            self._owner_context(),
            shards=shards,
            replicas=replicas,
            wait_for_keys=wait_for_keys,
            timeout=timeout,
            memory_limit=memory_limit,
            name=name,
        )

    def queue(self, maxsize: int = 0, *, replicas: int = 1, name: str | None = None) -> Queue:
        """Make a queue on a worker of this Batch; it ends with the Batch.

        If this process finds the queue empty or full, asks for its size or joins it, the
        background tasks that use the queue are started, but not waited for.

        Parameters
        ----------
        maxsize, replicas, name
            See `Queue`.

        Raises
        ------
        SpecError, SubmitAfterCloseError, ServiceLost
            See `ddict`.

        Examples
        --------
        >>> queue = batch.queue(maxsize=10)
        >>> batch.function(queue.put, "a").start()
        >>> queue.get()
        'a'
        """
        from daskbatch.shared.queue import Queue

        return Queue(self._owner_context(), maxsize, replicas=replicas, name=name)

    def _owner_context(self) -> OwnerContext:
        """Return where the Batch creates shared objects; `DDict` and `Queue` call this."""
        return self._context.owner_context()

    # -- waiting --------------------------------------------------------------------------

    def open(self, path: str | Path, mode: str = "r", *args: Any, **kwargs: Any) -> IO[Any]:
        """Open a file once the tasks that access it are over, however they have ended.

        Parameters
        ----------
        path : str or Path
            The path. A task that declares this path reads or writes the same file. A relative path
            is relative to the directory in which this Batch was made.
        mode : str
            See the built-in `open`. To read, this waits for the tasks that write the file or a
            directory above it; to write, append or update, also for those that read it. Tasks in
            the background are started first.
        *args, **kwargs
            See the built-in `open`.

        Returns
        -------
        file object
            What the built-in `open` returns. Tasks that are started later do not wait until it is
            closed.

        Raises
        ------
        SpecError
            `path` is not a path.
        OSError
            The file cannot be opened.

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
            raise SpecError(f"batch.open takes a path as a str or a Path, not {safe_repr(path)}")
        file = os.fspath(path)
        writes = isinstance(mode, str) and not set(mode).isdisjoint("wax+")
        self._context.await_conflicting_tasks(self.write(file) if writes else self.read(file))
        # An empty path must not become the directory: the built-in `open` reports it.
        return builtins.open(file and self._context.absolute(file), mode, *args, **kwargs)

    def fence(self, timeout: float | None = None) -> None:
        """Wait for all tasks that this client has started, and for those in the background.

        Reads and writes of template tasks before the fence order nothing that comes after it. A
        `TasksFailedWarning` says which tasks have failed, if the program has not looked at that;
        so do `join` and the end of a ``with`` block.

        Parameters
        ----------
        timeout : float, optional
            Maximum number of seconds to wait.

        Raises
        ------
        TimeoutError
            Tasks are not over within `timeout`.

        Examples
        --------
        >>> batch.function(len, "abc").start()
        >>> batch.fence()
        """
        session, seconds = self._session_or_none, parse_timeout(timeout)
        if session is not None:
            self._wait_for_all(session, seconds)
            tell(session)

    def _wait_for_all(self, session: Session, seconds: float | None) -> None:
        outcomes, background = session.dispatcher.outcomes, session.background
        background.flush()
        pools = background.executor_pools
        for pool in pools:
            pool.flush()

        def count_unfinished() -> int:
            return outcomes.unfinished + sum(len(pool.waiting) for pool in pools)

        if not wait_for_all(session, count_unfinished, seconds):
            raise TimeoutError(f"{count_unfinished()} tasks are not over after {seconds:g} s")
        background.backlog.start_over()

    def report(self, filename: str | Path = "report.html") -> Path:
        """Write what the tasks of this client have done into one HTML file; see `CompiledTask`.

        It has `tasks`: those that this client has started and that the program still holds. It
        works at any time, also after the Batch has ended. With ``log_dir=``,
        ``python -m daskbatch report`` makes one of all tasks.

        Parameters
        ----------
        filename : str or Path
            The file; it is replaced.

        Returns
        -------
        Path
            The path of the file.

        Raises
        ------
        OSError
            The file cannot be written.

        Examples
        --------
        >>> import tempfile
        >>> task = batch.function(len, "four")
        >>> task.run()
        >>> with tempfile.TemporaryDirectory() as directory:
        ...     batch.report(Path(directory) / "run.html").name
        'run.html'
        """
        from daskbatch.batch.reporting.batch_views import write_batch_report

        return write_batch_report(self._context, self.tasks, filename)

    # -- the end --------------------------------------------------------------------------

    def close(self) -> None:
        """Declare that this client makes and starts no more tasks. Closing twice has no effect.

        Started tasks continue, and tasks in the background are started. Every client must close:
        the one that created the Batch, and each copy that was used. A task need not close, since
        its client ends with it. To make or start a task later raises `SubmitAfterCloseError`.
        """
        self._context.identity.close()

    def join(self, timeout: float | None = None) -> None:
        """Wait until every client has closed and all tasks are over, then end the Batch.

        A cluster that the Batch started ends, too; a cluster that was given continues.

        Parameters
        ----------
        timeout : float, optional
            Maximum number of seconds to wait.

        Raises
        ------
        LifecycleError
            `close` has not been called, or this client did not create the Batch.
        TimeoutError
            Tasks or clients are left after `timeout`; the Batch can be joined again.
        """
        session = self._session_or_none
        if session is None or session.number:
            raise LifecycleError(
                "only the client that created a Batch can join it; end a copy with close(), and "
                "wait for its own tasks with fence()"
            )
        if not session.closed:
            raise LifecycleError("close() the Batch before join(): join waits for the last task")
        seconds = parse_timeout(timeout)
        deadline = Deadline(seconds)
        self._wait_for_all(session, seconds)
        notices = collect(session)
        if not session.ended:
            try:
                others = session.wait_until_alone(deadline.remaining())
                if others:
                    raise TimeoutError(f"after {seconds:g} s: {'; '.join(others)}")
            except BaseException:
                with contextlib.suppress(BatchWarning):
                    warn_all(notices, session.origin)
                raise
            session.end()
        # Last: a filter may make an exception of a warning.
        warn_all(notices, session.origin)

    def terminate(self) -> None:
        """Cancel everything that is not over, and leave the cluster. Twice has no effect.

        Running tasks are stopped. A cluster that the Batch started is killed. If the client that
        created the Batch terminates, all other clients end, too. A copy cancels its own tasks
        only.

        Examples
        --------
        >>> batch = Batch(num_workers=1)
        >>> task = batch.process("sleep", 3600)
        >>> task.start()
        >>> batch.terminate()
        >>> task.state
        'cancelled'
        """
        # First: `close` would start the tasks in the background.
        session = self._session_or_none
        if session is not None:
            session.end()
        self.close()

    def __enter__(self) -> Batch:
        """Return the Batch itself; it ends with the block."""
        self._context.require_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the Batch: `close` and `join` it, or `terminate` it if the block has raised.

        A copy does not join; it waits for its own tasks by `fence`. Exceptions of tasks are not
        raised here.
        """
        if kind is not None:
            self.terminate()
            return
        self.close()
        session = self._session_or_none
        if session is not None and session.number == 0:
            self.join()
        else:
            self.fence()


def open_batch(
    cluster: str | os.PathLike[str] | Client | Cluster | None,
    num_workers: int | tuple[int, int] | None,
    name: str | None,
    environment: Mapping[str, str],
) -> Batch:
    """Make a Batch whose workers have additional environment variables.

    Parameters
    ----------
    cluster, num_workers, name
        See `Batch`.
    environment : mapping
        Added to the environment of the workers, if the Batch starts the cluster.
    """
    return Batch._from_context(create_context(cluster, num_workers, name, True, environment))


def _copy(
    address: tuple[str, str, bool],
    name: str | None,
    directory: str,
    background_batching: bool,
    strict: bool,
    initializer: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
    kind: type[Batch] = Batch,
) -> Batch:
    """Unpickle a Batch: the copy is a separate client."""
    identity = Identity(Address(*address))
    prepared = make_initializer(identity.address.batch, initializer)
    copy = kind._from_context(
        BatchContext(identity, name, directory, background_batching, strict, None, prepared)
    )
    identity.register_if_unpickled_elsewhere()
    return copy


@atexit.register
def _tell_at_exit() -> None:
    # Before the sessions end: this is registered after their own function.
    tell_at_exit(open_sessions())
