"""What one client has not started yet: template tasks that wait, calls that executors gather.

Does not know how they came about. Whoever needs some of it has it started here.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Sequence
from typing import Protocol

from daskbatch.dispatch.backlog import Backlog
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.task_record import Phase, TaskRecord

#: So few template tasks are not worth looking through. The number itself does not matter.
_MANY = 1000


class Gathering(Protocol):
    """What gathers calls, and hands them over from a thread of its own."""

    @property
    def waiting(self) -> list[TaskRecord]:
        """The calls that have not been handed over."""

    def flush(self) -> None:
        """Have what was gathered handed over."""

    def wait_submitted(self, records: Sequence[TaskRecord]) -> None:
        """Wait until those of some tasks that are calls of this have been handed over."""

    def abandon(self) -> None:
        """Cancel what has not been handed over."""


class Background:
    """The queued tasks of one client.

    Parameters
    ----------
    home : str
        The client.
    dispatcher : Dispatcher
        Runs what is started.
    start : callable
        Starts tasks, each behind those that it waits for, under a name for the dashboard.
    """

    def __init__(
        self,
        home: str,
        dispatcher: Dispatcher,
        start: Callable[[Sequence[TaskRecord], str, None], None],
    ) -> None:
        self._home = home
        self._kept: Backlog | None = Backlog(home)
        self._backlog = weakref.ref(self._kept)
        #: The executors of this client.
        self.pools: weakref.WeakSet[Gathering] = weakref.WeakSet()
        #: What Dask's dashboard calls tasks of many names.
        self.name = "batch"
        self._dispatcher = dispatcher
        self._start = start
        #: Template tasks that may not be over. What waits may keep a Batch, and must not be kept.
        self._queued: list[weakref.ref[TaskRecord]] = []
        #: With so many, those that are over are let go of.
        self._many = _MANY
        self._sorting = threading.Lock()

    @property
    def backlog(self) -> Backlog:
        """The template tasks that wait."""
        found = self._backlog()
        return Backlog(self._home) if found is None else found

    def lend(self) -> Backlog:
        """Leave it to a Batch to keep what waits, which may itself keep the Batch."""
        backlog, self._kept = self.backlog, None
        return backlog

    def queue(self, record: TaskRecord) -> None:
        """Have a template task wait until it is needed."""
        self._queued.append(weakref.ref(record))
        if len(self._queued) >= self._many:
            self._left()
        self.backlog.add(record)

    @property
    def has_queued(self) -> bool:
        """Whether there may be template tasks that are not over."""
        return bool(self._queued)

    def not_over(self, which: Callable[[TaskRecord], bool]) -> list[TaskRecord]:
        """Give those of the template tasks that are of a kind and not over; they are started."""
        found = [record for record in self._left() if which(record)]
        self.start_queued(found)
        return found

    def _left(self) -> list[TaskRecord]:
        with self._sorting:
            # What is appended meanwhile is behind these.
            some = list(self._queued)
            left = [record for each in some if (record := each()) is not None and not record.over]
            self._queued[: len(some)] = [weakref.ref(record) for record in left]
            self._many = max(_MANY, 2 * len(left))
        return left

    @property
    def gathering(self) -> list[Gathering]:
        """The executors of this client."""
        with self._dispatcher.outcomes.changed:
            return list(self.pools)

    def flush(self, wanted: Sequence[TaskRecord] | None = None) -> None:
        """Start what waits in the background; at least some of it, or all."""
        if len(self.backlog):
            self._dispatcher.outcomes.require_here()
            fail = self._dispatcher.settle_unstarted
            self.backlog.flush(self._start_all, fail, self._hand_over, wanted)

    def start_queued(self, records: Sequence[TaskRecord]) -> None:
        """Have those of some tasks started that are queued, whoever has queued them."""
        queued = [record for record in records if record.phase == Phase.QUEUED]
        if any(record.group is None for record in queued):
            self.flush(queued)
        if any(record.group is not None for record in queued):
            self._hand_over(queued)

    def unfinished(self, which: Callable[[TaskRecord], bool]) -> list[TaskRecord]:
        """Give the tasks of a kind that are not over, and have them started."""
        # In the order in which tasks move on, or one could slip through.
        found = [record for record in self.backlog.records if which(record)]
        for pool in self.gathering:
            found += [record for record in pool.waiting if which(record)]
        self.start_queued(found)
        return found + [record for record in self._dispatcher.unfinished() if which(record)]

    def drop(self) -> None:
        """Start none of it: it is cancelled."""
        self._dispatcher.settle_unstarted(self.backlog.drop(), None)
        for pool in self.gathering:
            pool.abandon()

    def _start_all(self, records: Sequence[TaskRecord]) -> None:
        names = {record.name for record in records if record.call is not None}
        self._start(records, names.pop() if len(names) == 1 else self.name, None)

    def _hand_over(self, records: Sequence[TaskRecord]) -> None:
        for pool in self.gathering:
            pool.wait_submitted(records)
