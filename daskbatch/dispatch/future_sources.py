"""Follows the tasks that fetch the results of Dask futures for other tasks.

Such a *source* is started with the first task that takes the result, and is cancelled when no
unfinished task takes it any longer: the future may never be done. Not thread-safe: the dispatcher
holds its lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from daskbatch.describe.future_source import FutureSource
from daskbatch.dispatch.task_record import Phase, TaskRecord


class FutureSources:
    """The sources of one client. Not thread-safe."""

    def __init__(self) -> None:
        #: Called with a source that no task needs; cancels it later, in another thread.
        self.abandon: Callable[[TaskRecord], None] = lambda source: None
        #: Whether any source was ever made.
        self.in_use = False
        #: The started sources that are not over.
        self._waiting: set[TaskRecord] = set()

    def add(self, records: Iterable[TaskRecord]) -> list[TaskRecord]:
        """Record tasks that are being started; return the sources that must start before them.

        A task whose source was abandoned meanwhile receives another one.
        """
        new: dict[TaskRecord, None] = {}
        for record in records:
            for source in _sources_of(record):
                future = _future_of(source)
                if future.abandoned:
                    source = _replace(record, source, future)
                    future = _future_of(source)
                future.takers.add(record)
                if source.phase == Phase.CREATED:
                    new[source] = None
        return list(new)

    def wait_for(self, sources: Iterable[TaskRecord]) -> bool:
        """Record that sources were started; return whether there were none before."""
        is_first = not self._waiting
        self._waiting.update(sources)
        return is_first

    @property
    def has_waiting(self) -> bool:
        """Whether any source is not over."""
        return bool(self._waiting)

    def take_cancelled(self) -> list[TaskRecord]:
        """Remove and return the sources whose futures were cancelled."""
        self._waiting = {source for source in self._waiting if not source.over}
        found = [source for source in self._waiting if _future_of(source).is_cancelled]
        self._waiting.difference_update(found)
        return found

    def over(self, record: TaskRecord) -> None:
        """Record that a task is over; abandon the sources that no other task needs."""
        for source in _sources_of(record):
            future = _future_of(source)
            future.takers.discard(record)
            if not (future.takers or source.over or future.abandoned):
                future.abandoned = True
                self.abandon(source)


def _sources_of(record: TaskRecord) -> Sequence[TaskRecord]:
    """Return the sources among the producers of a task, each once."""
    if record.call is None or not record.call.references:
        return ()
    found = dict.fromkeys(each for each in record.producers if each.options.future is not None)
    return list(found)


def _future_of(source: TaskRecord) -> FutureSource:
    assert source.options.future is not None
    return source.options.future


def _replace(record: TaskRecord, source: TaskRecord, future: FutureSource) -> TaskRecord:
    """Have a task take the result from a new source; return that."""
    made: TaskRecord = future.renew()
    assert record.call is not None
    references = tuple(
        (made if each is source else each, part) for each, part in record.call.references
    )
    record.call = record.call._replace(references=references)
    return made
