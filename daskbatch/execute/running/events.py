"""The events that a scheduler processes: one record class for each kind of event.

The records are immutable. Any thread may create them; the thread of the scheduler processes them.
"""

from __future__ import annotations

from typing import NamedTuple

from daskbatch.execute.running.calls import CallOutcome
from daskbatch.execute.running.driver_future import DriverFuture
from daskbatch.execute.scheduling.execution import Execution
from daskbatch.execute.workers.worker_watch import WorkerSet


class CallOver(NamedTuple):
    """The call that the engine runs for an execution is over."""

    execution: Execution


class OutcomeKnown(NamedTuple):
    """The outcome of an execution is available."""

    execution: Execution
    outcome: CallOutcome


class ExecuteReturned(NamedTuple):
    """The method `execute` of a task of a user-defined class has returned."""

    execution: Execution


class CallStarted(NamedTuple):
    """A task of a user-defined class has called a method on a worker."""

    future: DriverFuture


class TaskMarked(NamedTuple):
    """A task was marked as failed or cancelled by code outside of the scheduler."""

    position: int


class WorkersChanged(NamedTuple):
    """Workers have joined or left the cluster."""

    workers: WorkerSet


class Aborted(NamedTuple):
    """The job ends early, because of an error or a cancellation."""

    error: BaseException
    #: Whether all unfinished tasks count as cancelled, including those that have not started.
    cancels_tasks: bool


Event = (
    CallOver | OutcomeKnown | ExecuteReturned | CallStarted | TaskMarked | WorkersChanged | Aborted
)
