"""Runs methods on chosen workers by the engine of `Batch`; all that jobs need of its inside.

Any thread may call an `Engine`. What is over is told on Dask's event loop, while the engine's
lock is held: the listener must only note it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from typing import Any, NamedTuple

from daskbatch import errors
from daskbatch.batch.batch import Batch
from daskbatch.batch.factory import TaskSettings, make_record
from daskbatch.batch.task import Task as BatchTask
from daskbatch.cluster.session import Session
from daskbatch.describe.spec import DEFAULT_OPTIONS, Call
from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import LifecycleError, SerializationError, ServiceLost, WorkerLost
from daskbatch.execute.remote_method import Misplaced, RemoteMethod
from daskbatch.serialization import pickling

#: After this many seconds it is seen whether a large value is still wanted; then twice as many.
_FETCH_SECONDS = 5.0

#: Calls with larger values are started one by one, so that none is held up by others' values.
_LARGE_BYTES = 1 << 18


class EngineCall(NamedTuple):
    """A method to be called.

    Parameters
    ----------
    method, args, kwargs
        What is called.
    name : str
        What messages call it.
    kind : hashable
        Calls of one kind can be expected to take the same time.
    told : callable
        Called, without arguments, when the call is over.
    """

    method: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    name: str
    kind: Hashable
    told: Callable[[], None]


class LaneCalls(NamedTuple):
    """Calls that run one after another, on one worker.

    Parameters
    ----------
    worker : str
        The address of the worker.
    lane : hashable
        Calls of different lanes run at the same time if the worker can.
    releases_slot : bool
        See `RemoteMethod`.
    before : sequence of TaskRecord
        What was started in the lane before, and is not over.
    calls : list of EngineCall
        In the order in which they run.
    """

    worker: str
    lane: Hashable
    releases_slot: bool
    before: Sequence[TaskRecord]
    calls: list[EngineCall]


class Ending(Enum):
    """How a call has ended."""

    RETURNED = "returned"
    RAISED = "raised"
    CANCELLED = "cancelled"
    #: It was lost with its worker, or never came to it.
    LOST = "lost"
    #: The cluster is gone.
    SERVICE_LOST = "service lost"


class CallOutcome(NamedTuple):
    """What a call has come to.

    Parameters
    ----------
    ending : Ending
        How it has ended.
    value : object
        What it returned.
    error : Exception, optional
        What it raised, or what else has become of it.
    seconds : float
        How long it ran.
    deaths : int
        How many workers have died while they ran it.
    large : bool
        Whether the value is large.
    """

    ending: Ending
    value: Any = None
    error: BaseException | None = None
    seconds: float = 0.0
    deaths: int = 0
    large: bool = False


#: A method, since its number could be that of another later; and what a worker is sent of it.
_Known = tuple[Callable[..., Any], RemoteMethod]


def kind_of(method: Callable[..., Any]) -> Hashable:
    """Return what calls have in common that can be expected to take the same time."""
    inner = getattr(method, "__func__", getattr(method, "func", method))
    return getattr(inner, "__code__", None) or (
        getattr(inner, "__module__", None),
        getattr(inner, "__qualname__", type(inner).__qualname__),
    )


class Engine:
    """Runs the calls of one job.

    Parameters
    ----------
    batch : Batch
        Runs them.
    name : str
        What Dask's dashboard calls them.
    """

    def __init__(self, batch: Batch, name: str) -> None:
        self._context = batch._context
        # Resolved by the thread that executes the job: in a task this is a client of its own.
        self.session: Session = batch._session
        self._dispatcher = self.session.dispatcher
        self._name = name
        self._settings: dict[tuple[str, Hashable], TaskSettings] = {}
        #: By worker, and whether they release its slot.
        self._methods: dict[tuple[str, bool], dict[int, _Known]] = {}

    def start(self, lanes: Iterable[LaneCalls]) -> list[TaskRecord]:
        """Start calls; returns their records in the same order.

        Parameters
        ----------
        lanes : iterable of LaneCalls
            The calls.

        Raises
        ------
        ServiceLost, LifecycleError
            The cluster is gone, or the Batch was closed.
        """
        records: list[TaskRecord] = []
        told: list[Callable[[], None]] = []
        for lane in lanes:
            first = len(records)
            settings, methods = self._where(lane)
            for call in lane.calls:
                records.append(self._record(call, settings, methods, lane))
                told.append(call.told)
            if lane.before:
                # After them, however they end.
                records[first].waits = tuple((each, 0) for each in lane.before)
        self._dispatcher.submit(records, self._name)
        outcomes = self._dispatcher.outcomes
        with outcomes.changed:
            for record, tell in zip(records, told, strict=True):
                outcomes.when_over(record, tell)
        return records

    def _where(self, lane: LaneCalls) -> tuple[TaskSettings, dict[int, _Known]]:
        """Return the settings of a lane's calls, and the methods that its worker was sent."""
        where = lane.worker, lane.lane
        settings = self._settings.get(where)
        if settings is None:
            options = replace(
                DEFAULT_OPTIONS, workers=(lane.worker,), other_workers=True, apart=where
            )
            settings = self._settings[where] = TaskSettings(options)
        return settings, self._methods.setdefault((lane.worker, lane.releases_slot), {})

    def _record(
        self, call: EngineCall, settings: TaskSettings, methods: dict[int, _Known], lane: LaneCalls
    ) -> TaskRecord:
        method, args, kwargs = call.method, call.args, call.kwargs
        known = methods.get(id(method))
        if known is None:
            remote = RemoteMethod(method, lane.worker, lane.releases_slot)
            known = methods[id(method)] = method, remote
        if not kwargs and pickling.are_plain(args):
            described = Call(known[1], call.kind, pickling.dumps_plain((args, kwargs)))
        else:
            try:
                described = Call(known[1], call.kind, *pickling.pack((args, kwargs)))
            except SerializationError as error:
                described = Call(known[1], call.kind, b"", failure=error)
        return make_record(self._context, self.session, described, call.name, settings)

    def is_far(self, record: TaskRecord) -> bool:
        """Return whether the value of a call that is over has to be brought from its worker."""
        return record.phase == Phase.DONE and record.value is None and record.block is not None

    def is_large(self, record: TaskRecord) -> bool:
        """Return whether the value of a call that was brought here is large."""
        return record.value is not None and len(record.value) > _LARGE_BYTES

    def bring(self, record: TaskRecord, stopped: Callable[[], bool]) -> CallOutcome:
        """Bring a large value here, and return what the call has come to.

        Parameters
        ----------
        record : TaskRecord
            The call.
        stopped : callable
            Whether nobody wants the value any longer.
        """
        seconds = _FETCH_SECONDS
        try:
            while (self.is_far(record) or not record.over) and not stopped():
                with contextlib.suppress(TimeoutError):
                    if record.over:
                        self._dispatcher.fetch(record, seconds)
                    else:
                        # It was lost, and is to be made again: where, that is for the job to say.
                        self.cancel([record], begun=False)
                        self._dispatcher.outcomes.wait(lambda: record.over, seconds)
                seconds *= 2  # what was under way begins anew
        except WorkerLost as error:
            return CallOutcome(Ending.LOST, None, error)
        except LifecycleError as error:
            return CallOutcome(Ending.SERVICE_LOST, None, error)
        if stopped():
            return CallOutcome(Ending.CANCELLED)
        outcome = self.outcome(record)
        return outcome._replace(large=self.is_large(record))

    def outcome(self, record: TaskRecord) -> CallOutcome:
        """Return what a call that is over has come to; a large value must be here."""
        if record.phase == Phase.DONE and record.value is not None:
            try:
                return CallOutcome(
                    Ending.RETURNED, pickling.loads(record.value), None, record.seconds
                )
            except BaseException:
                pass  # loading it again below makes the error that says so
        deaths = self._dispatcher.table.deaths.get(record, 0)
        if record.phase == Phase.CANCELLED:
            # By its job; or with the Batch, or by a worker that leaves in good order.
            ending = Ending.SERVICE_LOST if self.session.ended else Ending.CANCELLED
            gone = errors.TaskCancelled("the Batch of the job has ended")
            return CallOutcome(ending, None, gone, deaths=deaths)
        value, error = BatchTask(self._context, record, self.session)._value_or_error()
        seconds = record.seconds
        if error is None:
            return CallOutcome(Ending.RETURNED, value, None, seconds)
        if self.was_cancelled(record):
            # Its value was lost, and it was taken back when it was about to be made again.
            return CallOutcome(Ending.CANCELLED, deaths=deaths)
        if isinstance(error, (Misplaced, WorkerLost)):
            deaths += isinstance(error, WorkerLost) and not deaths
            return CallOutcome(Ending.LOST, None, error, seconds, deaths)
        if isinstance(error, ServiceLost):
            return CallOutcome(Ending.SERVICE_LOST, None, error)
        return CallOutcome(Ending.RAISED, None, error, seconds)

    def cancel(self, records: Iterable[TaskRecord], begun: bool = True) -> None:
        """Cancel calls, and return when it is known which will not complete.

        Parameters
        ----------
        records : iterable of TaskRecord
            The calls.
        begun : bool
            Whether those that have begun are stopped.
        """
        left = [record for record in records if not record.over]
        if left:
            self._dispatcher.cancel(left, begun)

    def was_cancelled(self, record: TaskRecord) -> bool:
        """Return whether a call has not completed since it was cancelled."""
        return record.phase == Phase.CANCELLED

    def has_moved(self, record: TaskRecord, block: Any) -> bool:
        """Return whether a call is no longer in the block that it was in."""
        return record.block is not block
