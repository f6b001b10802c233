"""The slots that a running task has been granted, on one or several hosts.

A record that never changes.
"""

from __future__ import annotations

from typing import NamedTuple


class Allocation(NamedTuple):
    """The slots of a gang: granted all at once, and held until the task is over.

    Parameters
    ----------
    hosts : tuple of (str, int)
        Each host and its number of ranks, in the order of the ranks: consecutive ranks fill a
        host. The first host is that of the worker that runs the task. A function or a serial
        executable with several cores is one rank.
    cores : int
        The slots of each rank.

    Examples
    --------
    >>> Allocation((("10.0.0.1", 2), ("10.0.0.2", 1))).ranks
    3
    """

    hosts: tuple[tuple[str, int], ...]
    cores: int = 1

    @property
    def ranks(self) -> int:
        """The number of ranks on all hosts."""
        return sum(count for _, count in self.hosts)
