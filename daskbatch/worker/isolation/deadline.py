"""Says until when a member of a block may run, from what its board tells.

Does not know what happens then.
"""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from daskbatch.worker.execution.block import BlockSpec, Limits
from daskbatch.worker.isolation.shared_claims import SharedClaims

#: How much longer than its time a member may take until its function is called: what has to
#: be imported for that is imported only once in each child. Seconds.
_LOADING = 60.0

_NO_LIMITS = Limits()


class Deadline:
    """The time limit of the member that runs, whichever that is.

    Parameters
    ----------
    spec : BlockSpec
        The block.
    board : SharedClaims
        Says which member runs, and since when.
    done : sequence
        As long as there are members that are over.
    """

    def __init__(self, spec: BlockSpec, board: SharedClaims, done: Sequence[object]) -> None:
        self._limits = spec.limits
        self._board = board
        self._done = done

    def _timeout(self) -> float | None:
        member = self._board.running
        if member < len(self._done):
            return None
        return self._limits.get(member, _NO_LIMITS).timeout

    def left(self) -> float | None:
        """Say how many seconds are left, if they are counted."""
        timeout = self._timeout()
        if timeout is None:
            return None
        more = 0.0 if self._board.called else _LOADING
        return self._board.began + timeout + more - perf_counter()

    def is_over(self) -> bool:
        """Say whether the member should be over by now."""
        left = self.left()
        return left is not None and left <= 0

    def seconds_to_wait(self, pace: float | None) -> float | None:
        """Say for how long there is nothing to do about it, but no longer than `pace`."""
        timeout, left = self._timeout(), self.left()
        if timeout is None or left is None:
            return pace
        # If its function is called at this moment, its time begins now.
        left = min(left, timeout)
        return left if pace is None else min(left, pace)
