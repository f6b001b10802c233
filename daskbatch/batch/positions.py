"""Numbers the tasks of a program that have the same name.

Called while the program is compiled, before any of its tasks is started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from daskbatch.dispatch.task_record import TaskRecord


@contextmanager
def numbered(records: Sequence[TaskRecord]) -> Iterator[None]:
    """Give tasks of the same name their positions, unless the body of the ``with`` raises.

    Parameters
    ----------
    records : sequence of TaskRecord
        The tasks of the program.
    """
    # A list with a task twice is refused in a moment, by the name that the user knows.
    shared = (
        {name for name, count in Counter(r.base_name for r in records).items() if count > 1}
        if len({*map(id, records)}) == len(records)
        else set()
    )
    positions: dict[str, int] = dict.fromkeys(shared, 0)
    if shared:
        for record in records:
            name = record.base_name
            if name in positions:
                record.position = positions[name]
                positions[name] += 1
    try:
        yield
    except BaseException:
        for record in records:
            record.position = -1
        raise
