"""Makes tasks, and programs of them, out of what a user writes.

Does not know clusters: what it makes can be started, and that is all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from daskbatch.batch.compiled import CompiledTask, require_members
from daskbatch.batch.identity import Identity
from daskbatch.batch.options import Accesses, TaskFactory, make_function, require_name
from daskbatch.batch.task import Task
from daskbatch.batch.template_function import ImportedFunction, import_template
from daskbatch.cluster.session import Session
from daskbatch.describe.access import Access, Mode, make_access
from daskbatch.describe.spec import make_options
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.errors import SpecError, SubmitAfterCloseError

if TYPE_CHECKING:
    from daskbatch.batch.batch import Batch


class TaskMaker:
    """What of a Batch describes tasks.

    Parameters
    ----------
    identity : Identity
        As which client of which Batch.
    name : str, optional
        What compiled tasks are called that have no better name.
    directory : str
        What paths are relative to.
    """

    def __init__(self, identity: Identity, name: str | None, directory: str) -> None:
        self._identity = identity
        self._name = name
        self._directory = directory

    @property
    def _session(self) -> Session:
        return self._identity.session()

    @property
    def _batch(self) -> Batch:
        return cast("Batch", self)

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
        reads, writes : Access or list of Access, optional
            What it reads and writes; see `read` and `write`.
        name : str, optional
            What messages call it; the function's name by default.
        timeout : float or timedelta, optional
            How many seconds it may run; then it is stopped, and its result is `TaskTimeout`.
            With one it runs in a child process of the worker; see `isolation` of `options`.

        Returns
        -------
        Task
            Not started yet. What cannot be sent is a `SerializationError` of its result.

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
            return make_function(self._batch, target, args, kwargs)
        options = self.options(reads=reads, writes=writes, name=name, timeout=timeout)
        return options.function(target, *args, **kwargs)

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
            See `function`; what has run for too long is ended with all that it has started.

        Returns
        -------
        Task
            Not started yet. Its result is the exit code: negative for a signal, 127 where the
            executable is not found. With `check`, one other than 0 is `ProcessFailed`.

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
    ) -> TaskFactory:
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
            Where functions run: ``"thread"``, in the worker's thread, or ``"process"``, in a
            child that can be killed and has its own files, environment and directory. By
            default a process where `timeout`, `cwd` or `env` is given, else a thread.
        cwd, env
            Working directory, and what is added to the environment, of executables and of
            isolated functions; see `process`.

        Returns
        -------
        TaskFactory
            With ``function`` and ``process``; all keywords of a function are its own there.

        Raises
        ------
        SpecError
            Something is of the wrong type, or out of range; or isolation is ``"thread"`` and
            there is a `cwd` or an `env`. That no worker has the resources, or is one of
            `workers`, is found when a task is started.

        Examples
        --------
        >>> task = batch.options(name="total", retries=2).function(sum, [1, 2], start=3)
        >>> task.run()
        >>> task.get()
        6
        """
        if cwd is not None and not isinstance(cwd, (str, os.PathLike)):
            raise SpecError(f"cwd= must be a path, not {cwd!r}")
        made = make_options(
            timeout=timeout,
            retries=retries,
            resources=resources,
            workers=workers,
            priority=priority,
            isolation=isolation,
            cwd=None if cwd is None else self._absolute(cwd),
            env=env,
        )
        return TaskFactory(self._batch, made, reads, writes, name)

    def read(self, obj: Any, *channels: Any) -> Access:
        """Say that something is read, for the ``reads=`` of a task.

        Parameters
        ----------
        obj : str, Path, DDict, Queue or CommunicationObject
            A directory, when file names follow; one file or a directory with all below it,
            when none do; or another object.
        *channels
            The file names, or keys, or channels. All are taken as they stand: ``*.txt`` is a
            file of that name, and no pattern.

        Returns
        -------
        Access
            What ``reads=`` takes.

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

        Raises
        ------
        SpecError
            Tasks cannot communicate through such an object.

        Examples
        --------
        >>> print(batch.write("/data/../data/a.txt"))
        write of /data/a.txt
        """
        return make_access(Mode.WRITE, obj, channels, self._directory)

    def import_func(
        self, ptd_file: str | Path, *import_args: Any, **import_kwargs: Any
    ) -> ImportedFunction:
        """Import a function that makes tasks by a template, a PTD file.

        Parameters
        ----------
        ptd_file : str or Path
            The file; ``examples/template.yml`` explains what it holds.
        *import_args, **import_kwargs
            What it declares below ``import_args`` and ``import_kwargs``: functions, directories,
            and whatever else all tasks share.

        Returns
        -------
        callable
            Takes what the file declares below ``args`` and ``kwargs``; each call makes a task.
            It waits in the background until it, or another one, is needed: asked for its
            result, waited for or started, taken by a task that is started, in the way of
            `Batch.open`, or at a `fence`. Then all that wait are started, in parallel where
            what they read and write lets them. With ``background_batching=False`` they are to
            be compiled and started as others are.
            Functions that the file calls are called here, anew at each call.

        Raises
        ------
        TemplateError
            Something in the file is wrong; the message says the line, and what was expected.
        SpecError
            An argument is missing, too many, or of the wrong type. So it is when the function
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
        return import_template(self._batch, ptd_file, import_args, import_kwargs)

    def _made_by_template(self, task: Task) -> Task:
        """Take in a task that an imported function has made."""
        return task

    def compile(self, tasks: Iterable[Task], name: str | None = None) -> CompiledTask:
        """Make one task of many; of none, one that is over.

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
            The list is no sequential program of tasks of this Batch: one is there twice, takes
            the result of a later one, or is a member elsewhere; the message names them.
        LifecycleError
            One of them has been started, or waits in the background.
        SpecError
            The name is no text.
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
        members = require_members(self._batch, tasks)
        require_name(name)
        if name is None:
            names = {task.name for task in members}
            name = names.pop() if len(names) == 1 else self._name or "batch"
        session = self._session
        record = TaskRecord(session.client_id, next(session.numbers), name, None)
        return CompiledTask(self._batch, record, members)

    def _absolute(self, path: str | Path) -> str:
        # Not normalised: what ".." is behind a link is for the system to say.
        return os.path.join(self._directory, path)

    def _require_open(self) -> None:
        if self._identity.closed:
            raise SubmitAfterCloseError(
                "this Batch has been closed: nothing can be made or started any more"
            )
