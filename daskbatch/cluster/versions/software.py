"""Describes the software of a process that must be the same everywhere: Python and daskbatch.

Functions and values travel between processes as pickles, and the code of functions as bytecode,
which another minor version of Python cannot run: its interpreter crashes. All functions are pure,
except for `own_software`. Any thread may call them.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from typing import NamedTuple

from daskbatch._version import __version__

#: How many workers a message names.
_MAX_NAMED = 5


class Software(NamedTuple):
    """What a process runs with.

    Parameters
    ----------
    python : str
        Its Python, as ``"3.12"``.
    daskbatch : str
        The version of its daskbatch; empty if it has none.
    """

    python: str
    daskbatch: str

    def __str__(self) -> str:
        ours = f"daskbatch {self.daskbatch}" if self.daskbatch else "no daskbatch"
        return f"Python {self.python} and {ours}"


def own_software() -> Software:
    """Return the software of this process."""
    return Software(f"{sys.version_info[0]}.{sys.version_info[1]}", __version__)


class UnfitWorker(NamedTuple):
    """A worker whose software is not that of the scheduler, so that it can run no tasks of ours.

    Parameters
    ----------
    address, host : str
        The worker, and the name of its host.
    python, daskbatch : str
        Its `Software`.
    """

    address: str
    host: str
    python: str
    daskbatch: str

    @property
    def software(self) -> Software:
        """The software of the worker."""
        return Software(self.python, self.daskbatch)

    def __str__(self) -> str:
        return f"the worker {self.address} on {self.host} has {self.software}"


def difference(address: str, found: Sequence[object]) -> str:
    """Return the message for a cluster whose software is not that of this process.

    Parameters
    ----------
    address : str
        The address of the cluster.
    found : sequence
        What was found; the text of each says which process has what.
    """
    named = "; ".join(str(each) for each in found[:_MAX_NAMED])
    if len(found) > _MAX_NAMED:
        named += f"; and {len(found) - _MAX_NAMED} more"
    return (
        f"the cluster at {address} has other software than this process on "
        f"{socket.gethostname()}, which has {own_software()}: {named}. Start the scheduler and all "
        "workers in the same environment: the same minor version of Python, the same daskbatch"
    )


def warning(unfit: UnfitWorker) -> str:
    """Return the message for a worker that joins with other software."""
    why = f"tasks need {own_software()}"
    if not unfit.daskbatch:
        why += "; install daskbatch in the environment that the worker is started in"
    return f"{unfit}; it gets no tasks of this Batch: {why}"
