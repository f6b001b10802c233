"""What a client and the worker of an open block send each other on their direct connection.

The client sends `NewMembers`, and at last `END`. The worker sends the reports of `execution.block`,
each in a frame. All are pickled, and never change.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from daskbatch.worker.execution.block import DeclaredFiles, Limits, Link


class OpenMember(NamedTuple):
    """A task that is added to an open block.

    Parameters
    ----------
    function : int
        The index of its function among those that the block has received.
    data : bytes
        Its packed arguments.
    name : str
        What messages call it.
    link, limits, declared
        See `BlockSpec`.
    """

    function: int
    data: bytes
    name: str
    link: Link | None = None
    limits: Limits | None = None
    declared: DeclaredFiles | None = None


class NewMembers(NamedTuple):
    """Tasks that are added to an open block, in order.

    Parameters
    ----------
    functions : sequence of bytes
        Pickled functions that the block has not received before.
    members : sequence of tuple
        The fields of an `OpenMember` each.
    surroundings : bytes, optional
        See `BlockSpec`.
    dropped : sequence of int
        Members that are over, and whose values no task needs any longer.
    """

    functions: Sequence[bytes]
    members: Sequence[OpenMember]
    surroundings: bytes | None = None
    dropped: Sequence[int] = ()


#: The frame by which a client ends a block: it adds no more members.
END = b"end"

#: The frame by which a worker answers a client that has connected to its block.
ATTACHED = b"attached"
