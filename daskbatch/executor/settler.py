"""Settles futures, in threads of its own: what a call came to is unpickled there.

Does not know how calls are given or run. Two threads, so that large results, which have to be
brought here from their workers first, do not hold up the others.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable

from daskbatch.dispatch.completion import CompletionTracker
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.executor.future import BatchPoolFuture

_Queue = deque[tuple[BatchPoolFuture, TaskRecord]]


class Settler:
    """The futures that are not settled yet.

    Parameters
    ----------
    outcomes : CompletionTracker
        Tells when calls are over.
    settle : callable
        Settles a future whose call is over, and never raises.
    """

    def __init__(
        self, outcomes: CompletionTracker, settle: Callable[[BatchPoolFuture], None]
    ) -> None:
        self._outcomes = outcomes
        self._settle = settle
        #: Held for every change; notified when tasks are over.
        self._changed = outcomes.changed
        self._left: set[BatchPoolFuture] = set()
        self._near: _Queue = deque()
        self._far: _Queue = deque()
        #: The thread that settles what is here, while it does.
        self._busy: threading.Thread | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []
        self._unstarted = [(self._near, "settle"), (self._far, "fetch")]

    def start(self) -> None:
        """Start the threads, if that has not been done; to be called with the lock.

        Raises
        ------
        RuntimeError
            The interpreter ends.
        """
        # Both at once: when the interpreter ends, none can be started any more.
        while self._unstarted:
            queue, name = self._unstarted[-1]
            thread = threading.Thread(
                target=self._run, args=(queue,), name=f"daskbatch-{name}", daemon=True
            )
            thread.start()
            self._threads.append(thread)
            self._unstarted.pop()

    def runs_here(self) -> bool:
        """Say whether this is called by one of the threads, as from a callback of a future."""
        return threading.current_thread() in self._threads

    def watch(self, future: BatchPoolFuture, record: TaskRecord) -> None:
        """Settle a future when its call is over; to be called with the lock."""
        self._left.add(future)
        near = self._near
        self._outcomes.when_over(record, lambda: near.append((future, record)))

    @property
    def left(self) -> int:
        """How many are not settled."""
        return len(self._left)

    def settle_now(self, future: BatchPoolFuture, record: TaskRecord) -> None:
        """Settle a future without waiting for its call."""
        with self._changed:
            self._near.append((future, record))
            self._changed.notify_all()

    def catch_up(self) -> None:
        """Wait until what is over is settled, but for what has to be brought here first."""
        with self._changed:
            # A callback that calls this is itself what would be waited for.
            if self._busy is not threading.current_thread():
                self._changed.wait_for(lambda: not self._near and self._busy is None)

    def close(self) -> None:
        """End the threads; to be called with the lock."""
        self._closed = True
        self._changed.notify_all()

    def _run(self, queue: _Queue) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: queue or self._closed)
                if not queue:
                    return
                if queue is self._near:
                    self._busy = threading.current_thread()
            settled = []
            while queue:
                future, record = queue.popleft()
                if queue is self._near and _is_far(record):
                    self._far.append((future, record))
                else:
                    try:
                        self._settle(future)
                    except BaseException:  # of a callback of the user's
                        logging.getLogger("daskbatch").exception("a callback of a future raised")
                    settled.append(future)
                del future, record
            with self._changed:
                self._left.difference_update(settled)
                if queue is self._near:
                    self._busy = None
                self._changed.notify_all()
            del settled


def _is_far(record: TaskRecord) -> bool:
    return record.phase == Phase.DONE and record.value is None and record.block is not None
