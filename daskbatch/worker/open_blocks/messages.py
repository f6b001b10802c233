"""What a client and the worker of an open block send each other on their direct connection.

The client sends `NewMembers`, and at last `END`. The worker sends the reports of `execution.block`,
each in a frame. All are pickled, and never change. What is sent for each member travels as plain
tuples: to pickle and unpickle a named tuple takes five times as long.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from sys import intern
from typing import Any, NamedTuple

from daskbatch.worker.execution.block import (
    BlockMember,
    DeclaredFiles,
    Limits,
    Link,
    OutcomeReport,
    Report,
)
from daskbatch.worker.execution.measures import Measures
from daskbatch.worker.handshake import ServerAddress


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


class PeerBlock(NamedTuple):
    """An open block that receives outcomes of another one.

    Parameters
    ----------
    block : int
        Its number.
    address : ServerAddress
        Where it accepts connections.
    """

    block: int
    address: ServerAddress


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
    sources : sequence of int
        The numbers of other open blocks, for whose members the members of this one wait from now
        on: each becomes one more input of the block.
    peers : sequence of PeerBlock
        Other open blocks that receive outcomes of this one from now on.
    forwards : sequence of (int, int)
        Members of this block, and the position among its peers of a block that waits for it.
    """

    functions: Sequence[bytes]
    members: Sequence[OpenMember]
    surroundings: bytes | None = None
    dropped: Sequence[int] = ()
    sources: Sequence[int] = ()
    peers: Sequence[PeerBlock] = ()
    forwards: Sequence[tuple[int, int]] = ()


def encode_members(new: NewMembers) -> bytes:
    """Return the frame for new members."""
    members = [
        (
            function,
            data,
            name,
            None if link is None else _encode_link(link),
            limits,
            None if declared is None else tuple(declared),
        )
        for function, data, name, link, limits, declared in new.members
    ]
    rest = (new.sources, [tuple(each) for each in new.peers], new.forwards)
    return pickle.dumps(
        (new.functions, members, new.surroundings, new.dropped, rest if any(rest) else None), 5
    )


def decode_members(frame: bytes) -> NewMembers:
    """Undo `encode_members`."""
    functions, members, surroundings, dropped, rest = pickle.loads(frame)
    decoded = [
        OpenMember(
            function,
            data,
            name,
            None if link is None else _decode_link(link),
            limits,
            None if declared is None else DeclaredFiles._make(declared),
        )
        for function, data, name, link, limits, declared in members
    ]
    if rest is None:
        return NewMembers(functions, decoded, surroundings, dropped)
    sources, peers, forwards = rest
    made = [PeerBlock._make(each) for each in peers]
    return NewMembers(functions, decoded, surroundings, dropped, sources, made, forwards)


def _encode_link(link: Link) -> tuple[Any, ...]:
    needs, after, values, buffers = link
    plain = [tuple(each) if type(each) is BlockMember else each for each in values]
    return needs, after, plain, buffers


def _decode_link(link: tuple[Any, ...]) -> Link:
    needs, after, plain, buffers = link
    values = [BlockMember._make(each) if type(each) is tuple else each for each in plain]
    return Link(needs, after, tuple(values), buffers)


def encode_report(report: Report) -> bytes:
    """Return the frame for a report."""
    if type(report) is OutcomeReport:
        measures = report.measures
        if measures is not None and not measures.details:
            return pickle.dumps((tuple(report[:6]), tuple(measures[:4]), report.references), 5)
    return pickle.dumps(report, 5)


def decode_report(frame: bytes) -> Report:
    """Undo `encode_report`; any other pickled report is returned as it is."""
    report: Any = pickle.loads(frame)
    if type(report) is not tuple:
        return report  # type: ignore[no-any-return]
    outcomes, (worker, pid, ended, cpu), references = report
    measures = Measures(intern(worker), pid, ended, cpu, {}, outcomes[1])
    return OutcomeReport._make((*outcomes, measures, references))


#: The frame by which a client ends a block: it adds no more members.
END = b"end"

#: The frame by which a worker answers a client that has connected to its block.
ATTACHED = b"attached"
