"""Makes the request that a worker sends to a child: a block, or its remaining members.

The functions are pure, except that `make_request` reads `sys.path`, which is a part of a request.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from daskbatch.serialization import pickling
from daskbatch.worker.execution.allocation import Allocation
from daskbatch.worker.execution.block import LOCAL, BlockMember, BlockSpec, Link
from daskbatch.worker.execution.outcome import BlockResult
from daskbatch.worker.profiling.child_profiles import WantedProfilers

_NO_MEMBERS: frozenset[int] = frozenset()


class BlockRequest(NamedTuple):
    """What a child is to run.

    Parameters
    ----------
    payload : bytes
        A pickled `BlockSpec`.
    inputs : sequence of BlockResult or bytes
        The results of other blocks, reduced to what the members take from them, and large
        buffers.
    statuses : bytes
        The statuses of the first members; the child begins behind these.
    values, outputs : sequence, mapping
        Their values and outputs, reduced to what the members take from them.
    budget, share_limit : float, int
        What remains of the limits of the block.
    retries : int, optional
        How often the first member may be tried again, if not as often as the block says.
    journal : (str, int, int), optional
        Where the child records outcomes, as `Journal.location` returns it.
    path : sequence of str
        The worker's `sys.path`.
    context : tuple, optional
        The fields of the members' `TaskContext`, without the slot.
    profile : WantedProfilers, optional
        The profilers that are to run in the child.
    allocation : Allocation, optional
        The slots that the members hold, if they are a gang.
    single : bool
        Whether the child runs only the first of the remaining members.
    unreachable : mapping, optional
        The servers that the worker cannot reach; see `worker.unreachable`.
    """

    payload: bytes
    inputs: Sequence[Any]
    statuses: bytes
    values: Sequence[bytes | None]
    outputs: dict[int, tuple[str, str]]
    budget: float
    share_limit: int
    retries: int | None
    journal: tuple[str, int, int] | None
    path: Sequence[str]
    context: tuple[str, Any, str, bytes | None, str] | None = None
    profile: WantedProfilers | None = None
    allocation: Allocation | None = None
    single: bool = False
    unreachable: Mapping[tuple[str, int], float] | None = None


def pack_request(request: BlockRequest) -> bytes:
    """Pickle a request."""
    return pickling.dumps_plain(tuple(request))


def unpack_request(data: Any) -> BlockRequest:
    """Undo `pack_request`."""
    return BlockRequest(*pickling.loads(data))


def make_request(
    spec: BlockSpec, payload: bytes, inputs: Sequence[Any], done: BlockResult
) -> BlockRequest:
    """Make a request for the remaining members, with no more data than they take.

    Parameters
    ----------
    spec, payload : BlockSpec, bytes
        The block, and the same pickled.
    inputs : sequence of BlockResult or bytes
        The results of the blocks that it depends on, and large buffers.
    done : BlockResult
        The outcomes of its first members.
    """
    start = len(done.statuses)
    taken = _taken_members(link for member, link in spec.links.items() if member >= start)
    reduced = [
        _reduce(each, taken.get(position, _NO_MEMBERS)) if isinstance(each, BlockResult) else each
        for position, each in enumerate(inputs)
    ]
    local = _reduce(done, taken.get(LOCAL, _NO_MEMBERS))
    return BlockRequest(
        payload=payload,
        inputs=reduced,
        statuses=done.statuses,
        values=local.values or [None] * start,
        outputs=dict(local.outputs),
        budget=spec.budget,
        share_limit=spec.share_limit,
        retries=None,
        journal=None,
        path=list(sys.path),
    )


def without_setup(request: BlockRequest, spec: BlockSpec) -> BlockRequest:
    """Leave out the initializer and its arguments, for a child that has called it already."""
    if not isinstance(spec.setup, int):
        return request  # it is small, and part of the payload
    inputs = list(request.inputs)
    inputs[spec.setup] = b""
    return request._replace(inputs=inputs)


def _taken_members(links: Iterable[Link]) -> Mapping[int, set[int]]:
    """Return the members whose values or outputs are taken, by the position of their block."""
    taken: dict[int, set[int]] = {}
    for link in links:
        for part in link.values:
            if isinstance(part, BlockMember):
                position, member = part.source
                taken.setdefault(position, set()).add(member)
    return taken


def _reduce(result: BlockResult, members: set[int] | frozenset[int]) -> BlockResult:
    """Keep all statuses, but only the values and outputs of some members."""
    if not members:
        return BlockResult(result.statuses)
    values = [value if member in members else None for member, value in enumerate(result.values)]
    outputs = {member: each for member, each in result.outputs.items() if member in members}
    return BlockResult(result.statuses, values, outputs)
