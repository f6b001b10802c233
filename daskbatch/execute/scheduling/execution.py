"""Defines the record of one execution of a task, from its assignment to a worker to its end.

Only the thread of the scheduler changes a record.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from daskbatch.execute.scheduling.worker_queues import WorkerQueue


@dataclass(eq=False, slots=True)
class Execution:
    """One execution of a task that is assigned to a queue; it may not have started yet.

    Parameters
    ----------
    task : int
        The position of the task in the job.
    queue : WorkerQueue
        The queue that holds the execution.
    kind : hashable
        Tasks of the same kind are expected to take the same time. None for a task that must be
        the only task in its queue.
    estimate : float
        The expected duration. Seconds.
    """

    task: int
    queue: WorkerQueue
    kind: Hashable
    estimate: float
    #: Whether the task counts as executing: it is, or was, the first task of its queue.
    begun: bool = False
    #: Whether the scheduler has tried to take the task back from the worker.
    taken_back: bool = False
    #: Whether the scheduler assumes, without confirmation, that the worker died while the task
    #: ran.
    died: bool = False
    #: The engine's record of the call, and the block that the call was first part of.
    record: Any = None
    block: Any = None
    #: The future that completes the task, if the task runs on the driver's side.
    future: Any = None

    @property
    def worker(self) -> Any:
        """The worker that the task is assigned to."""
        return self.queue.worker
