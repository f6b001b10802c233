"""What is known of a task, as a record that does not change.

Any thread may make and read the records.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from daskbatch.batch.result import error_line
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.execution_record import execution_of
from daskbatch.dispatch.failure_log import TaskWarning
from daskbatch.dispatch.task_record import Phase, TaskRecord

#: The states of a task that is over.
_END_STATES = ("done", "failed", "skipped", "cancelled")

#: What a warning says, by its kind.
_SAID = {
    "input": "it declared to read {}, which was not there when it began",
    "output": "it declared to write {}, which was not there when it had succeeded",
}


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What is known of a task so far. It never changes; any number of threads may read it.

    Parameters
    ----------
    name, uid, state : str
        See `Task`.
    worker, host : str, optional
        The address and the host of the worker on which it ran last.
    pid : int, optional
        The process in which it ran last: the worker, a child of it, the executable, the launcher
        of a job of an executable, or rank 0 of a job of a callable.
    attempts : int
        How often it has begun, with the present attempt; 0 for a task that has not begun.
    created : float
        When the program made it, in seconds since the epoch.
    started, ended : float, optional
        When its last attempts on its last worker began, and when it ended; by the clock of the
        worker's host, in seconds since the epoch. Of a task that did not run, `ended` is when this
        client learnt that it is over.
    seconds : float, optional
        How long it ran: from `started` to `ended`.
    cpu_seconds : float, optional
        The processor time that it took. For functions in threads that of the task's own thread,
        else with all processes that it has started and waited for.
    max_memory : int, optional
        The peak of its resident memory in bytes, with the processes that it has started; of a job
        the sum of the ranks' peaks. None for functions in threads, which share the memory of
        their worker. Of a compiled task: the largest of its members.
    reads, writes : tuple of str
        What it declares to read and to write.
    error : str, optional
        The type and the first line of its exception, if it has failed.
    warnings : tuple of str
        What its worker has noticed: declared files that were not there.

    Notes
    -----
    What is not known is None. Of a compiled task: its state, the first start, the last end once
    all members are over, and sums.

    Examples
    --------
    >>> task = batch.function(len, "four")
    >>> task.run()
    >>> info = task.info
    >>> isinstance(info, TaskInfo), info.state, info.attempts
    (True, 'done', 1)
    >>> info.created <= info.started <= info.ended
    True
    """

    name: str
    uid: str
    state: str
    worker: str | None = None
    host: str | None = None
    pid: int | None = None
    attempts: int = 0
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    max_memory: int | None = None
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    error: str | None = None
    warnings: tuple[str, ...] = ()


def task_info(record: TaskRecord, dispatcher: Dispatcher) -> TaskInfo:
    """Return what is known of a task; the program has then looked at its failure.

    Parameters
    ----------
    record, dispatcher : TaskRecord, Dispatcher
        The task, and the dispatcher of the client that made it.
    """
    failures = dispatcher.table.failures
    failures.look_at(record)
    # A report may change the record at this very moment: the fields must be of one state.
    with dispatcher.outcomes.changed:
        phase, ran = record.phase, execution_of(record, dispatcher.table.deaths[record])
    failed = phase == Phase.FAILED
    return TaskInfo(
        name=record.name,
        uid=record.uid,
        state=phase.name.lower(),
        created=record.created,
        **ran._asdict(),
        reads=tuple(map(str, record.reads)),
        writes=tuple(map(str, record.writes)),
        error=error_line(record, dispatcher) if failed else None,
        warnings=tuple(map(describe_warning, failures.warnings_of(record))),
    )


def program_info(
    name: str, uid: str, state: str, created: float, members: Sequence[TaskInfo]
) -> TaskInfo:
    """Return what is known of a compiled task.

    Parameters
    ----------
    name, uid, state, created : str, float
        Those of the compiled task.
    members : sequence of TaskInfo
        What is known of its members.
    """
    started = [each.started for each in members if each.started is not None]
    ended = [each.ended for each in members if each.ended is not None]
    return TaskInfo(
        name=name,
        uid=uid,
        state=state,
        attempts=sum(each.attempts or 0 for each in members),
        created=created,
        started=min(started, default=None),
        ended=max(ended, default=created) if state in _END_STATES else None,
        seconds=_sum(each.seconds for each in members),
        cpu_seconds=_sum(each.cpu_seconds for each in members),
        max_memory=max((each.max_memory or 0 for each in members), default=0) or None,
        reads=tuple(dict.fromkeys(path for each in members for path in each.reads)),
        writes=tuple(dict.fromkeys(path for each in members for path in each.writes)),
        error=next((each.error for each in members if each.error is not None), None),
        warnings=tuple(f"{each.name}: {text}" for each in members for text in each.warnings),
    )


def _sum(values: Iterable[float | None]) -> float | None:
    """Return the sum of the values that are known; None if none is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def describe_warning(warning: TaskWarning) -> str:
    """Return a warning of a worker about declared files in words."""
    return _SAID[warning.kind].format(", ".join(warning.paths))
