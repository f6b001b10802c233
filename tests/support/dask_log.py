"""Leaves out of a program's stderr what Dask may log while the program closes its own cluster."""

from __future__ import annotations

import re

#: Where a record of Dask's log begins.
_RECORD = re.compile(r"^(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - )", re.MULTILINE)

_LAST_HEARTBEAT = (
    "distributed.worker - ERROR - Failed to communicate with scheduler during heartbeat."
)


def without_last_heartbeats(stderr: str) -> str:
    """Leave out that a worker has lost its scheduler in the middle of a heartbeat.

    A `LocalCluster` that closes may end its scheduler first. No program can prevent that, and the
    worker logs it with a traceback.
    """
    return "".join(each for each in _RECORD.split(stderr) if _LAST_HEARTBEAT not in each)
