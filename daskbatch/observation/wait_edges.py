"""Names the reasons of the edges between tasks, and the barriers between them, for events.

The caller holds the dispatcher's lock.
"""

from __future__ import annotations

import itertools
import weakref

from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.plan.graph import reason_names
from daskbatch.plan.hazards import ARG, RAR, RAW, WAR, WAW
from daskbatch.plan.program import shared_channels

#: For each reason but an argument: whether the task that waits reads, and whether the other does.
_READS = {RAW: (True, False), WAR: (False, True), WAW: (False, False), RAR: (True, True)}

#: How many paths of an edge are named at most.
_MAX_PATHS = 3


class Barriers:
    """The uids of the barriers of one client, which have no numbers. Not thread-safe.

    Parameters
    ----------
    client_id : str
        The client.
    """

    def __init__(self, client_id: str) -> None:
        self._client_id = client_id
        self._numbers = itertools.count()
        self._uids: weakref.WeakKeyDictionary[TaskRecord, str] = weakref.WeakKeyDictionary()

    def uid_of(self, record: TaskRecord) -> str:
        """Return the uid of a barrier or a task."""
        if record.call is not None:
            return record.uid
        uid = self._uids.get(record)
        if uid is None:
            uid = self._uids[record] = f"{self._client_id}-b{next(self._numbers)}"
        return uid

    def edges_of(self, record: TaskRecord) -> list[list[str]]:
        """Return what a task or a barrier waits for: lists of uid, reason, and path."""
        return [
            [self.uid_of(before), hazard, path]
            for before, reasons in record.waits
            for hazard, path in named_reasons(before, record, reasons)
        ]


def named_reasons(before: TaskRecord, after: TaskRecord, reasons: int) -> list[tuple[str, str]]:
    """Return the reasons for which a task waits for another one, each with the path.

    Parameters
    ----------
    before, after : TaskRecord
        The two tasks.
    reasons : int
        The reasons as bits.
    """
    found = [("argument", "")] if reasons & ARG else []
    for reason, (reads_after, reads_before) in _READS.items():
        if reasons & reason:
            of_after = after.reads if reads_after else after.writes
            of_before = before.reads if reads_before else before.writes
            shared = itertools.islice(shared_channels(of_after, of_before), _MAX_PATHS)
            paths = dict.fromkeys(str(channel) for channel, _ in shared)
            found.append((reason_names(reason)[0], ", ".join(paths)))
    return found
