"""The messages of the scheduler's plugin and the nannies' plugin, and how they are encoded.

The scheduler sends a client *events* on Dask's client stream. Dask packs an event with msgpack,
so it travels as a plain tuple: a number for its kind, then its fields. `encode` and `decode` are
the only functions that make and read these tuples. A block report is the most frequent event;
the scheduler passes its pickle on without reading it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from daskbatch.dispatch.backend import Members
from daskbatch.dispatch.task_record import BlockKey


class BlockReported(NamedTuple):
    """A worker reports outcomes of a block: a pickled `worker.execution.block.Report`."""

    report: bytes


class SlotsChanged(NamedTuple):
    """The number of tasks that the cluster runs at once has changed, or the hosts of its workers.

    Parameters
    ----------
    slots : int
        The number of tasks.
    hosts : sequence of str
        The hosts; see `memory.host.host_id`.
    """

    slots: int
    hosts: Sequence[str] = ()


class MembersRevoked(NamedTuple):
    """The answer to a revocation: what will not run, and what runs and is being stopped."""

    question: int
    not_begun: Members
    stopping: Members


class ValuesLost(NamedTuple):
    """The results of finished blocks were lost with a worker."""

    keys: Sequence[BlockKey]


class WorkerDied(NamedTuple):
    """A worker has died.

    Parameters
    ----------
    keys : sequence of BlockKey
        The client's blocks that it may have begun.
    details : mapping
        What is known of its death: keyword arguments of `daskbatch.WorkerLost`.
    traces : bytes, optional
        A pickled list of `JournaledBlock`: what it had done; None if that is unknown.
    planned : bool
        Whether it has left in good order, and has interrupted what ran.
    """

    keys: Sequence[BlockKey]
    details: Mapping[str, Any]
    traces: bytes | None
    planned: bool = False


class BatchEnded(NamedTuple):
    """A Batch has ended; sent to each connection that has, or had, other clients of it."""

    batch: str


class WorkerUnfit(NamedTuple):
    """A worker has other software: the fields of an `UnfitWorker`."""

    address: str
    host: str
    python: str
    daskbatch: str


class SummaryWanted(NamedTuple):
    """Somebody looks at the page /daskbatch: the client answers with a `ClientSummary`."""


ClientEvent = (
    BlockReported
    | SlotsChanged
    | MembersRevoked
    | ValuesLost
    | WorkerDied
    | BatchEnded
    | SummaryWanted
    | WorkerUnfit
)

#: The position of a kind of event is the number that stands for it.
_KINDS: tuple[type[ClientEvent], ...] = (
    BlockReported,
    SlotsChanged,
    MembersRevoked,
    ValuesLost,
    WorkerDied,
    BatchEnded,
    SummaryWanted,
    WorkerUnfit,
)

_NUMBERS = {kind: number for number, kind in enumerate(_KINDS)}


def encode(event: ClientEvent) -> tuple[Any, ...]:
    """Return an event as it travels.

    >>> decode(encode(SlotsChanged(4)))
    SlotsChanged(slots=4, hosts=())
    """
    return (_NUMBERS[type(event)], *event)


def decode(message: Sequence[Any]) -> ClientEvent:
    """Return the event that has arrived."""
    number, *fields = message
    event: ClientEvent = _KINDS[number](*fields)
    return event


class Registration(NamedTuple):
    """The answer to `daskbatch_register`.

    Parameters
    ----------
    number : int
        The client's number.
    slots, hosts : int, sequence of str
        See `SlotsChanged`.
    """

    number: int
    slots: int
    hosts: Sequence[str] = ()


class WorkerFate(NamedTuple):
    """The answer of a nanny to `daskbatch_fate`, which asks what a dead worker has left.

    Parameters
    ----------
    exitcode : int, optional
        How the worker's process ended; None if that is unknown.
    traces : mapping, optional
        For each topic a pickled list of `JournaledBlock`; None if that is unknown.
    """

    exitcode: int | None = None
    traces: Mapping[str, bytes] | None = None
