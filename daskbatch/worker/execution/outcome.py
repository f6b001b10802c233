"""The outcomes of a block's members: a status and a few bytes each, as they travel.

Nothing changes the `BlockResult` of a block that is over: any number of threads may read it.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from enum import IntEnum

from daskbatch.worker.execution.block import OutcomeReport


class Status(IntEnum):
    """The outcome of one member of a block."""

    #: It returned; its value is there.
    DONE = 0
    #: It raised; its exception is there.
    FAILED = 1
    #: It did not run: a task whose value or writes it needs did not succeed.
    SKIPPED = 2
    #: It did not run, or its result does not count: it was cancelled.
    CANCELLED = 3
    #: It did not run here and may run elsewhere.
    DEFERRED = 4


class BlockResult:
    """The outcomes of a block's members: the value of a Dask key.

    Parameters
    ----------
    statuses : bytes
        A `Status` for each member.
    values : sequence of bytes or None
        For each member its pickled value or its packed exception.
    outputs : mapping
        stdout and stderr of those members that wrote any.
    empty : bool
        Whether the block had no member: an open block may close before it has received one.
    """

    __slots__ = ("empty", "outputs", "statuses", "values")

    def __init__(
        self,
        statuses: bytes,
        values: Sequence[bytes | None] = (),
        outputs: Mapping[int, tuple[str, str]] | None = None,
        empty: bool = False,
    ) -> None:
        self.statuses = statuses
        self.values = values
        self.outputs = outputs or {}
        self.empty = empty

    @property
    def lost(self) -> bool:
        """Whether the outcomes were lost with a worker; the client may still know some."""
        return not self.statuses and not self.empty

    def __reduce__(self) -> tuple[object, ...]:
        if self.empty:
            return BlockResult, (self.statuses, self.values, self.outputs, True)
        return BlockResult, (self.statuses, self.values, self.outputs)

    def as_report(self, block: int) -> OutcomeReport:
        """Return a report of the whole block; it does not say how long the members ran."""
        durations = bytes(4 * len(self.statuses))
        return OutcomeReport(block, 0, self.statuses, self.values, durations, self.outputs)

    def __sizeof__(self) -> int:
        # Dask takes this for the size of the key, by which it spills and moves the key.
        return (
            sys.getsizeof(self.statuses)
            + sum(map(sys.getsizeof, self.values))
            + sum(sys.getsizeof(out) + sys.getsizeof(err) for out, err in self.outputs.values())
        )


def token(result: BlockResult) -> BlockResult:
    """Reduce a block's result to what an order-only edge carries: the statuses."""
    return BlockResult(result.statuses)
