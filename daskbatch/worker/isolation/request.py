"""What a worker has its children do: a block, or what is left of it.

Does not know who carries it out, nor how it gets there.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import LOCAL, BlockMember, BlockSpec, Link
from daskbatch.worker.execution.outcome import BlockResult
from daskbatch.worker.profiling.child_profiles import ChildOrder


class BlockRequest(NamedTuple):
    """What a child is told to do.

    Parameters
    ----------
    payload : bytes
        A pickled `BlockSpec`.
    inputs : sequence of BlockResult or bytes
        Of the results of other blocks, what the members take.
    statuses : bytes
        What became of the first members; the child begins behind them.
    values, outputs : sequence, mapping
        Of what they have left behind, what the members take.
    budget, share_limit : float, int
        What is left of them.
    retries : int, optional
        How often the first member may be tried again, if that is not what the block says.
    journal : (str, int), optional
        Where the child writes down what becomes of members: the arguments of a `Journal`.
    path : sequence of str
        The worker's `sys.path`.
    host : tuple, optional
        What the members have around them, but for the slot: see `running.Host`.
    profile : ChildOrder, optional
        Which profilers are to run.
    """

    payload: bytes
    inputs: Sequence[Any]
    statuses: bytes
    values: Sequence[bytes | None]
    outputs: dict[int, tuple[str, str]]
    budget: float
    share_limit: int
    retries: int | None
    journal: tuple[str, int] | None
    path: Sequence[str]
    host: tuple[str, Any, str, bytes | None] | None = None
    profile: ChildOrder | None = None


def pack_order(order: BlockRequest) -> bytes:
    return pickling.dumps_plain(tuple(order))


def unpack_order(data: Any) -> BlockRequest:
    return BlockRequest(*pickling.loads(data))


def make_order(
    spec: BlockSpec, payload: bytes, inputs: Sequence[Any], done: BlockResult
) -> BlockRequest:
    """Say what is left to do of a block, with no more of what there is than that takes.

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
    taken = _taken(link for member, link in spec.links.items() if member >= start)
    nothing: frozenset[int] = frozenset()
    given = [
        _only(found, taken.get(position, nothing)) if isinstance(found, BlockResult) else found
        for position, found in enumerate(inputs)
    ]
    local = _only(done, taken.get(LOCAL, nothing))
    return BlockRequest(
        payload,
        given,
        done.statuses,
        local.values or [None] * start,
        dict(local.outputs),
        spec.budget,
        spec.share_limit,
        None,
        None,
        list(sys.path),
    )


def without_setup(order: BlockRequest, spec: BlockSpec) -> BlockRequest:
    """Leave out what prepares a process, for one that is prepared already."""
    if not isinstance(spec.setup, int):
        return order  # it is small
    inputs = list(order.inputs)
    inputs[spec.setup] = b""
    return order._replace(inputs=inputs)


def _taken(links: Iterable[Link]) -> Mapping[int, set[int]]:
    """Find out of which members of which blocks values or outputs are taken."""
    found: dict[int, set[int]] = {}
    for link in links:
        for part in link.values:
            if isinstance(part, BlockMember):
                position, member = part.source
                found.setdefault(position, set()).add(member)
    return found


def _only(result: BlockResult, members: set[int] | frozenset[int]) -> BlockResult:
    if not members:
        return BlockResult(result.statuses)
    values = [value if member in members else None for member, value in enumerate(result.values)]
    outputs = {member: each for member, each in result.outputs.items() if member in members}
    return BlockResult(result.statuses, values, outputs)
