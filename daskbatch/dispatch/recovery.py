"""Decides which tasks may run again after a worker has died, by what tasks read and write.

These functions decide only: they change no record. The caller holds the dispatcher's lock.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterable, Mapping
from typing import Any

from dask.utils import format_bytes

from daskbatch.describe.access import Channel
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.errors import WorkerLost
from daskbatch.plan.program import may_run_again, shared_channels

#: After this many deaths of workers that were running it, a task does not run again.
MAX_WORKER_DEATHS = 3


class LastWriters:
    """For each channel, the rank of the last started task that writes it. Not thread-safe."""

    def __init__(self) -> None:
        self._last: dict[Channel, int] = {}

    def add(self, records: Iterable[TaskRecord]) -> None:
        """Record what tasks that are being started write."""
        for record in records:
            for channel in record.writes:
                self._last[channel] = record.rank

    def may_have_changed(self, record: TaskRecord) -> bool:
        """Return whether later tasks may have written what a task has read."""
        if not record.reads:
            return False
        written_later = [channel for channel, rank in self._last.items() if rank > record.rank]
        return any(shared_channels(record.reads, written_later))


def is_value_lost(record: TaskRecord) -> bool:
    """Return whether the value of a finished task was lost with a worker."""
    return record.value is None and (record.block is None or record.block.lost)


def rerun_closure(record: TaskRecord, writers: LastWriters) -> list[TaskRecord] | None:
    """Return the tasks that have to run again to restore the lost value of a task.

    Parameters
    ----------
    record : TaskRecord
        A finished task.
    writers : LastWriters
        The last started writers of all channels.

    Returns
    -------
    list of TaskRecord, or None
        The tasks, each after those that it takes results from; None if one of them must not
        run again, because a second run could have other effects or another result.
    """
    found: dict[TaskRecord, None] = {}
    stack = [record]
    while stack:
        each = stack.pop()
        if each.writes or writers.may_have_changed(each):
            return None
        found[each] = None
        for producer in each.producers:
            if producer.over and is_value_lost(producer):
                if producer.unsuccessful:
                    return None
                if producer not in found:
                    stack.append(producer)
    return sorted(found, key=lambda each: each.rank)


def rerun_refusal(record: TaskRecord, deaths: int, beside: Iterable[TaskRecord]) -> str | None:
    """Return why a task that may have begun when its worker died must not run again.

    Parameters
    ----------
    record : TaskRecord
        The task.
    deaths : int
        The number of workers that have died while they ran the task.
    beside : iterable of TaskRecord
        Tasks of the same block that may have run since.

    Returns
    -------
    str or None
        None if it may run again.
    """
    if not (record.options.restartable or may_run_again(record)):
        return "it writes what it reads, so that a second run could do something else"
    if any(any(shared_channels(record.reads, other.writes)) for other in beside):
        return "what it reads may have been written since"
    if deaths >= MAX_WORKER_DEATHS:
        return f"{deaths} workers have died under it"
    return None


def value_lost(record: TaskRecord) -> WorkerLost:
    """Return the exception for a finished task whose value is lost for good."""
    return WorkerLost(
        f"what task {record.label} returned was lost with its worker, and the task does not run "
        "again: it writes something, or what it read may have been written since, or the results "
        "among its arguments were lost as well"
    )


def lost_with_worker(
    record: TaskRecord,
    reason: str,
    attempt: int,
    details: Mapping[str, Any],
    planned: bool = False,
) -> WorkerLost:
    """Return the exception for a task that was lost with its worker.

    Parameters
    ----------
    record : TaskRecord
        The task.
    reason : str
        Why the task does not run again.
    attempt : int
        Which attempt this was, counting from 1.
    details : mapping
        What is known of the worker's death: keyword arguments of `WorkerLost`; may be empty.
    planned : bool
        Whether the worker has left in good order, and the task did not end in time.
    """
    if planned:
        worker = details.get("worker", "its worker")
        return WorkerLost(
            f"task {record.label} was stopped when its worker {worker} left the cluster (it had "
            f"daskbatch.leave-timeout to end), and does not run again: {reason}",
            attempt=attempt,
            **details,
        )
    worker = f" {_describe_worker(**details)}" if details else ""
    return WorkerLost(
        f"task {record.label} was lost with its worker{worker}, and does not run again: {reason}",
        attempt=attempt,
        **details,
    )


def _describe_worker(
    worker: str,
    exitcode: int | None,
    memory: int | None,
    memory_limit: int | None,
    out_of_memory: bool,
) -> str:
    parts = []
    if exitcode is not None and exitcode < 0:
        with contextlib.suppress(ValueError):
            parts.append(f"ended by {signal.Signals(-exitcode).name}")
    elif exitcode is not None:
        parts.append(f"exit code {exitcode}")
    if out_of_memory:
        parts.append("out of memory")
    if memory is not None:
        limit = "" if memory_limit is None else f" of its limit of {format_bytes(memory_limit)}"
        parts.append(f"memory last seen: {format_bytes(memory)}{limit}")
    return f"{worker} ({', '.join(parts)})" if parts else worker
