"""Yields the tasks of a running job, each when it is over; `ExecutionContext.execute` returns it.

One thread at a time may consume the results. The job runs in a separate thread, which ends when
the job does.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading
from collections.abc import Callable, Generator
from types import TracebackType
from typing import Any

from daskbatch.errors import LifecycleError
from daskbatch.execute.jobs.job import Job
from daskbatch.execute.jobs.task import Task
from daskbatch.execute.running.outbox import Message, Outbox
from daskbatch.execute.running.scheduler import Scheduler
from daskbatch.worker.execution.task_context import current_context, wait_releasing_slot

#: How long a consumer that ends early waits for the job to end.
_END_TIMEOUT_SECONDS = 5.0


class JobResults(Generator[Task, None, None]):
    """A generator of the tasks of a job.

    If it is closed, garbage-collected, or interrupted by Ctrl-C, the unfinished tasks of the job
    are cancelled. `close` waits until that is done; garbage collection does not. One thread at a
    time may use it.

    Parameters
    ----------
    job : Job
        The job; the first `next` starts it.
    make_scheduler : callable
        Makes the job's scheduler. Its argument is the function that the scheduler must call with
        each task that is over.
    order_results : bool
        Whether the tasks are yielded in the order of the job.
    """

    def __init__(
        self,
        job: Job,
        make_scheduler: Callable[[Callable[[Message], object]], Scheduler],
        order_results: bool,
    ) -> None:
        self._job = job
        self._make_scheduler = make_scheduler
        self._ordered = order_results
        self._outbox = Outbox()
        self._scheduler: Scheduler | None = None
        self._thread: threading.Thread | None = None
        self._finished = self._all_received = False
        self._process = os.getpid()
        #: The tasks that are over and have not been yielded.
        self._over: dict[Task, None] = {}
        #: The position of the next task to yield, if they are yielded in the job's order.
        self._next = 0

    def send(self, value: None, /) -> Task:
        """Return the next task; see `generator.send`."""
        if value is not None:
            raise TypeError("the results of a job accept no value: send() takes only None")
        if self._finished:
            raise StopIteration
        if os.getpid() != self._process:
            raise LifecycleError(
                f"{self._job.name} is executed by the process that this one was forked from: "
                "consume its results there"
            )
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
        """Cancel the unfinished tasks of the job, and wait until the job has ended."""
        self._end(GeneratorExit())

    def __del__(self) -> None:
        # Any thread may run this, whatever locks it holds, so this must not wait for anything.
        scheduler = getattr(self, "_scheduler", None)
        if scheduler is not None and not self._finished and os.getpid() == self._process:
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
            if self._all_received:
                return None
            for message in self._receive():
                if message is None:
                    self._all_received = True
                elif isinstance(message, StopIteration):
                    # It would end the loop of the consumer as if all tasks had been yielded: as in
                    # a generator function (PEP 479), another exception takes its place.
                    raise RuntimeError("a task of the job raised StopIteration") from message
                elif isinstance(message, BaseException):
                    raise message
                elif message._outcome.has_value:  # if it failed, the exception follows
                    over[message] = None

    def _receive(self) -> list[Message]:
        """Wait for messages of the scheduler; if a task waits here, it releases its slot."""
        messages = self._outbox.queue
        context = current_context()
        if context is None:
            return messages.get()
        received: list[list[Message]] = []

        def wait(seconds: float | None) -> bool:
            with contextlib.suppress(queue.Empty):
                received.append(messages.get(timeout=seconds) if seconds else messages.get_nowait())
            return bool(received)

        wait_releasing_slot(context, wait)
        return received[0]

    def _end(self, error: BaseException | None) -> None:
        """End the job, if it has not ended, and wait for its thread."""
        if self._finished:
            return
        self._finished = True
        self._over.clear()
        if os.getpid() != self._process:
            return  # the job is executed by the process that this one was forked from
        thread, scheduler = self._thread, self._scheduler
        if thread is None or scheduler is None:
            return
        if error is not None:
            scheduler.abort()
        if thread is threading.current_thread():
            raise LifecycleError("a listener of a job cannot consume its results")
        thread.join(None if error is None else _END_TIMEOUT_SECONDS)
