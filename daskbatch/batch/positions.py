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
    names = [record.base_name for record in records]
    counts = Counter(names)
    # A list with a task twice is refused in a moment, by the name that the user knows.
    if len(counts) < len(names) == len(set(records)):
        _number(records, counts)
    try:
        yield
    except BaseException:
        for record in records:
            record.position = -1
        raise


def _number(records: Sequence[TaskRecord], counts: Counter[str]) -> None:
    if len(counts) == 1:  # the most frequent case, done quickly
        for position, record in enumerate(records):
            record.position = position
        return
    positions = {name: 0 for name, count in counts.items() if count > 1}
    for record in records:
        name = record.base_name
        if name in positions:
            record.position = positions[name]
            positions[name] += 1
