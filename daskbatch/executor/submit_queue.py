"""Gathers calls for a moment, or until a slot is idle, and hands them over together.

Does not know futures, nor how an executor ends. A loop of single calls so costs hardly more
than all of them at once, and a call that comes alone does not wait.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Iterable, Sequence

from daskbatch.cluster.session import Session
from daskbatch.dispatch.task_record import Group, Phase, TaskRecord
from daskbatch.errors import BatchError, SpecError
from daskbatch.executor.concurrency_limit import ConcurrencyLimit

_logger = logging.getLogger("daskbatch")

#: How long calls are gathered while all slots are busy. Seconds.
_GATHER_SECONDS = 0.01

#: So many are not gathered any longer.
_MANY = 4096


class SubmitQueue:
    """The calls that are not handed over yet, and the thread that does it.

    Parameters
    ----------
    session : Session
        Runs them.
    group : Group
        Counts them.
    name : str, optional
        Stands before the functions' names on Dask's dashboard.
    cap : int, optional
        How many may run at once.
    """

    def __init__(self, session: Session, group: Group, name: str | None, cap: int | None) -> None:
        self._session = session
        self._dispatcher = session.dispatcher
        self._outcomes = self._dispatcher.outcomes
        self._group = group
        self._name = name
        self._lanes = None if cap is None else ConcurrencyLimit(cap)
        #: Held for every change below; notified also when tasks are over.
        self._changed = self._outcomes.changed
        self._gathered: deque[TaskRecord] = deque()
        #: Those that are on their way from here to the dispatcher.
        self._passing: list[TaskRecord] = []
        self._doomed: deque[TaskRecord] = deque()
        self._hurried = False
        self._closed = False
        self._thread: threading.Thread | None = None

    @property
    def slots(self) -> int:
        """How many calls run at once."""
        slots = self._session.slots
        return slots if self._lanes is None else min(slots, self._lanes.cap)

    @property
    def waiting(self) -> list[TaskRecord]:
        """The calls that have not been handed over."""
        with self._changed:
            return [record for record in (*self._passing, *self._gathered) if not record.over]

    # -- the user's threads ---------------------------------------------------------------

    def put(self, records: Sequence[TaskRecord]) -> None:
        """Gather calls; to be called with the lock."""
        for record in records:
            self._dispatcher.table.set_phase(record, Phase.QUEUED)
            record.group = self._group
        self._group.unfinished += len(records)
        was_empty = not self._gathered
        self._gathered.extend(records)
        if was_empty or len(self._gathered) >= _MANY:
            self._changed.notify_all()

    def start(self) -> None:
        """Start the thread, if that has not been done; to be called with the lock.

        Raises
        ------
        RuntimeError
            The interpreter ends.
        """
        if self._thread is None:
            thread = threading.Thread(target=self._run, name="daskbatch-hand-over", daemon=True)
            thread.start()
            self._thread = thread

    def hurry(self) -> None:
        """Gather no longer."""
        with self._changed:
            self._hurried = True
            self._changed.notify_all()

    def hand_over(self, records: Sequence[TaskRecord]) -> None:
        """Wait until those of some tasks that are gathered here have been handed over."""
        with self._changed:
            while any(
                record.phase == Phase.QUEUED and record.group is self._group for record in records
            ):
                self._hurried = True
                self._changed.notify_all()
                self._changed.wait()

    def cancel_later(self, records: Iterable[TaskRecord]) -> None:
        """Cancel calls without waiting for it, nor for any lock: a finalizer may call it."""
        self._doomed.extend(records)
        with contextlib.suppress(RuntimeError):  # the cluster has ended, and all with it
            self._dispatcher.call_later(self.hurry)

    def close(self) -> None:
        """End the thread; what has not been handed over is cancelled. With the lock."""
        self._closed = True
        self._dispatcher.settle_unstarted(self._gathered, None)

    # -- the thread that hands over -------------------------------------------------------

    def _run(self) -> None:
        try:
            self._hand_over_all()
        except BaseException as error:
            # Whoever waits for calls must hear of it.
            _logger.exception("daskbatch lost track of its calls; this is a bug of daskbatch")
            lost = BatchError(f"daskbatch lost track of this call: {error!r}")
            with self._changed:
                self._thread = None
                self._dispatcher.settle_unstarted(self.waiting, lost)
                self._gathered.clear()
                self._passing = []

    def _hand_over_all(self) -> None:
        while True:
            with self._changed:
                while not self._has_work():
                    self._changed.wait(self._patience())
                if self._closed:
                    return
                if not self._may_hand_over():
                    self._changed.wait_for(self._may_hand_over, _GATHER_SECONDS)
                self._hurried = False
                diverted = self._divert()
                doomed = [self._doomed.popleft() for _ in range(len(self._doomed))]
                if not doomed:
                    self._passing = self._take()
            if diverted:
                self._dispatcher.place_anew(diverted)
            if doomed:
                self._dispatcher.cancel(doomed)
            elif self._passing:
                self._submit(self._passing)
                with self._changed:
                    self._passing = []
                    self._changed.notify_all()
            del doomed, diverted

    def _has_work(self) -> bool:
        if self._closed or self._doomed or self._patience() == 0:
            return True
        lanes = self._lanes_in_use()
        return bool(self._gathered) and (lanes is None or lanes.is_free())

    def _patience(self) -> float | None:
        # Also when there are no more slots than lanes any more: what was put into them is there.
        return None if self._lanes is None else self._lanes.seconds_to_wait()

    def _divert(self) -> list[TaskRecord]:
        return [] if self._lanes is None else self._lanes.divert()

    def _lanes_in_use(self) -> ConcurrencyLimit | None:
        """Give the lanes, if there are fewer than slots."""
        lanes = self._lanes
        return lanes if lanes is not None and lanes.cap < self._session.slots else None

    def _may_hand_over(self) -> bool:
        return (
            self._hurried
            or self._closed
            or self._outcomes.unfinished < self._session.slots
            or len(self._gathered) >= _MANY
        )

    def _take(self) -> list[TaskRecord]:
        lanes = self._lanes_in_use()
        if lanes is not None:
            return lanes.take(self._gathered)
        records = [record for record in self._gathered if not record.over]
        self._gathered.clear()
        return records

    def _submit(self, records: Sequence[TaskRecord]) -> None:
        for position, record in enumerate(records):
            others = [each for each in record.producers if each.group is not self._group]
            if any(each.phase == Phase.QUEUED for each in others):
                # Of another executor on the same Batch, which may itself wait for these.
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
            left = [record for record in records if record.phase < Phase.WAITING]
            if len(left) > 1 and isinstance(error, SpecError):
                for record in left:  # one of them asks for what there is not
                    self._submit_now([record])
                return
            cause = None if self._session.ended else error
            self._dispatcher.settle_unstarted(left, cause)

    def _dashboard_name(self, records: Sequence[TaskRecord]) -> str:
        names = {record.name for record in records}
        function = names.pop() if len(names) == 1 else None
        return "-".join(filter(None, (self._name, function))) or "executor"
