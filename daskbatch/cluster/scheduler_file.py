"""Reads the address of a scheduler from the file that `dask scheduler --scheduler-file` writes.

Any thread may call it.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from time import sleep

from daskbatch.errors import ServiceLost, SpecError
from daskbatch.timeouts import Deadline

#: How often to look whether the file is there.
_POLL_INTERVAL_SECONDS = 0.1


def is_file_name(cluster: str | os.PathLike[str]) -> bool:
    """Return whether `cluster=` names a scheduler file, and is not an address.

    Examples
    --------
    >>> [is_file_name(each) for each in ("tcp://h:8786", "h:8786", "s.json", "/home/me/scheduler")]
    [False, False, True, True]
    """
    if not isinstance(cluster, str):
        return True
    return "://" not in cluster and (os.sep in cluster or cluster.endswith(".json"))


def read_scheduler_file(name: str | os.PathLike[str], seconds: float) -> str:
    """Return the address of the scheduler that has written a file.

    Parameters
    ----------
    name : str or path
        The file. A leading `~` is the user's directory.
    seconds : float
        How long to wait for the file: the scheduler may be just starting.

    Raises
    ------
    SpecError
        It is not a scheduler file.
    ServiceLost
        It is not there in time.
    """
    path = Path(name).expanduser()
    deadline = Deadline(seconds)
    while True:
        try:
            found = json.loads(path.read_bytes())
        except FileNotFoundError:
            if deadline.passed or not path.parent.is_dir():
                raise ServiceLost(
                    f"the scheduler file {str(path)!r} is not there: is the name right, was `dask "
                    "scheduler --scheduler-file` started, is the file system shared?"
                ) from None
        except OSError as error:
            raise ServiceLost(
                f"the scheduler file {str(path)!r} cannot be read: {error.strerror}"
            ) from error
        except ValueError as error:
            # The scheduler may be writing it.
            if deadline.passed:
                raise SpecError(
                    f"cluster= names the file {str(path)!r}, which is not a scheduler file: {error}"
                ) from None
        else:
            break
        sleep(_POLL_INTERVAL_SECONDS)
    address = found.get("address") if isinstance(found, dict) else None
    if isinstance(address, str) and address:
        return address
    raise SpecError(
        f"cluster= names the file {str(path)!r}, which has no address of a scheduler: it "
        "must be one that `dask scheduler --scheduler-file` has written"
    )
