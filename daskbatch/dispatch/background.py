"""Holds what one client has not started yet: queued template tasks and executors' calls.

Any thread may use it. A thread that needs one of these tasks has `Background` start it.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from daskbatch.dispatch.backlog import Backlog
from daskbatch.dispatch.declarations import set_rules
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.dispatch.unfinished_records import UnfinishedRecords


class ExecutorPool(Protocol):
    """An executor's queue of calls, which a thread of the executor submits.

    Any thread may use it.
    """

    @property
    def waiting(self) -> list[TaskRecord]:
        """The calls that have not been submitted."""

    def flush(self) -> None:
        """Have the thread submit all queued calls now; does not wait for it."""

    def wait_submitted(self, records: Sequence[TaskRecord]) -> None:
        """Wait until those of the tasks that are calls of this executor have been submitted."""

    def abandon(self) -> None:
        """Cancel the calls that have not been submitted."""


class Background:
    """The queued tasks of one client. Any thread may use it.

    Parameters
    ----------
    dispatcher : Dispatcher
        Runs the tasks that are started.
    start : callable
        Starts tasks, each after those that it waits for, under a name for the dashboard.
    """

    def __init__(
        self,
        dispatcher: Dispatcher,
        start: Callable[[Sequence[TaskRecord], str, None], None],
    ) -> None:
        self._own_backlog: Backlog | None = Backlog(dispatcher.table.set_phase)
        self._backlog = weakref.ref(self._own_backlog)
        #: The executors of this client.
        self.pools: weakref.WeakSet[ExecutorPool] = weakref.WeakSet()
        #: The name on Dask's dashboard for tasks of several names.
        self.name = "batch"
        #: The directory of a strict Batch; empty if the tasks are not strict.
        self.rules_directory = ""
        self._dispatcher = dispatcher
        self._start = start
        #: The template tasks that may not be over.
        self._queued = UnfinishedRecords()
        #: The tasks, started or not, that declare to write and may not be over.
        self.writers = UnfinishedRecords()

    @property
    def backlog(self) -> Backlog:
        """The template tasks that wait."""
        found = self._backlog()
        return Backlog(self._dispatcher.table.set_phase) if found is None else found

    def lend(self) -> Backlog:
        """Return the backlog and keep only a weak reference to it.

        From then on the Batch keeps the backlog. A waiting task may refer to its Batch: if this
        client kept the task, the task would keep the Batch alive.
        """
        backlog, self._own_backlog = self.backlog, None
        return backlog

    def queue(self, record: TaskRecord) -> None:
        """Queue a template task until it is needed."""
        self._queued.add(record)
        self.backlog.add(record)

    @property
    def has_queued(self) -> bool:
        """Whether there may be template tasks that are not over."""
        return bool(self._queued)

    def unfinished_queued(self, predicate: Callable[[TaskRecord], bool]) -> list[TaskRecord]:
        """Start the unfinished template tasks that match a predicate, and return them."""
        found = [record for record in self._queued.records() if predicate(record)]
        self.start_queued(found)
        return found

    @property
    def executor_pools(self) -> list[ExecutorPool]:
        """The executors of this client."""
        with self._dispatcher.outcomes.changed:
            return list(self.pools)

    def flush(self, needed: Sequence[TaskRecord] | None = None) -> None:
        """Start the queued template tasks: at least those in `needed`, by default all."""
        if len(self.backlog):
            self._dispatcher.outcomes.require_own_process()
            fail = self._dispatcher.settle_unstarted
            self.backlog.flush(self._start_all, fail, self._wait_submitted, needed)

    def start_queued(self, records: Sequence[TaskRecord]) -> None:
        """Start those of the tasks that are queued, here or in an executor."""
        queued = [record for record in records if record.phase == Phase.QUEUED]
        if any(record.group is None for record in queued):
            self.flush(queued)
        if any(record.group is not None for record in queued):
            self._wait_submitted(queued)

    def unfinished(self, predicate: Callable[[TaskRecord], bool]) -> list[TaskRecord]:
        """Start all unfinished tasks that match a predicate, and return them."""
        # In the order in which a task moves on; in another order, one could be missed.
        found = [record for record in self.backlog.records if predicate(record)]
        for pool in self.executor_pools:
            found += [record for record in pool.waiting if predicate(record)]
        self.start_queued(found)
        return found + [record for record in self._dispatcher.unfinished() if predicate(record)]

    def drop(self) -> None:
        """Cancel all tasks that have not been started."""
        self._dispatcher.settle_unstarted(self.backlog.drop(), None)
        for pool in self.executor_pools:
            pool.abandon()

    def _start_all(self, records: Sequence[TaskRecord]) -> None:
        if self.rules_directory:
            set_rules(records, self.rules_directory)
        names = {record.base_name for record in records if record.call is not None}
        self._start(records, names.pop() if len(names) == 1 else self.name, None)

    def _wait_submitted(self, records: Sequence[TaskRecord]) -> None:
        for pool in self.executor_pools:
            pool.wait_submitted(records)
