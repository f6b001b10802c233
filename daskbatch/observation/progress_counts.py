"""Counts how far the tasks of a program are, and estimates how long they will still take.

Pure functions; any thread may call them, also while the tasks change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import time
from typing import NamedTuple

from daskbatch.dispatch.task_record import Phase, TaskRecord

#: How much of a name is shown.
_MAX_NAME_CHARACTERS = 40


class ProgressCounts(NamedTuple):
    """How far the tasks are.

    Parameters
    ----------
    total, over, running, failed, skipped, cancelled : int
        The number of all tasks, of those that are over however they ended, that run, that have
        failed, that did not run because of others, and that were cancelled.
    """

    total: int
    over: int
    running: int
    failed: int
    skipped: int
    cancelled: int


def count_progress(records: Sequence[TaskRecord]) -> ProgressCounts:
    """Count tasks by their phases, which may change meanwhile."""
    counts = [0] * len(Phase)
    for record in records:
        counts[record.phase] += 1
    return ProgressCounts(
        len(records),
        sum(counts[Phase.DONE :]),
        counts[Phase.RUNNING],
        counts[Phase.FAILED],
        counts[Phase.SKIPPED],
        counts[Phase.CANCELLED],
    )


def estimate_seconds(
    records: Sequence[TaskRecord], slots: int, expect: Callable[[TaskRecord], float | None]
) -> float | None:
    """Estimate how long tasks will still take; None if nothing is known of any of them.

    It is the time that the slots need for all of them, or that the longest one needs. A task of
    a kind that has not run yet counts as the mean of the others.

    Parameters
    ----------
    records : sequence of TaskRecord
        The tasks.
    slots : int
        How many tasks run at once.
    expect : callable
        Returns how long a task is expected to run; None if that is not known.
    """
    now, work, longest = time(), 0.0, 0.0
    known = unknown = 0
    for record in records:
        if record.phase >= Phase.DONE:
            continue
        seconds = expect(record)
        if seconds is None:
            unknown += 1
            continue
        known += 1
        if record.begin is not None and record.phase == Phase.RUNNING:
            seconds = max(0.0, seconds - (now - record.begin.started))
        longest = max(longest, seconds)
        work += seconds * (1 if record.options.gang is None else record.options.gang.slots)
    if not known:
        return None if unknown else 0.0
    work += unknown * work / known
    return max(longest, work / max(1, slots))


def describe_progress(counts: ProgressCounts, seconds: float, remaining: float | None) -> str:
    """Return progress in words.

    Parameters
    ----------
    counts : ProgressCounts
        How far the tasks are.
    seconds : float
        How long this has taken so far.
    remaining : float, optional
        How long it is expected to take still.

    Examples
    --------
    >>> describe_progress(ProgressCounts(60, 12, 4, 1, 2, 0), 75.2, 130.0)
    '12 of 60 over, 4 running, 1 failed, 2 skipped, 1:15 elapsed, about 2:10 left'
    """
    parts = [f"{counts.over} of {counts.total} over", *describe_counts(counts)]
    parts.append(f"{describe_time(seconds)} elapsed")
    if remaining is not None and counts.over < counts.total:
        parts.append(f"about {describe_time(remaining)} left")
    return ", ".join(parts)


def shown_name(name: str) -> str:
    """Return a name as it can stand in a line: short, and without control characters.

    Examples
    --------
    >>> shown_name("two\\nlines")
    'two?lines'
    """
    return "".join(each if each.isprintable() else "?" for each in name)[:_MAX_NAME_CHARACTERS]


def describe_counts(counts: ProgressCounts) -> list[str]:
    """Return the numbers of the tasks that run, and that are over without success, in words."""
    parts = [f"{counts.running} running", f"{counts.failed} failed", f"{counts.skipped} skipped"]
    if counts.cancelled:
        parts.append(f"{counts.cancelled} cancelled")
    return parts


def describe_time(seconds: float) -> str:
    """Return a time in minutes and seconds.

    Examples
    --------
    >>> describe_time(7.4), describe_time(3725)
    ('0:07', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
