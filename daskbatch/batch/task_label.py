"""Names a task in messages so that the user finds it among many of the same function.

The functions read a record only; any thread may call them.
"""

from __future__ import annotations

from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.serialization.first_argument import first_packed_argument


def long_label(record: TaskRecord) -> str:
    """Return a task's name and what it works on, as in ``'clean[7]' ('data/7.csv')``.

    Parameters
    ----------
    record : TaskRecord
        The task.
    """
    argument = first_packed_argument(record.call.data) if record.call is not None else ""
    return f"{record.label} ({argument})" if argument else record.label
