"""Checks that a task belongs to a client, and that the tasks it takes results from are started.

Each function raises an exception that names the task and says what to do, or returns None.
"""

from __future__ import annotations

from daskbatch.dispatch.task_record import Phase, TaskRecord
from daskbatch.errors import GraphError, LifecycleError
from daskbatch.worker.execution.client_names import batch_of_client

# Looking up a member of an enum takes long.
_CREATED, _WAITING = Phase.CREATED, Phase.WAITING


def takes_of_others(record: TaskRecord, client_id: str) -> bool:
    """Return whether a task takes results of tasks that must be checked.

    Those of another client, and those that have neither been started nor start with it.
    """
    if record.call is not None:
        group = record.group
        for producer, _ in record.call.references:
            if producer.client_id != client_id or (
                producer.phase < _WAITING
                and (producer.phase != _CREATED or group is None or producer.group is not group)
            ):
                return True
    return False


def require_own(client_id: str, record: TaskRecord) -> None:
    """Check that a task, and the tasks that it takes results from, belong to a client.

    Parameters
    ----------
    client_id : str
        The id of the client; see `TaskRecord.client_id`.
    record : TaskRecord
        The task.

    Raises
    ------
    GraphError
        One of them belongs to another client or to another Batch.
    """
    for each in (record, *record.producers):
        if each.client_id != client_id:
            which = "" if each is record else f"takes the result of {each.label}, which "
            other = "another Batch"
            if batch_of_client(each.client_id) == batch_of_client(client_id):
                other = "another client of this Batch"
            raise GraphError(
                f"task {record.label} {which}belongs to {other}: give its value in place of "
                "the task"
            )


def require_producers(record: TaskRecord) -> None:
    """Check that the tasks that a task takes results from are started, or start with it.

    Parameters
    ----------
    record : TaskRecord
        The task.

    Raises
    ------
    LifecycleError
        One of them has not been started.
    """
    for producer in record.producers:
        if (
            producer.phase == Phase.CREATED
            and (producer.group is None or producer.group is not record.group)
            # The fetch of a Dask future's result starts with the first task that takes it.
            and producer.options.future is None
        ):
            which = producer.label
            if producer.group is not None:
                which = f"the compiled task {producer.group.name!r}"
            raise LifecycleError(
                f"task {record.label} takes the result of {producer.label}, which has not been "
                f"started: start {which} first, or compile them together"
            )
