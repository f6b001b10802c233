"""Defines the task that calls a method on a worker.

Any thread may use a task. The method and its arguments are pickled at each execution.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from daskbatch.errors import SpecError
from daskbatch.execute.jobs.task import Task
from daskbatch.execute.workers.worker import Worker


class RmiTask(Task):
    """A task that calls a method with arguments, on a worker, in a thread.

    If the task is cancelled, `TaskCancelled` is raised in the method. The method may be a
    coroutine function. Any thread may use the task.

    Parameters
    ----------
    ctx, task_id, priority, name, desc, group
        See `Task`.
    method : callable
        The method to call. The method and its arguments are pickled when the task is executed.
    args : sequence
        Positional arguments.
    kwargs : mapping, optional
        Keyword arguments.

    Examples
    --------
    >>> task = RmiTask(None, 0, pow, (2, 10))
    >>> task.method, task.args, task.kwargs, task.name
    (<built-in function pow>, (2, 10), {}, 'task 0')
    """

    def __init__(
        self,
        ctx: Any,
        task_id: Hashable,
        method: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        priority: Any = None,
        name: str | None = None,
        desc: str | None = None,
        group: str | None = None,
    ) -> None:
        if not callable(method):
            raise SpecError(f"method= must be a callable, not {method!r}")
        super().__init__(ctx, task_id, priority=priority, name=name, desc=desc, group=group)
        if isinstance(args, (str, bytes)):
            raise SpecError(
                f"args= must be a sequence of arguments, not {args!r}: pass ({args!r},)"
            )
        self.method = method
        self.args = tuple(args)
        self.kwargs = dict(kwargs or {})

    def execute(self, scheduler: Any, worker: Worker) -> Future[Any]:
        """Call the method on a worker; a subclass may override this, to do more.

        Parameters
        ----------
        scheduler, worker
            See `Task.execute`.
        """
        self.set_executing(worker)
        future: Future[Any] = scheduler.call(
            worker, self.method, self.args, self.kwargs, name=self.name
        )
        return future

    def release(self) -> None:
        """Release what `Task.release` does, and also the arguments."""
        super().release()
        if self.done:
            self.args, self.kwargs = (), {}
