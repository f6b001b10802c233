"""Keeps the state of a task and its result or exception, and waits until the task is over.

Any thread may read an outcome. A thread that changes one holds `state_lock`.
"""

from __future__ import annotations

import os
from typing import Any

from daskbatch.execute.jobs.exceptions import FailedDependency
from daskbatch.execute.jobs.task_state import TaskState
from daskbatch.forking import make_lock
from daskbatch.threads import Condition
from daskbatch.timeouts import parse_timeout
from daskbatch.worker.execution.task_context import current_context, wait_releasing_slot

#: Held while the state of any task changes. All tasks share one lock: a change takes a
#: microsecond, and a separate lock for each of ten thousand tasks would take memory.
state_lock = make_lock()

#: Notified when a task is over, for the threads that wait for one.
_task_over = Condition(state_lock)


class TaskOutcome:
    """The state of a task, and the result or exception of its latest execution.

    Any thread may read it. A thread that changes it holds `state_lock`.
    """

    __slots__ = ("error", "has_value", "process", "state", "value")

    def __init__(self) -> None:
        self.state = TaskState.NEW
        self.value: Any = None
        #: Whether an execution has succeeded, now or before.
        self.has_value = False
        self.error: BaseException | None = None
        #: The id of the process in which the job is executed; 0 before the first start.
        self.process = 0

    @property
    def is_abandoned(self) -> bool:
        """Whether this is a copy of a task that another process executes: it never ends here."""
        return not self.done and self.process != os.getpid()

    @property
    def done(self) -> bool:
        """Whether the task has completed: it succeeded, failed or was cancelled."""
        return self.state > TaskState.EXECUTING

    @property
    def has_kept_value(self) -> bool:
        """Whether the value of an earlier execution counts, while the task is executed again."""
        return self.has_value and (
            self.state <= TaskState.EXECUTING or isinstance(self.error, FailedDependency)
        )

    def record(self, state: TaskState, value: Any, error: BaseException | None) -> None:
        """Record how the task has ended; the caller holds `state_lock`."""
        self.state, self.error = state, error
        if state == TaskState.SUCCEEDED:
            self.value, self.has_value = value, True
        _task_over.notify_all()

    def wait(self, timeout: float | None) -> bool:
        """Wait until the task is over; returns False if the timeout has passed before.

        If a task of a worker waits, it releases its slot meanwhile.
        """

        def wait(seconds: float | None) -> bool:
            with _task_over:
                return _task_over.wait_for(lambda: self.done, seconds)

        return self.done or wait_releasing_slot(current_context(), wait, parse_timeout(timeout))
