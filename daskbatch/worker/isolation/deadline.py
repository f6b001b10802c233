"""The time limit of the member that runs in a child, as its worker sees it.

Safe for any number of threads. It says when a member is late; `isolated_run` ends the member.
"""

from __future__ import annotations

from collections.abc import Sized
from time import perf_counter

from daskbatch.worker.execution.block import BlockSpec, Limits
from daskbatch.worker.isolation.shared_claims import SharedClaims

#: How much longer than its time limit a member may take until its function is called: each
#: child imports the modules that this needs only once.
_LOADING_SECONDS = 60.0

_NO_LIMITS = Limits()


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
        member = self._claims.running
        if member < len(self._done):
            return None
        return self._limits.get(member, _NO_LIMITS).timeout

    def remaining(self) -> float | None:
        """Return how many seconds remain, below 0 if the deadline has passed; None without one."""
        timeout = self._timeout()
        if timeout is None:
            return None
        loading = 0.0 if self._claims.called else _LOADING_SECONDS
        return self._claims.began + timeout + loading - perf_counter()

    def has_passed(self) -> bool:
        """Say whether the member should be over by now."""
        remaining = self.remaining()
        return remaining is not None and remaining <= 0

    def seconds_to_wait(self, longest: float | None) -> float | None:
        """Return how long the deadline can certainly not pass, but no more than `longest`."""
        timeout, remaining = self._timeout(), self.remaining()
        if timeout is None or remaining is None:
            return longest
        # If its function is called at this moment, its time begins now.
        remaining = min(remaining, timeout)
        return remaining if longest is None else min(remaining, longest)
