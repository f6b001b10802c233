"""Tasks that wait in the background until somebody asks for what they do.

Does not know how they came about, nor how they are started. When one is needed all are, so
that they run in parallel; in the order that their reads and writes ask for, also towards those
that were started before, until a fence.
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
    """What waits in the background of a Batch.

    Parameters
    ----------
    home : str
        The Batch.
    """

    def __init__(self, home: str) -> None:
        self._records: list[TaskRecord] = []
        self._epoch = Epoch(home)
        #: Held from when tasks are taken until they are started, or two threads could start them
        #: out of order, and a third one could find them nowhere. The dispatcher's lock may be
        #: taken with it, never the other way round. Nobody waits for another thread with it, and
        #: nothing of the user's runs, but to compare channels.
        self._changing = threading.RLock()
        #: The threads that are about to pickle functions.
        self._pickling: set[int] = set()

    def __len__(self) -> int:
        with self._changing:
            return sum(not record.over for record in self._records)

    @property
    def records(self) -> list[TaskRecord]:
        """The tasks that wait. Those that do not any more are known to the dispatcher."""
        with self._changing:
            return list(self._records)

    def add(self, record: TaskRecord) -> None:
        """Put a task behind the others; nobody else must know of it yet."""
        # Without the lock, which takes longer than all the rest. Once it is in the list another
        # thread may start it.
        record.phase = Phase.QUEUED
        self._records.append(record)

    def flush(
        self,
        start: Callable[[Sequence[TaskRecord]], None],
        fail: Callable[[Sequence[TaskRecord], Exception], None],
        hand_over: Callable[[Sequence[TaskRecord]], None],
        wanted: Sequence[TaskRecord] | None = None,
    ) -> None:
        """Start what waits.

        Parameters
        ----------
        start, fail : callable
            Starts tasks, each behind those that it waits for; says that they cannot be started.
        hand_over : callable
            Waits until tasks are started that are queued elsewhere: the calls of an executor.
        wanted : sequence of TaskRecord, optional
            What must have been started in the end. Others are started, too, but not where that
            would mean to wait. All by default.

        Raises
        ------
        LifecycleError
            This thread is in the middle of it.
        """
        if threading.get_ident() in self._pickling:
            raise LifecycleError("a task that is being started cannot wait for one that is queued")
        if wanted is None:
            wanted = self.records
        while True:
            self._pickle(self.records)
            with self._changing:
                ready = self._ready()
                if ready:
                    with uninterrupted():
                        del self._records[: len(ready)]
                        self._start(ready, start, fail)
                if not any(_is_here(record) for record in wanted):
                    return
                awaited = _elsewhere(self._records[0])
            hand_over(awaited)

    def start_over(self) -> None:
        """Forget what tasks have read and written that are over."""
        with self._changing:
            self._epoch.start_over()

    def drop(self) -> list[TaskRecord]:
        """Start none of those that wait; returns them."""
        with self._changing:
            records = list(self._records)
            del self._records[: len(records)]
            return records

    def forget(self) -> None:
        """Forget those that wait: nobody knows them any more. It takes no lock."""
        self._records.clear()

    def _pickle(self, records: Iterable[TaskRecord]) -> None:
        # This may run anything, and is interrupted by Ctrl-C: then nothing has been started.
        thread = threading.get_ident()
        self._pickling.add(thread)
        try:
            pickle_functions(records)
        finally:
            self._pickling.discard(thread)

    def _ready(self) -> list[TaskRecord]:
        """Give the first of the tasks, up to one that cannot be started yet."""
        ready = []
        for record in self._records:
            if not record.over and (not record.function or _elsewhere(record)):
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
            # Barriers too, or what comes later would wait for them for ever.
            fail([*ordered, *records], error)


def _is_here(record: TaskRecord) -> bool:
    return record.phase == Phase.QUEUED and record.group is None


def _elsewhere(record: TaskRecord) -> list[TaskRecord]:
    """Give those whose results a task takes, and which are queued, but not here."""
    return [
        each for each in record.producers if each.phase == Phase.QUEUED and each.group is not None
    ]
