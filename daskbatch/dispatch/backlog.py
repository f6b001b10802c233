"""Holds tasks that wait in the background until the first of their results is needed.

When one task is needed, all are started, so that they run in parallel. They run in the order that
their reads and writes require, also relative to the tasks that were started since the last fence.
Any thread may use it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence

from daskbatch.dispatch.epoch import Epoch
from daskbatch.dispatch.placer import pickle_functions
from daskbatch.dispatch.sigint import uninterrupted
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import LifecycleError


class Backlog:
    """The queued template tasks of one client. Any thread may use it.

    Parameters
    ----------
    set_phase : callable
        `TaskTable.set_phase`.
    """

    def __init__(self, set_phase: Callable[[TaskRecord, Phase], None]) -> None:
        self._set_phase = set_phase
        self._records: list[TaskRecord] = []
        self._epoch = Epoch()
        #: Held from when tasks are taken out until they are started. Without it, two threads
        #: could start tasks out of order, and a third could find the tasks nowhere. The
        #: dispatcher's lock may be taken while this one is held, never the other way round. No
        #: thread waits for another one while it holds this lock, and no code of the user runs,
        #: except comparisons of channels.
        self._lock = threading.RLock()
        #: The threads that are pickling functions.
        self._pickling: set[int] = set()

    def __len__(self) -> int:
        with self._lock:
            return sum(not record.over for record in self._records)

    @property
    def records(self) -> list[TaskRecord]:
        """The tasks that wait. All others are in the dispatcher's table."""
        with self._lock:
            return list(self._records)

    def add(self, record: TaskRecord) -> None:
        """Add a task after the others; no other thread may have it yet."""
        # Without the lock, which would take longer than the rest of this method. Once the task is
        # in the list, another thread may start it.
        self._set_phase(record, Phase.QUEUED)
        self._records.append(record)

    def flush(
        self,
        start: Callable[[Sequence[TaskRecord]], None],
        fail: Callable[[Sequence[TaskRecord], Exception], None],
        wait_submitted: Callable[[Sequence[TaskRecord]], None],
        needed: Sequence[TaskRecord] | None = None,
    ) -> None:
        """Start the tasks that wait.

        Parameters
        ----------
        start : callable
            Starts tasks, each after those that it waits for.
        fail : callable
            Settles tasks that cannot be started: they fail with an error.
        wait_submitted : callable
            Waits until tasks that are queued elsewhere, the calls of an executor, are started.
        needed : sequence of TaskRecord, optional
            The tasks that must have been started on return. Others are started too, unless
            this would have to wait for them. All by default.

        Raises
        ------
        LifecycleError
            This thread is pickling a function for an outer call of `flush`.
        """
        if threading.get_ident() in self._pickling:
            raise LifecycleError("a task that is being started cannot wait for one that is queued")
        if needed is None:
            needed = self.records
        while True:
            self._pickle(self.records)
            with self._lock:
                ready = self._ready()
                if ready:
                    with uninterrupted():
                        del self._records[: len(ready)]
                        self._start(ready, start, fail)
                if not any(_is_in_backlog(record) for record in needed):
                    return
                awaited = _queued_elsewhere(self._records[0])
            wait_submitted(awaited)

    def start_over(self) -> None:
        """Forget what finished tasks have read and written."""
        with self._lock:
            self._epoch.start_over()

    def drop(self) -> list[TaskRecord]:
        """Remove the tasks that wait without starting them, and return them."""
        with self._lock:
            records = list(self._records)
            del self._records[: len(records)]
            return records

    def forget(self) -> None:
        """Remove all tasks, which no thread can reach any longer. It takes no lock."""
        self._records.clear()

    def _pickle(self, records: Iterable[TaskRecord]) -> None:
        # Pickling may run any code, and Ctrl-C may interrupt it: then nothing has been started.
        thread = threading.get_ident()
        self._pickling.add(thread)
        try:
            pickle_functions(records)
        finally:
            self._pickling.discard(thread)

    def _ready(self) -> list[TaskRecord]:
        """Return the first tasks, up to one that cannot be started yet."""
        ready = []
        for record in self._records:
            if not record.over and (not record.function or _queued_elsewhere(record)):
                break
            ready.append(record)
        return ready

    def _start(
        self,
        records: Sequence[TaskRecord],
        start: Callable[[Sequence[TaskRecord]], None],
        fail: Callable[[Sequence[TaskRecord], Exception], None],
    ) -> None:
        ordered: list[TaskRecord] = []
        try:
            self._epoch.add(records, ordered)
            start(ordered)
        except Exception as error:
            # The barriers too: otherwise later tasks would wait for them for ever.
            fail([*ordered, *records], error)


def _is_in_backlog(record: TaskRecord) -> bool:
    """Return whether a task is queued in a backlog, not in an executor."""
    return record.phase == Phase.QUEUED and record.group is None


def _queued_elsewhere(record: TaskRecord) -> list[TaskRecord]:
    """Return the producers of a task that are queued in an executor."""
    return [
        each for each in record.producers if each.phase == Phase.QUEUED and each.group is not None
    ]
