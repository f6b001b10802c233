"""Says where and when a task ran and what it used, from what its workers have reported.

Pure; the caller holds the dispatcher's lock, under which records change.
"""

from __future__ import annotations

from typing import NamedTuple

from daskbatch.dispatch.task_record import Phase, TaskRecord


class ExecutionRecord(NamedTuple):
    """Where and when a task ran, and what it used; None for what is not known.

    Parameters
    ----------
    worker, host, pid, attempts, started, ended, seconds, cpu_seconds, max_memory
        See `daskbatch.batch.info.TaskInfo`.
    """

    worker: str | None = None
    host: str | None = None
    pid: int | None = None
    attempts: int = 0
    started: float | None = None
    ended: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    max_memory: int | None = None


def execution_of(record: TaskRecord, deaths: int) -> ExecutionRecord:
    """Return where and when a task ran, and what it used.

    Parameters
    ----------
    record : TaskRecord
        The task.
    deaths : int
        The number of workers that have died while they ran it: each was an attempt.
    """
    begin = record.begin
    if record.measured is not None:
        found = record.measured.of(record.member)
        if found.ended is not None:
            return ExecutionRecord(
                found.worker or None,
                host_of(found.worker),
                found.pid or None,
                found.attempts + deaths,
                found.ended - record.seconds,
                found.ended,
                record.seconds,
                found.cpu_seconds,
                found.max_memory,
            )
    ended = record.ended if record.phase >= Phase.DONE else None
    if begin is None:
        return ExecutionRecord(attempts=deaths, ended=ended)
    # A worker that has died was counted already, if this was the attempt that it died with.
    attempts = deaths if ended is not None and deaths else begin.attempt + deaths
    seconds = None if ended is None else max(0.0, ended - begin.started)
    return ExecutionRecord(
        begin.worker or None,
        host_of(begin.worker),
        begin.pid or None,
        attempts,
        begin.started,
        ended,
        seconds,
    )


def host_of(address: str) -> str | None:
    """Return the host in the address of a worker, as Dask's `worker.host`.

    Examples
    --------
    >>> host_of("tcp://10.0.0.7:4242"), host_of("tls://[::1]:4242"), host_of("inproc://10.0.0.7/1/2")
    ('10.0.0.7', '::1', '10.0.0.7')
    """
    rest = address.rpartition("://")[2]
    if "/" in rest:
        rest = rest.partition("/")[0]
    elif ":" in rest:
        rest = rest.rpartition(":")[0]
    return rest.strip("[]") or None
