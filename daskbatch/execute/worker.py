"""A worker of the cluster, as jobs and tasks name it.

A record that never changes: any thread may use it.
"""

from __future__ import annotations

from typing import NamedTuple


class Worker(NamedTuple):
    """A worker, by its name and place; equal to another if all three are.

    Parameters
    ----------
    name : str
        The name that the cluster gives it. A worker that a nanny starts anew keeps the name.
    address : str
        Where it listens. A worker that is started anew has another address.
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
