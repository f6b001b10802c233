"""The exceptions by which tasks of a job say that something else than themselves has failed.

They are raised on workers and on the driver, and survive pickling.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence

from daskbatch import errors
from daskbatch.worker.execution.interrupt import Stopped


class TaskCancelled(errors.TaskCancelled, Stopped):
    """The driver cancels the task that runs in this thread.

    It is thrown into the method of an `RmiTask` while that runs, by CPython's
    ``PyThreadState_SetAsyncExc``: at the next line of Python. A method may catch it to tidy up.
    The task stays cancelled, whatever the method does then; if the method goes on, the exception
    is thrown again.

    Examples
    --------
    >>> import daskbatch
    >>> issubclass(TaskCancelled, daskbatch.TaskCancelled), issubclass(TaskCancelled, Exception)
    (True, True)
    """


class DependenciesFailed(Exception):
    """A task cannot run, because results of tasks that it depends on are not available.

    The scheduler executes these dependencies again, and then the task that raised this. Neither
    counts as an attempt.

    Parameters
    ----------
    failures : mapping
        From the name of a worker to the ids of the tasks whose results are missing there. The
        worker counts as lost: the job avoids it. None in place of a name blames no worker. The
        tasks may be direct or indirect dependencies.

    Attributes
    ----------
    failures : dict
        The same.

    Examples
    --------
    >>> DependenciesFailed({"worker-1": ["map-3"], None: ["map-4"]}).failures
    {'worker-1': ['map-3'], None: ['map-4']}
    """

    def __init__(self, failures: Mapping[str | None, Sequence[Hashable]]) -> None:
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
    """A finished task was marked as failed afterwards, by the execution of another task.

    It is what `Task.exception` returns of such a task until it has been executed again. A
    task may also be marked with it from outside, by `Task.mark_failed`.

    Parameters
    ----------
    worker_failed : str, optional
        The name of the worker that executed the task, if the worker is to count as lost.

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
