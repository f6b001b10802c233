"""Functions that make tasks by a template: what `Batch.import_func` returns.

The template is read and checked at the import; a call only fills in its arguments. Several threads
may call an imported function at once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from daskbatch.batch.context import BatchContext
from daskbatch.batch.factory import TaskSettings, make_function, make_process
from daskbatch.batch.job_factory import make_job
from daskbatch.batch.started_tasks import remember
from daskbatch.batch.task import Task
from daskbatch.describe.access import Channel, Mode
from daskbatch.describe.job_call import ProcessTemplate
from daskbatch.describe.spec import Options, make_options
from daskbatch.describe.template.binding import (
    BoundTemplate,
    ChannelUse,
    FilledExecutable,
    TaskDescription,
)
from daskbatch.describe.template.reader import read_template
from daskbatch.errors import SpecError
from daskbatch.serialization.safe_text import callable_name, safe_repr


def import_template(
    context: BatchContext, ptd_file: str | Path, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> ImportedFunction:
    """Read a template and bind its import arguments; see `Batch.import_func`."""
    if not isinstance(ptd_file, (str, os.PathLike)):
        raise SpecError(f"ptd_file= must be the path of a template, not {safe_repr(ptd_file)}")
    file = os.fspath(ptd_file)
    template = read_template(context.absolute(file), file)
    return ImportedFunction(context, BoundTemplate(template, args, kwargs))


class ImportedFunction:
    """Makes one task per call, as a template describes it.

    Notes
    -----
    Several threads may call it at the same time.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.NamedTemporaryFile("w", suffix=".yml") as file:
    ...     _ = file.write("{args: [f, i], type: function, executables: [{target: f, args: [i]}]}")
    ...     file.flush()
    ...     call = batch.import_func(file.name)
    >>> call(abs, -1).get()
    1
    """

    def __init__(self, context: BatchContext, template: BoundTemplate) -> None:
        model = template.template
        self._context = context
        self._template = template
        self._file = model.file
        self._fill = template.fill
        # Not a bound method: a reference cycle would keep the Batch until the garbage collector
        # runs.
        self._make = _MAKERS[model.type]
        #: The options of all tasks, if they are the same for all; made with the first task.
        self._options: Options | None = None
        self.__name__ = self.__qualname__ = template.label
        self.__signature__ = template.signature
        self.__doc__ = (
            f"Make a task of type {model.type}, as {self._file} describes it.\n\n"
            "The file says what the arguments are for. Raises SpecError if they do not fit."
        )

    def __call__(self, /, *args: Any, **kwargs: Any) -> Task:
        """Make a task from what the file declares below ``args`` and ``kwargs``.

        The task waits in the background until it is needed; see `Batch.import_func`.

        Raises
        ------
        SpecError
            An argument is missing, too many, or of the wrong type. It is a `ValueError`.
        SubmitAfterCloseError
            The Batch has been closed.
        LifecycleError
            An argument is the result of a task that was never started.
        Exception
            An exception of a function that the file calls.
        """
        task = self._make(self, self._fill(args, kwargs))
        if self._context.background_batching:
            self._context.record_template_task(task._record, task._session)
            task._in_background = True
            remember(task._session, [task])
        return task

    def __repr__(self) -> str:
        return f"<{self.__name__}{self.__signature__}, imported from {self._file}>"

    # -- the types of tasks ---------------------------------------------------------------

    def _make_function(self, description: TaskDescription) -> Task:
        (executable,) = description.executables
        return make_function(
            self._context,
            executable.target,
            executable.args,
            executable.kwargs,
            self._settings(description),
        )

    def _make_process(self, description: TaskDescription) -> Task:
        (executable,) = description.executables
        settings = self._settings(description)
        return make_process(self._context, executable.target, executable.args, settings)

    def _make_job(self, description: TaskDescription) -> Task:
        executables = description.executables
        if len(executables) == 1:
            (executable,) = executables
            return make_job(
                self._context,
                executable.target,
                executable.args,
                executable.kwargs,
                self._settings(description),
                num_procs=executable.num_procs,
            )
        parts = []
        for executable in executables:
            if callable(executable.target):
                raise SpecError(
                    f"{self._file}: the target {callable_name(executable.target)!r} is a function: "
                    "expected executables, since the job has several targets"
                )
            template = ProcessTemplate(
                executable.target, executable.args, executable.cwd, executable.env
            )
            parts.append((executable.num_procs, template))
        # Each part has its own directory and environment.
        first = executables[0]._replace(cwd=None, env=None)
        settings = self._settings(description._replace(executables=(first,)))
        return make_job(self._context, parts, (), {}, settings, num_procs=None)

    # -- options and accesses -------------------------------------------------------------

    def _settings(self, description: TaskDescription) -> TaskSettings:
        _, name, _, (executable,), reads, writes = description
        settings = (
            self._options or self._make_options(description, executable),
            self._channels(Mode.READ, reads) if reads else (),
            self._channels(Mode.WRITE, writes) if writes else (),
            name,
            (),
        )
        # Takes half the time of `TaskSettings(...)`, for each task.
        return tuple.__new__(TaskSettings, settings)

    def _make_options(self, description: TaskDescription, executable: FilledExecutable) -> Options:
        cwd = executable.cwd
        options = make_options(
            timeout=description.timeout,
            cwd=None if cwd is None else self._context.absolute(cwd),
            env=executable.env,
        )
        if self._template.has_constant_options:
            self._options = options
        return options

    def _channels(self, mode: Mode, uses: Sequence[ChannelUse]) -> tuple[Channel, ...]:
        channels: tuple[Channel, ...] = ()
        for line, obj, names in uses:
            try:
                access = self._context.access(mode, obj, names)
            except SpecError as error:
                raise SpecError(f"{self._file}:{line}: {error}") from None
            channels += access.channels
        return channels


#: The method that makes a task, by the type in the file.
_MAKERS = {
    "function": ImportedFunction._make_function,
    "process": ImportedFunction._make_process,
    "job": ImportedFunction._make_job,
}
