"""Copies descriptions of tasks, so that they can be started once more.

Any thread may call all functions; they change nothing of the originals.
"""

from __future__ import annotations

from collections.abc import Sequence

from daskbatch.batch.context import BatchContext
from daskbatch.dispatch.task_record import TaskRecord


def copy_record(context: BatchContext, record: TaskRecord) -> TaskRecord:
    """Return a record of the same description, which is not started.

    Parameters
    ----------
    context : BatchContext
        That of the task.
    record : TaskRecord
        The record of the task, in any phase.

    Raises
    ------
    SubmitAfterCloseError
        The Batch has been closed.
    """
    context.require_open()
    copy = TaskRecord(
        record.client_id,
        next(context.session.numbers),
        record.base_name,
        record.call,
        record.options,
        record.reads,
        record.writes,
    )
    copy.removes = record.removes
    return copy


def copy_records(context: BatchContext, records: Sequence[TaskRecord]) -> list[TaskRecord]:
    """Return copies of the tasks of a program, which take the results of each other.

    Parameters
    ----------
    context : BatchContext
        That of the tasks.
    records : sequence of TaskRecord
        The tasks.

    Raises
    ------
    SubmitAfterCloseError
        See `copy_record`.
    """
    copies = [copy_record(context, record) for record in records]
    copy_of = dict(zip(records, copies, strict=True))
    for copy in copies:
        if copy.call is not None and copy.call.references:
            references = tuple(
                (copy_of.get(producer, producer), part) for producer, part in copy.call.references
            )
            copy.call = copy.call._replace(references=references)
    return copies
