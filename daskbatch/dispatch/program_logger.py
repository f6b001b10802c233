"""Writes what happens to programs, tasks and workers to the logger ``daskbatch``.

One line at INFO for each program that is started, and that is over; at WARNING for the loss of a
worker and for tasks that are tried again; at DEBUG for each task that is over. The dispatcher calls
it with its lock held.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from time import time
from typing import Any

from daskbatch.dispatch.task_record import Group, Phase, SubmittedBlock, TaskRecord
from daskbatch.worker.execution.block import OutcomeReport, OutputReport
from daskbatch.worker.execution.outcome import Status

_logger = logging.getLogger("daskbatch")

#: How many tasks a line names at most.
_MAX_NAMES = 5


class ProgramLogger:
    """Logs programs and tasks; an `Observer`. It has no state, so any thread may use it."""

    def program_started(self, group: Group) -> None:
        """Log that a program is being started."""
        _log(logging.INFO, "program %r started: %s", group.name, _count(group.size))

    def program_over(self, group: Group) -> None:
        """Log that a program is over."""
        bad = group.unsuccessful
        parts = [f"{group.size - bad.total()} done"]
        parts += [f"{count} {phase.name.lower()}" for phase, count in sorted(bad.items()) if count]
        seconds = time() - group.started_at
        _log(
            logging.INFO,
            "program %r is over after %.3g s: %s",
            group.name,
            seconds,
            ", ".join(parts),
        )

    def output_arrived(self, record: TaskRecord, report: OutputReport) -> None:
        """Ignore what a task has written."""

    def tasks_changed(self, records: Sequence[TaskRecord], phases: Sequence[Phase]) -> None:
        """Log the tasks that have begun or are over."""
        if not _logger.isEnabledFor(logging.DEBUG):
            return
        for record, phase in zip(records, phases, strict=True):
            if phase >= Phase.RUNNING and record.call is not None:
                ran = f" after {record.seconds:.3g} s" if record.seconds else ""
                state = phase.name.lower()
                _log(logging.DEBUG, "task %s (%s) %s%s", record.label, record.uid, state, ran)


#: The logger of all clients of this process.
PROGRAM_LOGGER = ProgramLogger()


def log_loss(details: Mapping[str, Any], blocks: int) -> None:
    """Log that a worker was lost, which may have begun some blocks of tasks."""
    code = details.get("exitcode")
    how = "" if code is None else f" with exit code {code}"
    if details.get("out_of_memory"):
        how += ", since it used too much memory"
    worker = details.get("worker") or "a worker"
    _log(logging.WARNING, "worker %s was lost%s, with %d blocks of tasks", worker, how, blocks)


def log_reruns(records: Sequence[TaskRecord]) -> None:
    """Log that tasks run again, since their worker was lost."""
    begun = [record for record in records if record.call is not None]
    if begun:
        count = _count(len(begun))
        _log(logging.WARNING, "%s to run again after the loss: %s", count, _names(begun))


def log_retries(block: SubmittedBlock, report: OutcomeReport) -> None:
    """Log the tasks of a report that were tried more than once."""
    assert report.measures is not None
    for index, details in report.measures.details.items():
        if details.attempts > 1:
            record = block.records[report.start + index]
            state = Status(report.statuses[index]).name.lower()
            label = record.label
            _log(logging.WARNING, "task %s was tried %d times: %s", label, details.attempts, state)


def _log(level: int, text: str, *values: object) -> None:
    """Log a line, if the program has set up any handler.

    Without one, Python writes warnings to stderr, where scripts expect nothing.
    """
    if _logger.isEnabledFor(level) and _logger.hasHandlers():
        _logger.log(level, text, *values)


def _count(number: int) -> str:
    return "1 task" if number == 1 else f"{number} tasks"


def _names(records: Sequence[TaskRecord]) -> str:
    names = ", ".join(record.label for record in records[:_MAX_NAMES])
    return names if len(records) <= _MAX_NAMES else f"{names}, ..."
