"""Decides what may be run a second time when a worker has died, by what tasks read and write.

Does not know how it was found out, nor does it change anything.
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

#: Under so many deaths of workers a task is given up.
MOST_DEATHS = 3


class Writers:
    """Which task has been the last to be started that writes a channel."""

    def __init__(self) -> None:
        self._last: dict[Channel, int] = {}

    def add(self, records: Iterable[TaskRecord]) -> None:
        """Take in tasks that are being started."""
        for record in records:
            for channel in record.writes:
                self._last[channel] = record.rank

    def since(self, record: TaskRecord) -> bool:
        """Say whether what a task has read may have been written since."""
        if not record.reads:
            return False
        later = [channel for channel, rank in self._last.items() if rank > record.rank]
        return any(shared_channels(record.reads, later))


def is_gone(record: TaskRecord) -> bool:
    """Say whether the value of a finished task was lost with a worker."""
    return record.value is None and (record.block is None or record.block.lost)


def rerun_closure(record: TaskRecord, writers: Writers) -> list[TaskRecord] | None:
    """Find what has to run again to have the lost value of a task again.

    Parameters
    ----------
    record : TaskRecord
        It has finished.
    writers : Writers
        Who has written what.

    Returns
    -------
    list of TaskRecord, or None
        The tasks, each behind those that it takes results from; None if one of them may not
        run again, since that could be seen.
    """
    found: dict[TaskRecord, None] = {}
    stack = [record]
    while stack:
        each = stack.pop()
        if each.writes or writers.since(each):
            return None
        found[each] = None
        for producer in each.producers:
            if producer.over and is_gone(producer):
                if producer.unsuccessful:
                    return None
                if producer not in found:
                    stack.append(producer)
    return sorted(found, key=lambda each: each.rank)


def rerun_refusal(record: TaskRecord, deaths: int, beside: Iterable[TaskRecord]) -> str | None:
    """Say why a task that may have begun when its worker died must not run again.

    Parameters
    ----------
    record : TaskRecord
        The task.
    deaths : int
        How many workers have died under it.
    beside : iterable of TaskRecord
        Tasks of which nobody knows whether they have run since.

    Returns
    -------
    str or None
        None if it may run again.
    """
    if not may_run_again(record):
        return "it writes what it reads, so that a second run could do something else"
    if any(any(shared_channels(record.reads, other.writes)) for other in beside):
        return "what it reads may have been written since"
    if deaths >= MOST_DEATHS:
        return f"{deaths} workers have died under it"
    return None


def value_lost(record: TaskRecord) -> WorkerLost:
    """Make the exception that tells that what a finished task has returned is lost for good."""
    return WorkerLost(
        f"what task {record.label} returned was lost with its worker, and the task does not run "
        "again: it writes something, or what it read may have been written since, or what it "
        "took was lost as well"
    )


def lost_with_worker(
    record: TaskRecord, reason: str, attempt: int, why: Mapping[str, Any]
) -> WorkerLost:
    """Make the exception that tells what was lost, and what is known of it."""
    said = f" {_describe(**why)}" if why else ""
    return WorkerLost(
        f"task {record.label} was lost with its worker{said}, and does not run again: {reason}",
        attempt=attempt,
        **why,
    )


def _describe(
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
