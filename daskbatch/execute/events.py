"""What a scheduler is told, by itself and by others: one record for each kind of event.

Records that never change: any thread may make them.
"""

from __future__ import annotations

from typing import NamedTuple

from daskbatch.execute.assigner import Execution
from daskbatch.execute.driver_future import DriverFuture
from daskbatch.execute.engine import CallOutcome
from daskbatch.execute.worker_watch import WorkerSet


class CallOver(NamedTuple):
    """The engine's call of an execution is over."""

    execution: Execution


class OutcomeKnown(NamedTuple):
    """It is known what an execution has come to."""

    execution: Execution
    outcome: CallOutcome


class ExecuteReturned(NamedTuple):
    """The `execute` of a task of the user's own has returned."""

    execution: Execution


class CallStarted(NamedTuple):
    """A task of the user's own has called a method on a worker."""

    future: DriverFuture


class TaskMarked(NamedTuple):
    """A task was marked or cancelled from outside."""

    position: int


class WorkersChanged(NamedTuple):
    """Workers have come or gone."""

    workers: WorkerSet


class Aborted(NamedTuple):
    """The job is given up."""

    error: BaseException
    #: Whether the tasks that are not done count as cancelled, also those that have not begun.
    cancels_tasks: bool


Event = (
    CallOver | OutcomeKnown | ExecuteReturned | CallStarted | TaskMarked | WorkersChanged | Aborted
)
