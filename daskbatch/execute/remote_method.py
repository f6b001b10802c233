"""What a worker calls to execute an `RmiTask`.

It runs in the task's thread, and raises what the method raises.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from distributed import get_worker

from daskbatch.execute.exceptions import TaskCancelled
from daskbatch.worker.execution.task_context import current_context


class Misplaced(Exception):
    """The task came to another worker than it was meant for, since that one is gone or busy.

    Nothing has run. The scheduler of the job decides anew where the task goes.
    """


class RemoteMethod:
    """A method, as one worker is to call it.

    Parameters
    ----------
    method : callable
        What is called.
    address : str
        The worker that is to call it.
    releases_slot : bool
        Whether its thread counts no longer as one of the worker's, so that the worker runs more
        of these at a time than it has threads.
    """

    #: What is thrown into the method to cancel it; see `worker.execution.thread_run`.
    stopped_by = TaskCancelled

    def __init__(self, method: Callable[..., Any], address: str, releases_slot: bool) -> None:
        self.method = method
        self.address = address
        self.releases_slot = releases_slot

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if get_worker().address != self.address:
            raise Misplaced(f"this is not the worker at {self.address}")
        if self.releases_slot:
            context = current_context()
            if context is not None:
                # For good: the slot is not asked for again, and the thread ends with the task.
                context.begin_waiting()
        return self.method(*args, **kwargs)
