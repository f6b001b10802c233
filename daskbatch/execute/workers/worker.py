"""Defines the record by which jobs and tasks name a worker of the cluster.

The record never changes, so any thread may use it.
"""

from __future__ import annotations

from typing import NamedTuple


class Worker(NamedTuple):
    """The name, address and machine of a worker. Two are equal if all three fields are equal.

    Parameters
    ----------
    name : str
        The name that the cluster gives it. If a nanny restarts the worker, it keeps the name.
    address : str
        The address at which it listens. A worker that was restarted has another address.
    host : str
        The machine that it runs on.

    Examples
    --------
    >>> Worker("1", "tcp://10.0.0.5:4000", "10.0.0.5").name
    '1'
    """

    name: str
    address: str
    host: str

    def __str__(self) -> str:
        return self.name
