"""Collects which tasks have not run, or have failed, in a block that is over for Dask.

Dask sees the key of a block succeed, whatever its members did, and nothing of the tasks that the
client holds or sends to open blocks. So the dispatcher collects here what Dask's dashboard must
count otherwise. It calls all methods with its lock held.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from daskbatch.dispatch.key_names import shown_name
from daskbatch.dispatch.task_record import BlockKey, Phase, SubmittedBlock, TaskRecord
from daskbatch.serialization.exceptions import brief_error

#: Of this many failures of a client the exceptions are reported; of further ones the number.
_MAX_REPORTED_ERRORS = 500

#: Of this many tasks of open blocks at a time it is reported when they ran.
_MAX_TIMES = 2000

#: What is reported of an exception.
_MAX_ERROR_CHARACTERS = 500

# Looking up a member of an enum takes long.
_DONE = Phase.DONE


class ShownFailure(NamedTuple):
    """A task that has failed.

    Parameters
    ----------
    name : str
        Its name on the dashboard.
    error : str
        The type and the first line of its exception.
    worker : str
        The worker that ran it last; empty if none did.
    """

    name: str
    error: str
    worker: str


class Unsuccessful(NamedTuple):
    """What has been collected.

    Parameters
    ----------
    withdrawn : mapping
        For each block, how many of its members of which name did not run there, or have failed.
    failures : sequence of ShownFailure
        The tasks that have failed.
    others : mapping
        How many more have failed, by name.
    outside : mapping
        By name and state of Dask, by how many the number of tasks outside of submitted blocks has
        changed.
    ran : sequence of tuple
        The fields of a `dashboard.task_times.TaskTime` of each task of an open block.
    """

    withdrawn: Mapping[BlockKey, Mapping[str, int]]
    failures: Sequence[ShownFailure]
    others: Mapping[str, int]
    outside: Mapping[tuple[str, str], int]
    ran: Sequence[tuple[str, int, str, float, float, bool]] = ()


class UnsuccessfulTasks:
    """Collects the unsuccessful tasks of one client.

    Attributes
    ----------
    notify : callable, optional
        Called, with the lock held, when there is something to take; None if nobody takes it: then
        nothing is collected.
    shows_times : bool
        Whether somebody looks at Dask's task stream. Any thread may set it.
    """

    def __init__(self) -> None:
        self.notify: Callable[[], None] | None = None
        self._withdrawn: dict[BlockKey, Counter[str]] = {}
        self._failures: list[ShownFailure] = []
        self._others: Counter[str] = Counter()
        self._reported = 0
        #: The tasks that are in no block that was submitted with its members, and not over, with
        #: the names that Dask shows.
        self._held: dict[TaskRecord, str] = {}
        self._outside: Counter[tuple[str, str]] = Counter()
        self.shows_times = False
        self._ran: list[TaskRecord] = []

    def withdraw(self, block: SubmittedBlock, record: TaskRecord) -> None:
        """Record that a member has not succeeded in its block."""
        if self.notify is not None and record.call is not None:
            self._announce()
            self._withdrawn.setdefault(block.key, Counter())[shown_name(record)] += 1

    def fail(self, record: TaskRecord) -> None:
        """Record that a task has failed, for good."""
        if self.notify is None or record.call is None:
            return
        self._announce()
        name = shown_name(record)
        if self._reported >= _MAX_REPORTED_ERRORS:
            self._others[name] += 1
            return
        self._reported += 1
        error = "its exception is on its worker"
        if record.value is not None:
            error = brief_error(record.value)[:_MAX_ERROR_CHARACTERS]
        worker = "" if record.begin is None else record.begin.worker
        if record.measured is not None:
            worker = record.measured.worker
        self._failures.append(ShownFailure(name, error, worker))

    @property
    def holds_any(self) -> bool:
        """Whether any task is held."""
        return bool(self._held)

    def hold(self, records: Iterable[TaskRecord]) -> None:
        """Record tasks that the client holds, and may send to open blocks."""
        if self.notify is None:
            return
        self._announce()
        for record in records:
            if record.call is not None and record not in self._held:
                name = self._held[record] = shown_name(record)
                self._outside[name, "waiting"] += 1

    def release(self, records: Iterable[TaskRecord]) -> None:
        """Record tasks that are no longer held: they are over, or in submitted blocks."""
        if not self._held:
            return
        for record in records:
            name = self._held.pop(record, None)
            if name is not None:
                self._announce()
                self._outside[name, "waiting"] -= 1
                if record.phase == _DONE:
                    self._outside[name, "released"] += 1
                if self.shows_times and record.measured and len(self._ran) < _MAX_TIMES:
                    self._ran.append(record)
        if not self._held:
            self._held.clear()  # a dictionary keeps the memory of all that it has held

    def _announce(self) -> None:
        if self.notify is not None and not (
            self._withdrawn or self._failures or self._others or self._outside
        ):
            self.notify()

    def take(self) -> Unsuccessful:
        """Return what has been collected, and forget it."""
        ran = [time for record in self._ran if (time := _time_of(record)) is not None]
        self._ran.clear()
        taken = Unsuccessful(self._withdrawn, self._failures, self._others, self._outside, ran)
        self._withdrawn, self._failures, self._others = {}, [], Counter()
        self._outside = Counter()
        return taken


def _time_of(record: TaskRecord) -> tuple[str, int, str, float, float, bool] | None:
    """Return the fields of the `TaskTime` of a task; None if it is not known when it ran."""
    if record.measured is None:
        return None  # it is to run again
    measured = record.measured.of(record.member)
    if measured.ended is None or not measured.worker:
        return None
    failed = record.phase == Phase.FAILED
    begin = measured.ended - record.seconds
    return shown_name(record), record.number, measured.worker, begin, measured.ended, failed
