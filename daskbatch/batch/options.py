"""Makes tasks with options that are given once, apart from their arguments.

Several threads may use a `TaskFactory`. What its methods raise is documented at `Batch.function`,
`Batch.process` and `Batch.job`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from daskbatch.batch.context import BatchContext
from daskbatch.batch.factory import TaskSettings, make_function, make_process
from daskbatch.batch.job_factory import Target, make_job
from daskbatch.batch.keywords import require_no_access
from daskbatch.batch.task import Task


class TaskFactory:
    """Makes tasks that share the options given to `Batch.options`.

    Notes
    -----
    Several threads may use a factory at the same time.

    Examples
    --------
    >>> robust = batch.options(retries=2)
    >>> task = robust.function(int, "ff", base=16)
    >>> other = robust.process("echo", "hello")
    >>> job = robust.job("hostname", num_procs=1)
    >>> batch.compile([task, other, job]).run()
    >>> task.get(), other.stdout.get(), job.get()
    (255, 'hello', 0)
    """

    def __init__(self, context: BatchContext, settings: TaskSettings) -> None:
        self._context = context
        self._settings = settings

    def function(self, target: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task:
        """Make a task of a Python function; see `Batch.function`, also for what it raises.

        Parameters
        ----------
        target : callable
            The function.
        *args, **kwargs
            Arguments of the function. The options of `Batch.function` are no options here: a
            keyword of the same name goes to the function.
        """
        if kwargs:
            require_no_access(target, kwargs)
        return make_function(self._context, target, args, kwargs, self._settings)

    def process(
        self, target: str | Path, /, *args: Any, stdin: Any = None, check: bool = True
    ) -> Task:
        """Make a task of a serial executable; see `Batch.process`, also for what it raises.

        Parameters
        ----------
        target, *args, stdin, check
            See `Batch.process`; its other parameters are given to `Batch.options`.
        """
        return make_process(self._context, target, args, self._settings, stdin=stdin, check=check)

    def job(
        self,
        target: Target,
        *args: Any,
        num_procs: int | None = None,
        stdin: Any = None,
        check: bool = True,
        **kwargs: Any,
    ) -> Task:
        """Make a task of a parallel job; see `Batch.job`, also for what it raises.

        Parameters
        ----------
        target, *args, num_procs, stdin, check
            See `Batch.job`; its other parameters are given to `Batch.options`.
        **kwargs
            Arguments of the function, if the target is one.
        """
        return make_job(
            self._context,
            target,
            args,
            kwargs,
            self._settings,
            num_procs=num_procs,
            stdin=stdin,
            check=check,
        )
