"""Collects calls until a slot is idle, or for some milliseconds, and submits them together.

Therefore a loop of single calls costs hardly more than one submission of all of them, and a single
call does not wait while a slot is idle. The thread "submit" submits the calls.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence

from daskbatch.cluster.session import Session
from daskbatch.dispatch.requirements import requires_something
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.errors import BatchError, SpecError
from daskbatch.executor.concurrency_limit import ConcurrencyLimit

_logger = logging.getLogger("daskbatch")

#: How long a call waits for others while all slots are busy.
_MAX_DELAY_SECONDS = 0.01

#: With this many calls queued, they are submitted at once.
_MAX_QUEUED_CALLS = 4096


class SubmitQueue:
    """The calls of an executor that are not submitted, and the thread that submits them.

    Several threads may use it; methods whose docstring says so require the lock `changed` of the
    client's `CompletionTracker`.

    Parameters
    ----------
    session : Session
        The client that the calls are submitted to.
    group : Group
        The group of all calls of the executor; counts those that are not over.
    name : str, optional
        Prefix of the functions' names on Dask's dashboard.
    max_running : int, optional
        How many calls may run at once; None for no limit but the slots of the cluster.
    """

    def __init__(
        self, session: Session, group: Group, name: str | None, max_running: int | None
    ) -> None:
        self._session = session
        self._dispatcher = session.dispatcher
        self._outcomes = self._dispatcher.outcomes
        self._group = group
        self._name = name
        self._limit = None if max_running is None else ConcurrencyLimit(max_running)
        #: Held while anything below changes; also notified when tasks are over.
        self._changed = self._outcomes.changed
        #: Notified, with the same lock, of what the thread waits for while no call is queued.
        self._has_work_condition = self._outcomes.make_condition()
        self._queued: deque[TaskRecord] = deque()
        #: The calls that a thread has taken from the queue, and that are not yet submitted.
        self._submitting: list[TaskRecord] = []
        self._to_cancel: deque[TaskRecord] = deque()
        #: Whether the queued calls are to be submitted without waiting for more.
        self._flush_requested = False
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def slots(self) -> int:
        """How many calls run at once."""
        slots = self._session.slots
        return slots if self._limit is None else min(slots, self._limit.max_running)

    @property
    def waiting(self) -> list[TaskRecord]:
        """The calls that have not been submitted."""
        with self._changed:
            return [record for record in (*self._submitting, *self._queued) if not record.over]

    # -- called by the user's threads -----------------------------------------------------

    def put(self, records: Sequence[TaskRecord]) -> None:
        """Add calls to the queue. The caller holds the lock."""
        for record in records:
            self._dispatcher.table.set_phase(record, Phase.QUEUED)
            record.group = self._group
        self._group.unfinished += len(records)
        was_empty = not self._queued
        self._queued.extend(records)
        if was_empty or len(self._queued) >= _MAX_QUEUED_CALLS:
            self._wake()

    def _wake(self) -> None:
        self._has_work_condition.notify()
        self._changed.notify_all()

    def submit_single(self, record: TaskRecord) -> None:
        """Submit a call that `put_single` has accepted. The caller holds no lock."""
        self._submit([record])

    def end_single(self, record: TaskRecord) -> None:
        """Let the thread submit further calls; also this one, if its thread was interrupted."""
        with self._changed:
            self._submitting = []
            if record.phase == Phase.QUEUED:
                self._queued.appendleft(record)
            if self._queued or self._to_cancel or self._closed:
                self._wake()
            self._changed.notify_all()

    def put_single(self, record: TaskRecord) -> bool:
        """Accept a call that this thread may submit itself, if it is the only one.

        A thread costs a single call more than its submission to an open block. The caller holds
        the lock; if this returns True, it then calls `submit_single`, and in any case `end_single`.
        """
        if (
            self._queued
            or self._submitting
            or self._to_cancel
            or self._closed
            or self._outcomes.unfinished
            or self._group.unfinished
            or record.producers
            or requires_something(record.options)
            or self._effective_limit() is not None
            or not self._dispatcher.table.open_blocks.has_idle
        ):
            return False
        self._dispatcher.table.set_phase(record, Phase.QUEUED)
        record.group = self._group
        self._group.unfinished += 1
        self._submitting = [record]
        return True

    def start(self) -> None:
        """Start the thread, unless it runs already. The caller holds the lock.

        Raises
        ------
        RuntimeError
            The interpreter is shutting down.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="daskbatch-submit", daemon=True)
            thread.start()
            self._thread = thread

    def flush(self) -> None:
        """Let the thread submit the queued calls now, and do not wait for it."""
        with self._changed:
            self._flush_requested = True
            self._wake()

    def wait_submitted(self, records: Sequence[TaskRecord]) -> None:
        """Wait until those of some tasks that are in this queue have been submitted."""
        with self._changed:
            while any(
                record.phase == Phase.QUEUED and record.group is self._group for record in records
            ):
                self._flush_requested = True
                self._wake()
                self._changed.wait()

    def cancel_later(self, records: Iterable[TaskRecord]) -> None:
        """Let the thread cancel calls. It takes no lock, so that a finalizer may call it."""
        self._to_cancel.extend(records)
        with contextlib.suppress(RuntimeError):  # the cluster has ended, and its tasks with it
            self._dispatcher.call_later(self.flush)

    def close(self) -> None:
        """End the thread, and cancel the queued calls. The caller holds the lock."""
        self._closed = True
        self._wake()
        self._dispatcher.settle_unstarted(self._queued, None)

    # -- the thread "submit" --------------------------------------------------------------

    def _run(self) -> None:
        try:
            self._submit_until_closed()
        except BaseException as error:
            # Threads that wait for calls must not wait for ever.
            _logger.exception("daskbatch lost track of its calls; this is a bug of daskbatch")
            lost = BatchError(f"daskbatch lost track of this call: {error!r}")
            with self._changed:
                self._thread = None
                self._dispatcher.settle_unstarted(self.waiting, lost)
                self._queued.clear()
                self._submitting = []

    def _submit_until_closed(self) -> None:
        while True:
            with self._changed:
                while not self._has_work():
                    self._waits_for().wait(self._seconds_to_wait())
                if self._closed:
                    return
                if not self._may_submit():
                    self._changed.wait_for(self._may_submit, _MAX_DELAY_SECONDS)
                self._flush_requested = False
                diverted = [] if self._limit is None else self._limit.divert()
                to_cancel = [self._to_cancel.popleft() for _ in range(len(self._to_cancel))]
                if not to_cancel:
                    self._submitting = self._take()
            if diverted:
                self._dispatcher.place_anew(diverted)
            if to_cancel:
                self._dispatcher.cancel(to_cancel)
            elif self._submitting:
                self._submit(self._submitting)
                with self._changed:
                    self._submitting = []
                    self._changed.notify_all()
            del to_cancel, diverted

    def _has_work(self) -> bool:
        if self._closed or self._to_cancel or self._seconds_to_wait() == 0:
            return True
        # A thread may be submitting a single call, which comes first.
        if not self._queued or any(each.phase == Phase.QUEUED for each in self._submitting):
            return False
        limit = self._effective_limit()
        return limit is None or limit.is_free()

    def _waits_for(self) -> threading.Condition:
        """Return what is notified when there may be work.

        If no call is queued, the ends of tasks need not wake the thread.
        """
        if self._queued or not (self._limit is None or self._limit.is_idle):
            return self._changed
        return self._has_work_condition

    def _seconds_to_wait(self) -> float | None:
        # Also if the limit has no effect any longer: calls may still be in its chains.
        return None if self._limit is None else self._limit.seconds_to_wait()

    def _effective_limit(self) -> ConcurrencyLimit | None:
        """Return the limit, if the cluster has more slots than it allows."""
        limit = self._limit
        return limit if limit is not None and limit.max_running < self._session.slots else None

    def _may_submit(self) -> bool:
        return (
            self._flush_requested
            or self._closed
            or self._outcomes.unfinished < self._session.slots
            or len(self._queued) >= _MAX_QUEUED_CALLS
        )

    def _take(self) -> list[TaskRecord]:
        """Remove from the queue, and return, the calls that may be submitted."""
        limit = self._effective_limit()
        if limit is not None:
            return limit.take(self._queued)
        records = [record for record in self._queued if not record.over]
        self._queued.clear()
        return records

    def _submit(self, records: Sequence[TaskRecord]) -> None:
        """Submit calls, in order, each after the tasks whose results it takes."""
        for position, record in enumerate(records):
            others = [each for each in record.producers if each.group is not self._group]
            if any(each.phase == Phase.QUEUED for each in others):
                # These are queued by another executor of the same Batch, or in the background,
                # and may themselves wait for the calls before this one.
                self._submit_now(records[:position])
                self._session.background.start_queued(others)
                self._submit(records[position:])
                return
        self._submit_now(records)

    def _submit_now(self, records: Sequence[TaskRecord]) -> None:
        if not records:
            return
        try:
            self._session.submit(records, self._dashboard_name(records), None)
        except Exception as error:
            unsubmitted = [record for record in records if record.phase < Phase.WAITING]
            if len(unsubmitted) > 1 and isinstance(error, SpecError):
                for record in unsubmitted:  # no worker can run one of them; the others can run
                    self._submit_now([record])
                return
            cause = None if self._session.ended else error
            self._dispatcher.settle_unstarted(unsubmitted, cause)

    def _dashboard_name(self, records: Sequence[TaskRecord]) -> str:
        names = {record.name for record in records}
        function = names.pop() if len(names) == 1 else None
        return "-".join(filter(None, (self._name, function))) or "executor"
