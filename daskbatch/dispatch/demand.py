"""Counts the tasks that could run at the moment, and how long they take.

The caller holds the dispatcher's lock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import islice
from typing import NamedTuple

from daskbatch.dispatch.task_record import TaskRecord

#: Of how many unfinished tasks it is looked at each: of more, as many in proportion could run.
_MAX_COUNTED_TASKS = 5_000


class TaskDemand(NamedTuple):
    """The tasks that run or could run.

    Parameters
    ----------
    tasks : int
        Their number.
    seconds : float
        How long they take, one after another.
    """

    tasks: int
    seconds: float


def measure_demand(
    records: Iterable[TaskRecord],
    unfinished: int,
    seconds_of: Callable[[TaskRecord], float | None],
    unknown: float,
) -> TaskDemand:
    """Return what unfinished tasks could use.

    Parameters
    ----------
    records : iterable of TaskRecord
        The unfinished tasks.
    unfinished : int
        How many there are.
    seconds_of : callable
        Returns how long a task is expected to take, or None.
    unknown : float
        What counts for None. Seconds.
    """
    counted = able = slots = 0
    seconds = 0.0
    for record in islice(records, _MAX_COUNTED_TASKS):
        counted += 1
        if record.call is None or any(not before.over for before, _ in record.waits):
            continue
        if record.options.future is not None:
            continue  # it takes a moment, once a Dask future is done
        able += 1
        gang = record.options.gang
        taken = 1 if gang is None else gang.ranks * gang.cores
        slots += taken
        expected = seconds_of(record)
        seconds += taken * (unknown if expected is None else expected)
    if not able:
        return TaskDemand(0, 0.0)
    factor = max(1.0, unfinished / counted)
    return TaskDemand(round(slots * factor), seconds * factor)
