"""Leaves out of a program's stderr what Dask may say of the program's own `LocalCluster`."""

from __future__ import annotations

import re

#: Where a record of Dask's log begins.
_RECORD = re.compile(r"^(?=\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} - )", re.MULTILINE)

#: A cluster that closes may end its scheduler in the middle of a worker's heartbeat. No program can
#: prevent that, and the worker logs it with a traceback.
_LAST_HEARTBEAT = (
    "distributed.worker - ERROR - Failed to communicate with scheduler during heartbeat."
)

#: A worker of the program's own cluster takes long to end while the machine has much else to do.
_SLOW_END = re.compile(
    r"distributed\.nanny - WARNING - Worker process still alive after [\d.]+ seconds, killing"
)

#: Another cluster of this machine has the port of the dashboard.
_PORT_IS_TAKEN = re.compile(
    r"^.*UserWarning: Port \d+ is already in use\.\n.*\n.*\n *warnings\.warn\(\n", re.MULTILINE
)


def without_what_dask_says(stderr: str) -> str:
    """Leave out what it says while a cluster ends, and that another one has the port."""
    records = _RECORD.split(_PORT_IS_TAKEN.sub("", stderr))
    return "".join(
        each for each in records if _LAST_HEARTBEAT not in each and not _SLOW_END.search(each)
    )
