"""Jobs: tasks that are executed together.

Any thread may use a job. `Job.cancel` is meant for another thread than the one that consumes
the results.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable
from typing import Any

from daskbatch.errors import LifecycleError, SpecError
from daskbatch.execute.jobs.lifecycle import Lifecycle
from daskbatch.execute.jobs.task import Task

_ids = itertools.count(1)


class Job(Lifecycle):
    """A set of tasks that can be executed on a cluster of workers.

    Any thread may use it, in particular to cancel it.

    Parameters
    ----------
    ctx : ExecutionContext
        The context that executes the job.
    tasks : iterable of Task
        The tasks, in the order in which their results are yielded by default.
    name, desc : str, optional
        A name, by default ``job`` followed by the id; and a description.

    Attributes
    ----------
    id : int
        A number that is unique in this process.
    tasks : list of Task
        The tasks of the job.

    Examples
    --------
    >>> from daskbatch.execute import RmiTask
    >>> job = Job(None, [RmiTask(None, n, abs, (-n,), group="even"[n % 2 :]) for n in range(4)])
    >>> [task.id for task in job.group("even")], job.running
    ([0, 2], False)
    """

    def __init__(
        self,
        ctx: Any,
        tasks: Iterable[Task],
        name: str | None = None,
        desc: str | None = None,
    ) -> None:
        self.id = next(_ids)
        super().__init__(f"job {self.id}" if name is None else name, desc)
        self.ctx = ctx
        self.tasks: list[Task] = list(tasks)
        for task in self.tasks:
            if not isinstance(task, Task):
                raise SpecError(f"a job consists of tasks: {task!r} is not a Task")
        self._scheduler: weakref.ref[Any] | None = None

    def group(self, name: str) -> list[Task]:
        """Return the tasks of a group.

        Parameters
        ----------
        name : str
            The name of the group.
        """
        return [task for task in self.tasks if task.group == name]

    def cancel(self) -> bool:
        """Cancel the job if it is being executed: all unfinished tasks end.

        The thread that consumes the results receives a `concurrent.futures.CancelledError`.

        Returns
        -------
        bool
            Whether the job was being executed.
        """
        scheduler = self._scheduler() if self._scheduler is not None else None
        if not super().cancel():
            return False
        if scheduler is not None:
            scheduler.cancel(f"{self.name} was cancelled")
        return True

    def _begin(self, scheduler: Any) -> None:
        if self._scheduler is not None:
            raise LifecycleError(f"{self.name} is already being executed: wait until it ends")
        self._scheduler = weakref.ref(scheduler)
        self.cancelled = False
        self.signal_start()

    def _end(self) -> None:
        self._scheduler = None
        if not self.stopped:
            self.signal_stop()

    def __repr__(self) -> str:
        return f"<Job {self.name}, {len(self.tasks)} tasks>"

    def __getstate__(self) -> dict[str, object]:
        return {**super().__getstate__(), "_scheduler": None}
