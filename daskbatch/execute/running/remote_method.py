"""The callable that a worker calls to execute an `RmiTask`.

It runs in the task's thread, and raises the exception that the method raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed import get_worker

from daskbatch.execute.jobs.exceptions import TaskCancelled
from daskbatch.worker.execution.task_context import current_context


class Misplaced(Exception):
    """Dask ran the task on another worker than the chosen one, which was lost or busy.

    The method has not been called. The job's scheduler chooses a worker for the task again.
    """


class RemoteMethod:
    """A method that one given worker must call.

    Parameters
    ----------
    method : callable
        The method.
    address : str
        The address of the worker that must call it.
    releases_slot : bool
        Whether the call releases its slot, so that the worker runs more of these calls at a time
        than it has threads.
    """

    #: The exception that is raised in the method to cancel it; see `worker.execution.thread_run`.
    stopped_by = TaskCancelled

    def __init__(self, method: Callable[..., Any], address: str, releases_slot: bool) -> None:
        self.method = method
        self.address = address
        self.releases_slot = releases_slot

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if get_worker().address != self.address:
            raise Misplaced(f"the method must be called on the worker at {self.address}, not here")
        if self.releases_slot:
            context = current_context()
            if context is not None:
                # The slot is never taken again: the thread ends with the task.
                context.begin_waiting()
        return self.method(*args, **kwargs)
