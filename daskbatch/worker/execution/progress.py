"""Shows a running block to other threads, which report on it, and revoke and stop its members.

The thread that runs the block, and any other threads, use it at the same time.
"""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterable, Mapping
from time import perf_counter, time

from daskbatch.worker.execution.block import (
    BlockSpec,
    ExpiredReport,
    MissingReport,
    Report,
    RunningReport,
)
from daskbatch.worker.execution.claims import Claims
from daskbatch.worker.execution.journal import Journal
from daskbatch.worker.execution.measures import MemberBegin
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.execution.outcome_log import OutcomeLog
from daskbatch.worker.execution.output_stream import OutputPart, OutputStream, whole_output
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
    interrupted : int, optional
        The member that was stopped because the worker leaves. It has no outcome: the client decides
        whether it runs again.
    """

    def __init__(self, spec: BlockSpec, claims: Claims, log: OutcomeLog) -> None:
        self.spec = spec
        self.claims = claims
        self.log = log
        self.journal: Journal | None = None
        self.context: TaskContext | None = None
        self.began = perf_counter()
        #: What to add to `perf_counter` for seconds since the epoch.
        self.epoch_offset = time() - self.began
        self.running = -1
        self.tried: Mapping[int, int] = {}
        self.interrupted: int | None = None
        #: The arguments of the running or the last member, if it takes long to free them. That is
        #: done once its outcome is reported.
        self.slow_arguments: object = None
        #: What has been noticed about members and not been reported.
        self._notices: deque[MissingReport] = deque()
        self._expired = False
        self._report_lock = threading.Lock()
        self._reported_running = -1
        self._reported_attempt = 0
        self._output_stream = OutputStream(spec.block) if spec.streams else None
        self._streamed_members = 0
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

    def take_notices(self) -> list[MissingReport]:
        """Return what has been noticed since the last call."""
        found: list[MissingReport] = []
        while self._notices:
            found.append(self._notices.popleft())
        return found

    # -- other threads --------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether no member runs at the moment."""
        return self.running < 0

    def defer_rest(self) -> None:
        """Defer the members that have not begun: they run elsewhere."""
        self.claims.revoke(range(self.running + 1, len(self.spec.calls)), Status.DEFERRED)
        self._expired = True

    def slot_released(self) -> None:
        """Defer the rest: the running member waits for other tasks, and has released the slot."""
        # It may wait for one of the members behind it.
        self.defer_rest()

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

    def _begun_member(self) -> int:
        """Return the running member if it is known where and when it has begun; else -1."""
        return self.running

    def begin_of(self, member: int) -> MemberBegin:
        """Return where and when the running member has begun."""
        worker = "" if self.context is None else self.context.worker
        attempt = self.tried.get(member, 0) + self._attempt_of(member)
        began = self._began_at(member) + self.epoch_offset
        return MemberBegin(worker, self._pid_of(member), attempt, began)

    def _attempt_of(self, member: int) -> int:
        """Return the attempt of the running member, from 1, since this run has begun."""
        return 1

    def _began_at(self, member: int) -> float:
        """Return when the running member has begun, by `perf_counter`."""
        return self.began

    def _pid_of(self, member: int) -> int:
        """Return the process of the running member."""
        return os.getpid()

    def read_output(self, member: int, name: str, position: int, most: int) -> OutputPart | None:
        """Return what the running member has written to a stream; None if it does not run.

        Parameters
        ----------
        member : int
            The member.
        name : str
            "stdout" or "stderr".
        position, most : int
            See `BoundedText.since`.
        """
        return None

    def _stream_output(self, stream: OutputStream, done: int, running: int) -> list[Report]:
        """Return what members have written since the last call, for a client that keeps it."""
        reports: list[Report] = []
        if running >= done:
            reports += stream.of_running(running, self.read_output)
        for member in range(self._streamed_members, done):
            texts = self.log.outputs.get(member)
            # The report on the member has all that is shorter.
            if texts is not None and sum(map(len, texts)) * 4 > self.spec.inline_limit:
                reports += whole_output(self.spec.block, member, texts)
        self._streamed_members = done
        return reports

    def interrupt(self) -> bool:
        """Stop the member that runs, and report no outcome of it; True if one is being stopped."""
        member = self.running
        if member < 0:
            return False
        # First: its outcome may be recorded as soon as it is told to stop.
        self.interrupted = member
        if self.stop_running(member):
            return True
        self.interrupted = None
        return False

    def seconds_stopping(self) -> float:
        """Return for how long the running member has not stopped, though it was told to; else 0."""
        return 0.0

    def reports(self) -> list[Report]:
        """Return reports of what has happened since the last call."""
        with self._report_lock:
            done, running = len(self.log.statuses), self._begun_member()
            if self.interrupted is not None:
                done, running = min(done, self.interrupted), -1
            # Before the outcomes: once these have arrived, the program may ask for the notices.
            notices = self.take_notices()
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
            worker = "" if self.context is None else self.context.worker
            reports: list[Report] = [*notices]
            if self._output_stream is not None:
                reports += self._stream_output(self._output_stream, done, running)
            reports += self.log.new_reports(self.spec.block, done, limit, worker, os.getpid())
            if expired or running >= max(done, self._reported_running):
                begin = self.begin_of(running)
                is_new = (running, begin.attempt) != (
                    self._reported_running,
                    self._reported_attempt,
                )
                self._reported_running, self._reported_attempt = running, begin.attempt
                if expired:
                    reports.append(ExpiredReport(self.spec.block, running, rest, begin))
                elif is_new:
                    reports.append(RunningReport(self.spec.block, running, begin))
            return reports
