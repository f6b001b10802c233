"""Runs methods on chosen workers by means of a `Batch`.

It contains everything that the execution of calls needs from the internals of `Batch`. Any thread
may call an `Engine`. The end of a call is reported in the thread of Dask's event loop, while the
lock of all task records (`CompletionTracker.changed`) is held. So the callback must only record
the end, and must not block.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from types import CodeType, MethodType
from typing import Any, NamedTuple

from daskbatch import errors
from daskbatch.batch.batch import Batch
from daskbatch.batch.factory import TaskSettings, make_record
from daskbatch.batch.task import Task as BatchTask
from daskbatch.cluster.session import Session
from daskbatch.describe.spec import DEFAULT_OPTIONS, Call, family_of
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import LifecycleError, SerializationError, ServiceLost, WorkerLost
from daskbatch.execute.remote_method import Misplaced, RemoteMethod
from daskbatch.serialization import pickling
from daskbatch.serialization.safe_text import attribute

#: After this time, a waiting fetch of a large value checks whether the value is still wanted. The
#: time doubles with every check. Seconds.
_FIRST_FETCH_TIMEOUT_SECONDS = 5.0

#: A value of more bytes is large. Calls that return large values are started one by one, so that
#: no call has to wait for the values of others.
_MAX_SMALL_VALUE_BYTES = 1 << 18


class EngineCall(NamedTuple):
    """A method to call on a worker.

    Parameters
    ----------
    method, args, kwargs
        The method and its arguments.
    name : str
        The name of the call in messages.
    kind : hashable
        Calls of the same kind are expected to take the same time.
    told : callable
        Called without arguments when the call is over. It must not block.
    """

    method: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str
    kind: Hashable
    told: Callable[[], None]


class LaneCalls(NamedTuple):
    """Calls that one worker runs one after another.

    Parameters
    ----------
    worker : str
        The address of the worker.
    lane : hashable
        Identifies the sequence of calls. The worker runs calls with different values of `lane`
        at the same time if it can.
    releases_slot : bool
        Whether the calls release the slot of the worker while they run; see `RemoteMethod`.
    before : sequence of TaskRecord
        The calls of the same lane that were started earlier and are not over.
    calls : list of EngineCall
        The calls, in the order in which they run.
    """

    worker: str
    lane: Hashable
    releases_slot: bool
    before: Sequence[TaskRecord]
    calls: list[EngineCall]


class Ending(Enum):
    """The ways in which a call can end."""

    RETURNED = "returned"
    RAISED = "raised"
    CANCELLED = "cancelled"
    #: The call was lost with its worker, or did not reach it.
    LOST = "lost"
    #: The connection to the cluster has ended.
    SERVICE_LOST = "service lost"


class CallOutcome(NamedTuple):
    """The outcome of a call that is over.

    Parameters
    ----------
    ending : Ending
        How the call has ended.
    value : object
        The value that it returned, or None.
    error : Exception, optional
        The exception that it raised, or the exception that explains why it did not complete.
    seconds : float
        The duration of the call.
    deaths : int
        How many workers have died while they ran the call.
    large : bool
        Whether the value is large: more than 256 KiB when pickled.
    """

    ending: Ending
    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    deaths: int = 0
    large: bool = False


#: A method and the `RemoteMethod` that is sent to a worker in its place. The reference keeps the
#: method alive, so that no other object gets its `id`, by which it is looked up.
_Sent = tuple[Callable[..., Any], RemoteMethod]


def kind_of(method: Callable[..., Any]) -> Hashable:
    """Return the kind of the calls of a method; calls of one kind take about the same time."""
    code = attribute(method.__func__ if type(method) is MethodType else method, "__code__")
    return code if type(code) is CodeType else family_of(method)


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

    def start(self, lanes: Iterable[LaneCalls]) -> list[TaskRecord]:
        """Start calls and return their records in the same order.

        Parameters
        ----------
        lanes : iterable of LaneCalls
            The calls.

        Raises
        ------
        ServiceLost, LifecycleError
            The connection to the cluster has ended, or the Batch was closed.
        """
        records: list[TaskRecord] = []
        callbacks: list[Callable[[], None]] = []
        for lane in lanes:
            first = len(records)
            settings, methods = self._where(lane)
            for call in lane.calls:
                records.append(self._record(call, settings, methods, lane))
                callbacks.append(call.told)
            if lane.before:
                # The first call runs after the earlier calls of the lane, even if these fail.
                records[first].waits = tuple((each, 0) for each in lane.before)
        self._dispatcher.submit(records, self._name)
        outcomes = self._dispatcher.outcomes
        with outcomes.changed:
            for record, callback in zip(records, callbacks, strict=True):
                outcomes.when_over(record, callback)
        return records

    def _where(self, lane: LaneCalls) -> tuple[TaskSettings, dict[int, _Sent]]:
        """Return the settings of a lane's calls, and the methods that were sent to its worker."""
        where = lane.worker, lane.lane
        settings = self._settings.get(where)
        if settings is None:
            options = replace(
                DEFAULT_OPTIONS, workers=(lane.worker,), other_workers=True, apart=where
            )
            settings = self._settings[where] = TaskSettings(options)
        return settings, self._methods.setdefault((lane.worker, lane.releases_slot), {})

    def _record(
        self,
        call: EngineCall,
        settings: TaskSettings,
        methods: dict[int, _Sent],
        lane: LaneCalls,
    ) -> TaskRecord:
        method, args, kwargs = call.method, call.args, call.kwargs
        sent = methods.get(id(method))
        if sent is None:
            remote = RemoteMethod(method, lane.worker, lane.releases_slot)
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

    def bring(self, record: TaskRecord, stopped: Callable[[], bool]) -> CallOutcome:
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
        if isinstance(error, (Misplaced, WorkerLost)):
            deaths += isinstance(error, WorkerLost) and not deaths
            return CallOutcome(Ending.LOST, None, error, seconds, deaths)
        if isinstance(error, ServiceLost):
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
