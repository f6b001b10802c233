"""What has happened to a block so far: outcomes, claims, and what is still to be told of them.

Does not know how members are run, nor who is told.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterable, Sequence
from time import perf_counter
from typing import Protocol

from daskbatch.worker.execution.block import BlockSpec, Report
from daskbatch.worker.execution.journal import Journal
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.execution.task_context import TaskContext

#: What a claim on a member says when the runner has it; else it is a `Status`.
RUN = -1

#: A report carries about this many bytes of values at most.
_REPORT_BYTES = 512 * 1024


class Claims(Protocol):
    """Who has a member: it belongs to whoever claims it first, to run it or to keep it from it."""

    def claim(self, member: int) -> int:
        """Claim a member to run it; returns RUN, or the status that it was given before."""

    def revoke(self, members: Iterable[int], status: Status) -> list[int]:
        """Give members that are not claimed yet a status; returns those that have begun."""

    def given(self, member: int) -> int:
        """Say which status a member was given."""


class LocalClaims:
    """Claims among the threads of one process, decided by `dict.setdefault`."""

    def __init__(self) -> None:
        self._claims: dict[int, int] = {}

    def claim(self, member: int) -> int:
        return self._claims.setdefault(member, RUN)

    def revoke(self, members: Iterable[int], status: Status) -> list[int]:
        return [m for m in members if self._claims.setdefault(m, status) == RUN]

    def given(self, member: int) -> int:
        return self._claims.get(member, Status.DONE)


class Progress:
    """A block while it runs, as it is seen from outside.

    The thread that runs it appends outcomes; others may meanwhile ask for a report, defer
    what has not begun, revoke members, and stop the one that runs.
    """

    def __init__(self, spec: BlockSpec, claims: Claims) -> None:
        self.spec = spec
        self.claims = claims
        #: Where outcomes are kept for the case that the worker is killed.
        self.journal: Journal | None = None
        #: What its members have around them, where that is known.
        self.host: TaskContext | None = None
        self.began = perf_counter()
        #: The member that runs now, or -1.
        self.running = -1
        self.statuses = bytearray()
        self.values: list[bytes | None] = []
        self.durations = array("f")
        self.outputs: dict[int, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._expired = False
        self._reported = 0
        self._told_running = -1
        self._told_expired = False

    # -- the thread that runs the block ---------------------------------------------------

    def over(
        self,
        member: int,
        status: int,
        value: bytes | None,
        seconds: float,
        output: tuple[str, str] | None,
    ) -> None:
        """Write down what became of the next member."""
        self.values.append(value)
        self.durations.append(seconds)
        if output is not None:
            self.outputs[member] = output
        if self.journal is not None and self.spec.journaled:
            self.journal.over((member, status, value, seconds, output))
        # Last, since a report takes its length for that of all.
        self.statuses.append(status)

    def result(self) -> BlockResult:
        """Give all outcomes, once there is one for each member."""
        return BlockResult(bytes(self.statuses), self.values, self.outputs)

    # -- other threads --------------------------------------------------------------------

    def defer_rest(self) -> None:
        """Give away the members that have not begun."""
        self.claims.revoke(range(self.running + 1, len(self.spec.calls)), Status.DEFERRED)
        self._expired = True

    def look(self) -> None:
        """Do what is due: give away the rest if the budget is used up."""
        # One member at least, or a block would never get on where there is little time.
        if self.running < 0 or self._expired:
            return
        if perf_counter() - self.began > self.spec.budget:
            self.defer_rest()

    def revoke(self, members: Iterable[int], status: Status) -> list[int]:
        """Take members back; returns those that have begun, and so cannot be."""
        return self.claims.revoke(members, status)

    def stop(self, members: Iterable[int]) -> list[int]:
        """Cancel members, begun or not; returns those that will complete, or have."""
        return [m for m in self.revoke(members, Status.CANCELLED) if not self.stop_running(m)]

    def stop_all(self) -> None:
        """Cancel what is not over."""
        self.stop(range(len(self.statuses), len(self.spec.calls)))

    def stop_running(self, member: int) -> bool:
        """Stop a member that has begun; True if it will surely not complete."""
        return False

    def reports(self) -> list[Report]:
        """Tell what has happened since the last call."""
        with self._lock:
            done, running = len(self.statuses), self.running
            rest = b""
            expired = self._expired and not self._told_expired and running >= 0
            if expired:
                self._told_expired = True
                behind = range(running + 1, len(self.spec.calls))
                rest = bytes(max(self.claims.given(member), Status.DONE) for member in behind)
            # What is not sent now is to be had when the block is over. While a member runs
            # that may take some time; and by then little has been returned.
            limit = self.spec.share_limit if running >= 0 else self.spec.inline_limit
            reports = []
            while self._reported < done:
                reports.append(self._report(self._reported, done, limit))
                self._reported += len(reports[-1].statuses)
            if expired or running >= max(done, self._told_running + 1):
                self._told_running = running
                block = self.spec.block
                blank = Report(block, done, b"", (), b"", {}, running, rest, expired)
                reports.append(blank)
            return reports

    def _report(self, start: int, stop: int, limit: int) -> Report:
        values: list[bytes | None] = []
        size = 0
        for value in self.values[start:stop]:
            inline = value is not None and len(value) <= limit
            values.append(value if inline else None)
            if inline:
                size += len(value)  # type: ignore[arg-type]
                if size > _REPORT_BYTES:
                    stop = start + len(values)
                    break
        return Report(
            self.spec.block,
            start,
            bytes(self.statuses[start:stop]),
            values,
            self.durations[start:stop].tobytes(),
            inline_outputs(self.outputs, range(start, stop), limit),
            -1,
            b"",
        )


def inline_outputs(
    outputs: dict[int, tuple[str, str]], members: Sequence[int], limit: int
) -> dict[int, tuple[str, str] | None]:
    """Give what some members wrote; None for more than a limit."""
    found: dict[int, tuple[str, str] | None] = {}
    if outputs:
        for member in members:
            texts = outputs.get(member)
            if texts is not None:
                found[member] = texts if sum(map(_bytes_of, texts)) <= limit else None
    return found


def _bytes_of(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
