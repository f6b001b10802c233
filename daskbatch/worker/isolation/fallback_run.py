"""Produces the outcomes of members that no child runs, and the errors of those that ended one.

A member that no child runs is skipped, deferred or cancelled, or no child could be started for
it. The thread of the block calls this.
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
    """Gives the remaining members of a block their outcomes, and runs none of them.

    Parameters
    ----------
    spec, inputs, claims, log
        As for a `BlockRun`.
    error : Exception, optional
        Why the next member that could run cannot be run: it fails. The rest is deferred.
    """

    def __init__(
        self,
        spec: BlockSpec,
        inputs: Sequence[Any],
        claims: Claims,
        log: OutcomeLog,
        error: Exception | None,
    ) -> None:
        # Without a budget, all members after the first one that could run are deferred.
        super().__init__(spec._replace(budget=-1.0), inputs, claims, log)
        self._error = error

    def _run(self, member: int, link: Link, capture: Capture) -> tuple[int, bytes | None]:
        label = self.spec.label(member)
        if self.spec.calls[member][0] < 0:
            return super()._run(member, link, capture)
        failed = not_run(label, self._error)
        return Status.FAILED, pack_error(failed, label, heading=self.place(member, 0))


def not_run(label: str, error: Exception | None) -> TaskCrashed:
    """Return the error of a member for which there is no child process.

    Parameters
    ----------
    label : str
        What messages call the member.
    error : Exception, optional
        Why there is none.
    """
    return TaskCrashed(f"task {label} could not be run in a child process: {error}")


def timed_out(label: str, timeout: float, ran: float) -> TaskTimeout:
    """Return the error of a member that was ended because its time limit had passed.

    Parameters
    ----------
    label : str
        What messages call the member.
    timeout, ran : float
        Its time limit, and how long it ran. Seconds.
    """
    return TaskTimeout(
        f"task {label}: it ran for longer than its timeout of {timeout:g} s, "
        f"and was ended after {ran:.3g} s"
    )


def crashed(
    label: str, code: int | None, memory_bytes: int, has_closed_files: bool = False
) -> TaskCrashed:
    """Return the error of a member that has ended the process that it ran in.

    Parameters
    ----------
    label : str
        What messages call the member.
    code : int, optional
        The exit code; negative for a signal.
    memory_bytes : int
        How much memory the process had when that was last measured; 0 if unknown.
    has_closed_files : bool
        Whether it has closed files that its process needs.
    """
    if has_closed_files:
        return TaskCrashed(
            f"task {label} has closed files that its process needs, perhaps by os.closerange: "
            "close only those that the task has opened",
            exitcode=code,
        )
    how = f"ended its process with exit code {code}"
    if code is None:
        how = "ended its process"
    elif code < 0:
        name = str(-code)
        with contextlib.suppress(ValueError):
            name = signal.Signals(-code).name
        how = f"was ended by {name}"
        if code == -signal.SIGKILL:
            had = f": its process had {memory_bytes / 2**20:,.0f} MiB" if memory_bytes else ""
            how += f", perhaps since there was too little memory{had}"
    return TaskCrashed(f"task {label} {how}", exitcode=code)
