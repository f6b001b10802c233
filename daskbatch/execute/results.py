"""The tasks of a job that is executed, as they are over: what `ExecutionContext.execute` returns.

One thread at a time consumes it. Its job runs in a thread of its own, which ends with it.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any

from daskbatch.errors import LifecycleError
from daskbatch.execute.job import Job
from daskbatch.execute.scheduler import Scheduler
from daskbatch.execute.task import Task
from daskbatch.worker.execution.task_context import current_context, wait_releasing_slot

#: How long a consumer that ends early waits for the job to end. Seconds.
_END_SECONDS = 5.0

_Message = Task | BaseException | None


class Outbox:
    """What a scheduler tells, passed on many at a time; the thread of the scheduler uses it."""

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[list[_Message]] = queue.SimpleQueue()
        self._waiting: list[_Message] = []

    def __call__(self, message: _Message) -> None:
        self._waiting.append(message)
        if not isinstance(message, Task):
            self.flush()

    def flush(self) -> None:
        """Pass on what has been told."""
        if self._waiting:
            self.queue.put(self._waiting)
            self._waiting = []


class JobResults(Generator[Task, None, None]):
    """A generator of the tasks of a job.

    To close it, to drop it, or to interrupt it by Ctrl-C cancels what is not over of the job.
    Closing waits until that is done; dropping does not.

    Parameters
    ----------
    job : Job
        The job; it starts with the first `next`.
    make_scheduler : callable
        Makes its scheduler, with the function that is told of what is over.
    order_results : bool
        Whether the tasks come in the order of the job.
    """

    def __init__(
        self,
        job: Job,
        make_scheduler: Callable[[Callable[[_Message], object]], Scheduler],
        order_results: bool,
    ) -> None:
        self._job = job
        self._make_scheduler = make_scheduler
        self._ordered = order_results
        self._outbox = Outbox()
        self._scheduler: Scheduler | None = None
        self._thread: threading.Thread | None = None
        self._finished = self._all_told = False
        #: The tasks that are over; the position of the next one in the order of the job.
        self._over: dict[Task, None] = {}
        self._next = 0

    def send(self, value: None, /) -> Task:
        """Return the next task; see `generator.send`."""
        if value is not None:
            raise TypeError("nothing can be sent to the results of a job")
        if self._finished:
            raise StopIteration
        try:
            if self._thread is None and not self._job.tasks:
                self._finished = True
                raise StopIteration
            if self._thread is None:
                self._begin()
            task = self._take()
        except BaseException as error:
            self._end(error)
            raise
        if task is None:
            self._end(None)
            raise StopIteration
        return task

    def throw(
        self,
        typ: Any,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> Task:
        """Cancel the job and raise an exception; see `generator.throw`."""
        error = typ if isinstance(typ, BaseException) else val
        if not isinstance(error, BaseException):
            error = typ() if error is None else typ(error)
        if tb is not None:
            error = error.with_traceback(tb)
        self._end(error)
        raise error

    def close(self) -> None:
        """Cancel what is not over of the job, and wait for that."""
        self._end(GeneratorExit())

    def __del__(self) -> None:
        # In whichever thread, and whatever that holds: nothing may be waited for.
        scheduler = getattr(self, "_scheduler", None)
        if scheduler is not None and not self._finished:
            scheduler.abort()

    def _begin(self) -> None:
        job = self._job
        scheduler = self._make_scheduler(self._outbox)
        job._begin(scheduler)
        self._scheduler = scheduler

        def run() -> None:
            try:
                scheduler.run()
            finally:
                job._end()

        self._thread = threading.Thread(target=run, name=f"daskbatch-job-{job.id}", daemon=True)
        self._thread.start()

    def _take(self) -> Task | None:
        tasks, over = self._job.tasks, self._over
        while True:
            task: Task | None = None
            if not self._ordered:
                task = next(iter(over), None)
            elif self._next < len(tasks) and tasks[self._next] in over:
                task = tasks[self._next]
                self._next += 1
            if task is not None:
                del over[task]
                return task
            if self._all_told:
                return None
            for message in self._receive():
                if message is None:
                    self._all_told = True
                elif isinstance(message, BaseException):
                    raise message
                elif message._has_value:  # of one that has failed the exception follows
                    over[message] = None

    def _receive(self) -> list[_Message]:
        """Wait for what the scheduler says; a task that waits releases its slot."""
        messages = self._outbox.queue
        context = current_context()
        if context is None:
            return messages.get()
        found: list[list[_Message]] = []

        def wait(seconds: float | None) -> bool:
            with contextlib.suppress(queue.Empty):
                found.append(messages.get(timeout=seconds) if seconds else messages.get_nowait())
            return bool(found)

        wait_releasing_slot(context, wait)
        return found[0]

    def _end(self, error: BaseException | None) -> None:
        """End the job, if it has not ended, and wait for its thread."""
        if self._finished:
            return
        self._finished = True
        self._over.clear()
        thread, scheduler = self._thread, self._scheduler
        if thread is None or scheduler is None:
            return
        if error is not None:
            scheduler.abort()
        if thread is threading.current_thread():
            raise LifecycleError("a listener of a job cannot consume its results")
        thread.join(None if error is None else _END_SECONDS)
