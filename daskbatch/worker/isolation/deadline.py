"""Finds out when a member that runs in a child has passed its time limit.

Safe for any number of threads. `isolated_run` ends the member then.
"""

from __future__ import annotations

from collections.abc import Sized
from time import perf_counter

from daskbatch.worker.execution.block import NO_LIMITS, BlockSpec
from daskbatch.worker.isolation.shared_claims import SharedClaims

#: How much longer than its time limit a member may take until its function is called: the child
#: may have to import modules first, which each child does only once.
_LOADING_SECONDS = 60.0


class MemberDeadline:
    """The deadline of whichever member of a block runs at the moment.

    Safe for any number of threads: it reads the claims, and keeps no state.

    Parameters
    ----------
    spec : BlockSpec
        The block.
    claims : SharedClaims
        Says which member runs, and since when.
    done : sized
        Its length is the number of members that are over.
    """

    def __init__(self, spec: BlockSpec, claims: SharedClaims, done: Sized) -> None:
        self._limits = spec.limits
        self._claims = claims
        self._done = done

    def _timeout(self) -> float | None:
        """Return the time limit of the member that runs; None without one."""
        member = self._claims.running
        if member < len(self._done):
            return None
        return self._limits.get(member, NO_LIMITS).timeout

    def remaining(self) -> float | None:
        """Return how many seconds remain, below 0 if the deadline has passed; None without one."""
        timeout = self._timeout()
        if timeout is None:
            return None
        loading = 0.0 if self._claims.called else _LOADING_SECONDS
        return self._claims.began + timeout + loading - perf_counter()

    def has_passed(self) -> bool:
        """Return whether the member should be over by now."""
        remaining = self.remaining()
        return remaining is not None and remaining <= 0

    def seconds_to_wait(self, longest: float | None) -> float | None:
        """Return a time in which the deadline cannot pass, but no more than `longest`.

        None if neither limits it. Seconds.
        """
        timeout, remaining = self._timeout(), self.remaining()
        if timeout is None or remaining is None:
            return longest
        # If its function is called at this moment, its time begins now.
        remaining = min(remaining, timeout)
        return remaining if longest is None else min(remaining, longest)
