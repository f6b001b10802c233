"""Extracts what a worker must know of the declared accesses of a task.

Pure functions; the dispatcher calls them with its lock held, and the Batch before a start.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from daskbatch.describe.access import FILES, WHOLE, Channel
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import DeclaredFiles


def declared_files(record: TaskRecord, rules: int) -> DeclaredFiles | None:
    """Return what a task declares; None if it declares no file and is not strict.

    Parameters
    ----------
    record : TaskRecord
        The task.
    rules : int
        The position of its rules in the block, or -1; see `DeclaredFiles`.
    """
    reads, writes = _paths(record.reads), _paths(record.writes)
    if rules < 0:
        if not reads and not writes:
            return None
        return DeclaredFiles(reads, writes, _paths(record.removes))
    keys = (*_keys("read", record.reads), *_keys("write", record.writes))
    return DeclaredFiles(reads, writes, _paths(record.removes), keys, rules)


def set_rules(records: Iterable[TaskRecord], directory: str) -> None:
    """Give the tasks of a program of a strict Batch their rules; see `strict_access.Rules`.

    Parameters
    ----------
    records : iterable of TaskRecord
        The tasks.
    directory : str
        The directory of the Batch.
    """
    records = [record for record in records if record.call is not None]
    below = directory.rstrip(os.sep) + os.sep
    declared = {path for record in records for path in _paths(record.reads + record.writes)}
    elsewhere = frozenset(path for path in declared if not path.startswith(below))
    objects = frozenset(
        str(channel.object.name)
        for record in records
        for channel in record.reads + record.writes
        if channel.object.name is not FILES.name
    )
    rules = pickling.dumps_plain((directory, elsewhere, objects))
    for record in records:
        record.strict = rules


def _paths(channels: Sequence[Channel]) -> tuple[str, ...]:
    return tuple([str(each.key) for each in channels if each.object.name is FILES.name])


def _keys(mode: str, channels: Sequence[Channel]) -> list[tuple[str, str, bytes]]:
    """Return the declared keys of dictionaries, and queues, by object."""
    by_object: dict[str, list[object]] = {}
    for channel in channels:
        if channel.object.name is not FILES.name:
            by_object.setdefault(str(channel.object.name), []).append(channel.key)
    return [
        (mode, name, b"" if any(key is WHOLE for key in keys) else pickling.dumps(tuple(keys)))
        for name, keys in by_object.items()
    ]
