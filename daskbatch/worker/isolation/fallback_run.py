"""What becomes of members that no child runs, or that have come to an end with theirs.

Does not know how children are run.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Sequence
from typing import Any

from daskbatch.errors import TaskCrashed, TaskTimeout
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.block import BlockSpec, Link
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.execution.claims import Claims
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.execution.outcome_log import OutcomeLog


class FallbackRun(BlockRun):
    """Gives outcomes to members of which none is to be run.

    Parameters
    ----------
    spec, inputs, claims, log
        As for a `BlockRun`.
    error : Exception, optional
        Why the next member that could be run cannot be; the rest is deferred.
    """

    def __init__(
        self,
        spec: BlockSpec,
        inputs: Sequence[Any],
        claims: Claims,
        log: OutcomeLog,
        error: Exception | None,
    ) -> None:
        super().__init__(spec._replace(budget=-1.0), inputs, claims, log)
        self._error = error

    def _run(self, member: int, link: Link, capture: Capture) -> tuple[int, bytes | None]:
        label = self.spec.label(member)
        if self.spec.calls[member][0] < 0:
            return super()._run(member, link, capture)
        crashed = TaskCrashed(f"task {label} could not be run in a child process: {self._error}")
        return Status.FAILED, pack_error(crashed, label)


def timed_out(label: str, timeout: float, ran: float) -> TaskTimeout:
    """Say that a member was ended since its time was up."""
    return TaskTimeout(
        f"task {label}: it ran for longer than its timeout of {timeout:g} s, "
        f"and was ended after {ran:.3g} s"
    )


def crashed(label: str, code: int | None, memory: int) -> TaskCrashed:
    """Say that a member has ended the process that it ran in.

    Parameters
    ----------
    label : str
        What messages call it.
    code : int, optional
        The exit code; negative for a signal.
    memory : int
        How much memory the process had when that was last looked at; 0 if that is not known.
    """
    how = f"ended its process with exit code {code}"
    if code is None:
        how = "ended its process"
    elif code < 0:
        name = str(-code)
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
        how = f"was ended by {name}"
        if code == -signal.SIGKILL:
            had = f": its process had {memory / 2**20:,.0f} MiB" if memory else ""
            how += f", perhaps since there was too little memory{had}"
    return TaskCrashed(f"task {label} {how}", exitcode=code)
