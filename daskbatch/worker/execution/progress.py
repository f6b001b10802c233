"""Shows a running block to other threads, which report on it, and revoke and stop its members.

The thread that runs the block, and any other threads, use it at the same time.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from time import perf_counter

from daskbatch.worker.execution.block import (
    BlockSpec,
    ExpiredReport,
    MissingReport,
    Report,
    RunningReport,
)
from daskbatch.worker.execution.claims import Claims
from daskbatch.worker.execution.journal import Journal
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.execution.outcome_log import OutcomeLog
from daskbatch.worker.execution.task_context import TaskContext


class Progress(ABC):
    """The interface of a block while it runs.

    One thread calls it, which runs the block and records outcomes in the log. Any other
    thread may meanwhile ask for reports, defer what has not begun, revoke members, and stop
    the member that runs.

    Parameters
    ----------
    spec : BlockSpec
        The block.
    claims : Claims
        Decides which members are run.
    log : OutcomeLog
        Where outcomes are recorded; a run continues behind those that are there.

    Attributes
    ----------
    journal : Journal, optional
        Where outcomes are kept for the case that the worker is killed. Set before the call.
    context : TaskContext, optional
        The context of the members, where there is one. Set before the call.
    began : float
        When this object was made, by `perf_counter`.
    running : int
        The member that runs now, or -1.
    tried : mapping
        How often members were tried before, in other processes.
    """

    def __init__(self, spec: BlockSpec, claims: Claims, log: OutcomeLog) -> None:
        self.spec = spec
        self.claims = claims
        self.log = log
        self.journal: Journal | None = None
        self.context: TaskContext | None = None
        self.began = perf_counter()
        self.running = -1
        self.tried: Mapping[int, int] = {}
        #: What has been noticed about members and not been reported.
        self._notices: deque[MissingReport] = deque()
        self._expired = False
        self._report_lock = threading.Lock()
        self._reported_running = -1
        self._reported_expired = False

    @abstractmethod
    def __call__(self) -> BlockResult:
        """Run the block in this thread; return an outcome for each member."""

    def place(self, member: int, tried: int) -> str:
        """Say where a member runs and which attempt it is, for the heading of its traceback.

        Parameters
        ----------
        member : int
            The member.
        tried : int
            How often this run has tried it before.
        """
        attempt = f"attempt {self.tried.get(member, 0) + tried + 1}"
        if self.context is None or not self.context.worker:
            return attempt
        return f"on worker {self.context.worker}, {attempt}"

    def notice(self, member: int, kind: str, paths: tuple[str, ...]) -> None:
        """Report that declared files of a member were not there; see `MissingReport`."""
        self._notices.append(MissingReport(self.spec.block, member, kind, paths))

    # -- other threads --------------------------------------------------------------------

    def defer_rest(self) -> None:
        """Defer the members that have not begun: they run elsewhere."""
        self.claims.revoke(range(self.running + 1, len(self.spec.calls)), Status.DEFERRED)
        self._expired = True

    def tick(self) -> None:
        """Defer the rest if the budget is used up; called periodically."""
        # At least one member runs here: else a block with little time would never make progress.
        if self.running < 0 or self._expired:
            return
        if perf_counter() - self.began > self.spec.budget:
            self.defer_rest()

    def revoke(self, members: Iterable[int], status: Status) -> list[int]:
        """Give members a status instead of running them; return those that have begun."""
        return self.claims.revoke(members, status)

    def stop(self, members: Iterable[int]) -> list[int]:
        """Cancel members, begun or not; return those that will complete or have completed."""
        return [m for m in self.revoke(members, Status.CANCELLED) if not self.stop_running(m)]

    def stop_all(self) -> None:
        """Cancel all members that are not over."""
        self.stop(range(len(self.log.statuses), len(self.spec.calls)))

    def stop_running(self, member: int) -> bool:
        """Stop a member that has begun; True if it will certainly not complete."""
        return False

    def deliver(self) -> bool:
        """Send the new reports; False if the caller has to send them."""
        return False

    def report_again(self) -> None:
        """Have the next reports contain all outcomes once more: earlier ones may be lost."""
        with self._report_lock:
            self.log.report_again()
            self._reported_running = -1

    def reports(self) -> list[Report]:
        """Return reports of what has happened since the last call."""
        with self._report_lock:
            done, running = len(self.log.statuses), self.running
            # Before the outcomes: once these have arrived, the program may ask for the notices.
            notices = []
            while self._notices:
                notices.append(self._notices.popleft())
            rest = b""
            expired = self._expired and not self._reported_expired and running >= 0
            if expired:
                self._reported_expired = True
                behind = range(running + 1, len(self.spec.calls))
                rest = bytes(max(self.claims.given(member), Status.DONE) for member in behind)
            # The client receives what a report leaves out when the block is over. While a member
            # runs, that may take some time. So the limit is larger then: less than `share_limit`
            # has been returned so far.
            lasts = running >= 0 or self.spec.open
            limit = self.spec.share_limit if lasts else self.spec.inline_limit
            reports: list[Report] = [
                *notices,
                *self.log.new_reports(self.spec.block, done, limit),
            ]
            if expired:
                self._reported_running = running
                reports.append(ExpiredReport(self.spec.block, running, rest))
            elif running >= max(done, self._reported_running + 1):
                self._reported_running = running
                reports.append(RunningReport(self.spec.block, running))
            return reports
