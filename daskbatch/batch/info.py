"""What is known of a task, as a record that does not change.

Any thread may make and read the records.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from daskbatch.batch.result import error_line
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.failure_log import TaskWarning
from daskbatch.dispatch.task_record import Phase, TaskRecord

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
        Where it ran last.
    pid : int, optional
        The process in which it ran last.
    attempts : int, optional
        The number of attempts.
    created, started, ended : float, optional
        When it was made, began and ended, in seconds since the epoch.
    seconds : float, optional
        How long it ran.
    cpu_seconds : float, optional
        The CPU time that it took, with all processes that it has started.
    max_memory : int, optional
        The peak of its resident memory, in bytes.
    reads, writes : tuple of str
        What it declares to read and to write.
    error : str, optional
        The type and the first line of its exception, if it has failed.
    warnings : tuple of str
        What its worker has noticed: declared files that were not there.

    Notes
    -----
    What is not known is None.

    Examples
    --------
    >>> task = batch.function(len, "four")
    >>> task.run()
    >>> isinstance(task.info, TaskInfo), task.info.state
    (True, 'done')
    """

    name: str
    uid: str
    state: str
    worker: str | None = None
    host: str | None = None
    pid: int | None = None
    attempts: int | None = None
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
    failed = record.phase == Phase.FAILED
    ran = failed or record.phase == Phase.DONE
    return TaskInfo(
        name=record.name,
        uid=record.uid,
        state=record.phase.name.lower(),
        seconds=record.seconds if ran and record.seconds > 0 else None,
        reads=tuple(map(str, record.reads)),
        writes=tuple(map(str, record.writes)),
        error=error_line(record, dispatcher) if failed else None,
        warnings=tuple(map(_text, failures.warnings_of(record))),
    )


def program_info(name: str, uid: str, state: str, members: Sequence[TaskInfo]) -> TaskInfo:
    """Return what is known of a compiled task.

    Parameters
    ----------
    name, uid, state : str
        Those of the compiled task.
    members : sequence of TaskInfo
        What is known of its members.
    """
    seconds = [each.seconds for each in members if each.seconds is not None]
    return TaskInfo(
        name=name,
        uid=uid,
        state=state,
        seconds=sum(seconds) if seconds else None,
        reads=tuple(dict.fromkeys(path for each in members for path in each.reads)),
        writes=tuple(dict.fromkeys(path for each in members for path in each.writes)),
        error=next((each.error for each in members if each.error is not None), None),
        warnings=tuple(f"{each.name}: {text}" for each in members for text in each.warnings),
    )


def _text(warning: TaskWarning) -> str:
    return _SAID[warning.kind].format(", ".join(warning.paths))
