"""Passes the messages of a scheduler to the thread that consumes the results of the job.

Only the scheduler's thread sends messages; one other thread receives them.
"""

from __future__ import annotations

import queue

from daskbatch.execute.jobs.task import Task

#: A task that is over; or the exception that ends the job; or None, at the end.
Message = Task | BaseException | None


class Outbox:
    """Collects a scheduler's messages and passes them on many at a time.

    Only the scheduler's thread calls it and `flush`; another thread may read `queue`.
    """

    def __init__(self) -> None:
        self.queue: queue.SimpleQueue[list[Message]] = queue.SimpleQueue()
        self._unsent: list[Message] = []

    def __call__(self, message: Message) -> None:
        self._unsent.append(message)
        if not isinstance(message, Task):
            self.flush()

    def flush(self) -> None:
        """Pass on the messages collected so far."""
        if self._unsent:
            self.queue.put(self._unsent)
            self._unsent = []
