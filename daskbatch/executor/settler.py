"""Settles futures when their calls are over, in two threads, which also unpickle the results.

The thread "settle" serves results that are in this process. The thread "fetch" serves large
results, which it first fetches from their workers, so that these do not delay the others.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

from daskbatch.dispatch.completion import CompletionTracker
from daskbatch.dispatch.task_record import Phase, TaskRecord

_Future = TypeVar("_Future", bound=Future[Any])


class Settler(Generic[_Future]):
    """The futures that are not settled, and the threads that settle them.

    Several threads may use it; methods whose docstring says so require the tracker's lock
    `changed`.

    Parameters
    ----------
    outcomes : CompletionTracker
        Notifies the settler of calls that are over.
    settle : callable
        Settles a future whose call is over. It may raise only what a callback of the future
        raises.
    """

    def __init__(self, outcomes: CompletionTracker, settle: Callable[[_Future], None]) -> None:
        self._outcomes = outcomes
        self._settle = settle
        #: Held while anything changes; notified when tasks are over.
        self._changed = outcomes.changed
        #: Notified, with the same lock, when the queue of the thread "settle", or "fetch", grows.
        self._has_finished = outcomes.make_condition()
        self._has_to_fetch = outcomes.make_condition()
        self._unsettled: set[_Future] = set()
        #: The futures of calls that are over, until a thread takes them.
        self._finished: deque[tuple[_Future, TaskRecord]] = deque()
        #: Those of them whose results have to be fetched.
        self._to_fetch: deque[tuple[_Future, TaskRecord]] = deque()
        #: The thread "settle", while it settles futures.
        self._settling_thread: threading.Thread | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._unstarted = [
            (self._finished, self._has_finished, "settle"),
            (self._to_fetch, self._has_to_fetch, "fetch"),
        ]

    def start(self) -> None:
        """Start the threads, unless they run already. The caller holds the lock.

        Raises
        ------
        RuntimeError
            The interpreter is shutting down.
        """
        # Both at once: when the interpreter shuts down, no more threads can be started.
        while self._unstarted:
            queue, grown, name = self._unstarted[-1]
            thread = threading.Thread(
                target=self._run, args=(queue, grown), name=f"daskbatch-{name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
            self._unstarted.pop()

    def runs_here(self) -> bool:
        """Say whether the caller is one of the threads, as a callback of a future is."""
        return threading.current_thread() in self._threads

    def watch(self, future: _Future, record: TaskRecord) -> None:
        """Settle a future when its call is over. The caller holds the lock."""
        self._unsettled.add(future)
        finished, grown = self._finished, self._has_finished

        def add() -> None:  # the lock is held
            if not finished:  # else the thread has been notified, or is at work
                grown.notify()
            finished.append((future, record))

        self._outcomes.when_over(record, add)

    @property
    def unsettled_count(self) -> int:
        """How many futures are not settled."""
        return len(self._unsettled)

    def settle_now(self, future: _Future, record: TaskRecord) -> None:
        """Settle a future without waiting for its call."""
        with self._changed:
            self._finished.append((future, record))
            self._has_finished.notify()

    def wait_for_finished(self) -> None:
        """Wait until the futures of all calls that are over are settled.

        Does not wait for results that have to be fetched.
        """
        with self._changed:
            # A callback of a future runs in the thread that this would wait for.
            if self._settling_thread is not threading.current_thread():
                self._changed.wait_for(lambda: not self._finished and self._settling_thread is None)

    def close(self) -> None:
        """End the threads once they have nothing left to settle. The caller holds the lock."""
        self._closed = True
        for each in (self._has_finished, self._has_to_fetch, self._changed):
            each.notify_all()

    def _run(self, queue: deque[tuple[_Future, TaskRecord]], grown: threading.Condition) -> None:
        while True:
            with grown:
                grown.wait_for(lambda: queue or self._closed)
                if not queue:
                    return
                if queue is self._finished:
                    self._settling_thread = threading.current_thread()
            settled = []
            while queue:
                future, record = queue.popleft()
                if queue is self._finished and _must_be_fetched(record):
                    self._to_fetch.append((future, record))
                else:
                    try:
                        self._settle(future)
                    except BaseException:  # raised by a callback of the user
                        logging.getLogger("daskbatch").exception("a callback of a future raised")
                    settled.append(future)
                del future, record
            with self._changed:
                self._unsettled.difference_update(settled)
                if queue is self._finished:
                    self._settling_thread = None
                    if self._to_fetch:
                        self._has_to_fetch.notify()
                self._changed.notify_all()
            del settled


def _must_be_fetched(record: TaskRecord) -> bool:
    return record.phase == Phase.DONE and record.value is None and record.block is not None
