"""Runs methods on chosen workers by means of a `Batch`.

It contains everything that the execution of calls needs from the internals of `Batch`. Any thread
may call an `Engine`. The end of a call is reported in the thread of Dask's event loop, while the
lock of all task records (`CompletionTracker.changed`) is held. So the callback must only record
the end, and must not block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable
from dataclasses import replace
from typing import Any

from daskbatch import errors
from daskbatch.batch.batch import Batch
from daskbatch.batch.factory import TaskSettings, make_record
from daskbatch.batch.task import Task as BatchTask
from daskbatch.cluster.session import Session
from daskbatch.describe.spec import DEFAULT_OPTIONS, Call
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import LifecycleError, SerializationError, ServiceLost, WorkerLost
from daskbatch.execute.running.calls import CallOutcome, CallSequence, Ending, EngineCall
from daskbatch.execute.running.remote_method import Misplaced, RemoteMethod
from daskbatch.serialization import pickling
from daskbatch.serialization.safe_text import has_type

#: After this time, a waiting fetch of a large value checks whether the value is still wanted. The
#: time doubles with every check. Seconds.
_FIRST_FETCH_TIMEOUT_SECONDS = 5.0

#: A value of more bytes is large. Calls that return large values are started one by one, so that
#: no call has to wait for the values of others.
_MAX_SMALL_VALUE_BYTES = 1 << 18


#: A method and the `RemoteMethod` that is sent to a worker in its place. The reference keeps the
#: method alive, so that no other object gets its `id`, by which it is looked up.
_Sent = tuple[Callable[..., Any], RemoteMethod]


class Engine:
    """Runs the calls of one job on the workers.

    Any thread may use it.

    Parameters
    ----------
    batch : Batch
        The Batch that runs the calls.
    name : str
        The name of the calls in Dask's dashboard.
    """

    def __init__(self, batch: Batch, name: str) -> None:
        self._context = batch._context
        # Read in the thread that executes the job: inside a task, the session is the session of
        # that task and not the one of the process.
        self.session: Session = batch._session
        self._dispatcher = self.session.dispatcher
        self._name = name
        self._settings: dict[tuple[str, Hashable], TaskSettings] = {}
        #: The methods sent so far, by worker and by whether the calls release its slot.
        self._methods: dict[tuple[str, bool], dict[int, _Sent]] = {}

    def start(self, sequences: Iterable[CallSequence]) -> list[TaskRecord]:
        """Start calls and return their records in the same order.

        Parameters
        ----------
        sequences : iterable of CallSequence
            The calls.

        Raises
        ------
        ServiceLost, LifecycleError
            The connection to the cluster has ended, or the Batch was closed.
        """
        records: list[TaskRecord] = []
        callbacks: list[Callable[[], None]] = []
        for sequence in sequences:
            first = len(records)
            settings, methods = self._where(sequence)
            for call in sequence.calls:
                records.append(self._record(call, settings, methods, sequence))
                callbacks.append(call.on_over)
            if sequence.before:
                # The first call runs after the earlier calls of the queue, even if these fail.
                records[first].waits = tuple((each, 0) for each in sequence.before)
        self._dispatcher.submit(records, self._name)
        outcomes = self._dispatcher.outcomes
        with outcomes.changed:
            for record, callback in zip(records, callbacks, strict=True):
                outcomes.when_over(record, callback)
        return records

    def _where(self, sequence: CallSequence) -> tuple[TaskSettings, dict[int, _Sent]]:
        """Return the settings of a sequence of calls, and the methods sent to its worker."""
        where = sequence.worker, sequence.queue
        settings = self._settings.get(where)
        if settings is None:
            options = replace(
                DEFAULT_OPTIONS, workers=(sequence.worker,), other_workers=True, apart=where
            )
            settings = self._settings[where] = TaskSettings(options)
        return settings, self._methods.setdefault((sequence.worker, sequence.releases_slot), {})

    def _record(
        self,
        call: EngineCall,
        settings: TaskSettings,
        methods: dict[int, _Sent],
        sequence: CallSequence,
    ) -> TaskRecord:
        method, args, kwargs = call.method, call.args, call.kwargs
        sent = methods.get(id(method))
        if sent is None:
            remote = RemoteMethod(method, sequence.worker, sequence.releases_slot)
            sent = methods[id(method)] = method, remote
        if not kwargs and pickling.are_plain(args):
            described = Call(sent[1], call.kind, pickling.dumps_plain((args, kwargs)))
        else:
            try:
                described = Call(sent[1], call.kind, *pickling.pack((args, kwargs)))
            except SerializationError as error:
                described = Call(sent[1], call.kind, b"", failure=error)
        return make_record(self._context, self.session, described, call.name, settings)

    def is_far(self, record: TaskRecord) -> bool:
        """Return whether the value of a call that is over must be fetched from its worker."""
        return record.phase == Phase.DONE and record.value is None and record.block is not None

    def is_large(self, record: TaskRecord) -> bool:
        """Return whether a call has a value in this process and the value is large."""
        return record.value is not None and len(record.value) > _MAX_SMALL_VALUE_BYTES

    def fetch(self, record: TaskRecord, stopped: Callable[[], bool]) -> CallOutcome:
        """Fetch the value of a call if it is still on a worker, and return the call's outcome.

        Parameters
        ----------
        record : TaskRecord
            The record of the call.
        stopped : callable
            Returns whether the value is no longer wanted.
        """
        seconds = _FIRST_FETCH_TIMEOUT_SECONDS
        try:
            while (self.is_far(record) or not record.over) and not stopped():
                with contextlib.suppress(TimeoutError):
                    if record.over:
                        self._dispatcher.fetch(record, seconds)
                    else:
                        # The value was lost, and the dispatcher is about to run the call again.
                        # Cancel that: the job decides where the call runs again.
                        self.cancel([record], begun=False)
                        self._dispatcher.outcomes.wait(lambda: record.over, seconds)
                seconds *= 2  # a fetch that timed out starts again from the beginning
        except WorkerLost as error:
            return CallOutcome(Ending.LOST, None, error)
        except LifecycleError as error:
            return CallOutcome(Ending.SERVICE_LOST, None, error)
        if stopped():
            return CallOutcome(Ending.CANCELLED)
        outcome = self.outcome(record)
        return outcome._replace(large=self.is_large(record))

    def outcome(self, record: TaskRecord) -> CallOutcome:
        """Return the outcome of a call that is over; its value must be in this process."""
        if record.phase == Phase.DONE and record.value is not None:
            try:
                return CallOutcome(
                    Ending.RETURNED, pickling.loads(record.value), None, record.seconds
                )
            except BaseException:
                pass  # the value is loaded again below, and the error of that is returned
        deaths = self._dispatcher.table.deaths.get(record, 0)
        if record.phase == Phase.CANCELLED:
            # The call was cancelled by its job, by the end of the Batch, or by a worker that was
            # closed in the regular way.
            ending = Ending.SERVICE_LOST if self.session.ended else Ending.CANCELLED
            cancelled = errors.TaskCancelled("the Batch of the job has ended")
            return CallOutcome(ending, None, cancelled, deaths=deaths)
        value, error = BatchTask(self._context, record, self.session)._value_or_error()
        seconds = record.seconds
        if error is None:
            return CallOutcome(Ending.RETURNED, value, None, seconds)
        if self.was_cancelled(record):
            # The value was lost, and the call was cancelled when it was about to run again.
            return CallOutcome(Ending.CANCELLED, deaths=deaths)
        if has_type(error, Misplaced, WorkerLost):
            deaths += has_type(error, WorkerLost) and not deaths
            return CallOutcome(Ending.LOST, None, error, seconds, deaths)
        if has_type(error, ServiceLost):
            return CallOutcome(Ending.SERVICE_LOST, None, error)
        return CallOutcome(Ending.RAISED, None, error, seconds)

    def cancel(self, records: Iterable[TaskRecord], begun: bool = True) -> None:
        """Cancel calls; return when it is certain which of them will not complete.

        Parameters
        ----------
        records : iterable of TaskRecord
            The records of the calls.
        begun : bool
            Whether to stop also the calls that have started.
        """
        unfinished = [record for record in records if not record.over]
        if unfinished:
            self._dispatcher.cancel(unfinished, begun)

    def was_cancelled(self, record: TaskRecord) -> bool:
        """Return whether a call was cancelled and therefore has not completed."""
        return record.phase == Phase.CANCELLED

    def has_moved(self, record: TaskRecord, block: Any) -> bool:
        """Return whether a call is no longer part of the given block."""
        return record.block is not block
