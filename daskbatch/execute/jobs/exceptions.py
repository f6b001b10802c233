"""The exceptions that stop a task of a job, or that report missing results of other tasks.

They are raised on workers and on the driver, and can be pickled.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence

from daskbatch import errors
from daskbatch.worker.execution.interrupt import Stopped


class TaskCancelled(errors.TaskCancelled, Stopped):
    """The driver cancels the task that runs in this thread.

    The worker raises it in the running method of an `RmiTask`, by CPython's
    ``PyThreadState_SetAsyncExc``: at the next line of Python code. The method may catch it to
    clean up. The task stays cancelled, whatever the method does after that. If the method
    continues, the exception is raised again.

    Examples
    --------
    >>> import daskbatch
    >>> issubclass(TaskCancelled, daskbatch.TaskCancelled), issubclass(TaskCancelled, Exception)
    (True, True)
    """


class DependenciesFailed(Exception):
    """A task cannot run, because results of tasks that it depends on are not available.

    The scheduler executes these dependencies again, and then the task that raised this
    exception. Neither execution counts as an attempt.

    Parameters
    ----------
    failures : mapping
        Maps the name of a worker to the ids of the tasks whose results are missing there. The
        worker counts as lost, and the job avoids it. With None instead of a name, no worker
        counts as lost. The tasks may be direct or indirect dependencies.

    Attributes
    ----------
    failures : dict
        A copy of the parameter, with lists of ids.

    Raises
    ------
    SpecError
        The parameter is not a mapping to sequences.

    Examples
    --------
    >>> DependenciesFailed({"worker-1": ["map-3"], None: ["map-4"]}).failures
    {'worker-1': ['map-3'], None: ['map-4']}
    """

    def __init__(self, failures: Mapping[str | None, Sequence[Hashable]]) -> None:
        if not isinstance(failures, Mapping) or any(
            isinstance(ids, (str, bytes)) or not isinstance(ids, Iterable)
            for ids in failures.values()
        ):
            raise errors.SpecError(
                "failures must map the name of a worker, or None, to a sequence of ids of tasks, "
                f"not {failures!r}"
            )
        super().__init__(failures)
        self.failures: dict[str | None, list[Hashable]] = {
            worker: list(ids) for worker, ids in failures.items()
        }

    def __str__(self) -> str:
        places = (
            f"{', '.join(map(repr, ids))}{f' on worker {worker}' if worker is not None else ''}"
            for worker, ids in self.failures.items()
        )
        return f"results are missing of {'; '.join(places) or 'no task'}"


class FailedDependency(Exception):
    """A finished task was marked as failed later, by the execution of another task.

    `Task.exception` returns it until the task has been executed again. User code may also mark a
    task with it, by `Task.mark_failed`.

    Parameters
    ----------
    worker_failed : str, optional
        The name of the worker that executed the task, if the job must treat this worker as lost.

    Examples
    --------
    >>> FailedDependency("worker-1").worker_failed
    'worker-1'
    """

    def __init__(self, worker_failed: str | None = None) -> None:
        super().__init__(worker_failed)
        self.worker_failed = worker_failed

    def __str__(self) -> str:
        if self.worker_failed is None:
            return "the result of this task is missing"
        return f"the result of this task is missing, and worker {self.worker_failed} is lost"
