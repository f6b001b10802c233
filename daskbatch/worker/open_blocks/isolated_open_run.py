"""Runs an open block whose members run in child processes.

Each member is a block of its own for a child: an `IsolatedRun` with one member. So its time limit,
its attempts, its output, its measures, its entry in the journal, and the end of its process are as
in other blocks. What concerns the open block, such as its claims, stays in the worker.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from daskbatch.memory.shared_buffer import by_reference
from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.block import BlockSpec, Link
from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.execution.measures import MemberBegin, RunElsewhere
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.execution.output_stream import OutputPart
from daskbatch.worker.isolation.fallback_run import not_run
from daskbatch.worker.isolation.isolated_run import IsolatedRun
from daskbatch.worker.open_blocks.messages import NewMembers
from daskbatch.worker.open_blocks.open_run import OpenRun


class _ChildOutput(Capture):
    """What a member has written in its child. Used by the thread that runs the block."""

    __slots__ = ("_texts",)

    def __init__(self) -> None:
        super().__init__(0)
        self._texts = ("", "")

    def set(self, texts: tuple[str, str]) -> None:
        """Keep what a member has written to stdout and stderr."""
        self._texts = texts
        self.stdout.size, self.stderr.size = map(len, texts)

    def texts(self) -> tuple[str, str]:
        return self._texts

    def clear(self) -> None:
        self.set(("", ""))


class IsolatedOpenRun(OpenRun):
    """An open block whose members run in child processes. `Progress` says what threads may call.

    Parameters
    ----------
    spec, inputs
        As for an `OpenRun`.
    """

    def __init__(self, spec: BlockSpec, inputs: Sequence[Any]) -> None:
        # The thread of the block does not enter the directory of functions; the children do.
        super().__init__(spec._replace(directory=None), inputs)
        self._directory = spec.directory
        self._surroundings = spec.surroundings
        self._child_output = _ChildOutput()
        #: Held while the run of a member begins and ends, and while it is told to stop.
        self._inner_lock = threading.Lock()
        #: The member that runs now, and its run.
        self._inner: tuple[int, IsolatedRun] | None = None
        #: The last member that is over, perhaps not recorded yet; and those that were cancelled.
        self._over = -1
        self._stopped: set[int] = set()
        #: A member that the worker, which leaves, does not begin.
        self._given_back = -1

    #: A child does that once it begins a member, and records the outcome before its end is known
    #: here: a worker may be killed at any moment.
    journals_members = False

    # -- the thread that runs the block ---------------------------------------------------

    @contextmanager
    def _capturing(self) -> Iterator[Capture]:
        yield self._child_output

    def _add(self, new: NewMembers) -> None:
        if new.surroundings is not None:
            self._surroundings = new.surroundings
        super()._add(new)

    def _run(self, member: int, link: Link, capture: Capture) -> tuple[int, bytes | None]:
        with self._inner_lock:
            if member in self._stopped or member == self._given_back:
                self._over = member
                self._elsewhere = RunElsewhere()
                return Status.CANCELLED if member in self._stopped else Status.DEFERRED, None
            try:
                run = self._run_of(member, link)
            except Exception as error:
                self._over = member
                label = self.spec.label(member)
                return Status.FAILED, pack_error(
                    not_run(label, error), label, heading=self.place(member, 0)
                )
            self._inner = member, run
        if self.journal is not None:
            self.journal.first_member = member
        try:
            result = run()
        finally:
            if self.journal is not None:
                self.journal.first_member = 0
            with self._inner_lock:
                self._inner = None
                self._over = member
        for notice in run.take_notices():
            self.notice(member, notice.kind, notice.paths)
        if run.interrupted is not None:
            self.interrupted = member
        if 0 in result.outputs:
            self._child_output.set(result.outputs[0])
        log = run.log
        self._elsewhere = RunElsewhere(
            *(log.durations[0], log.ended[0], log.cpu_seconds[0], log.details.get(0)),
            journaled=True,
        )
        return result.statuses[0], result.values[0]

    def _run_of(self, member: int, link: Link) -> IsolatedRun:
        """Return the run of one member in a child."""
        spec = self.spec
        index, data = spec.calls[member]
        values = tuple(self._part(each) for each in link.values)
        limits, declared = spec.limits.get(member), spec.declared.get(member)
        alone = spec._replace(
            functions=[spec.functions[index]],
            calls=[(0, data)],
            labels=[spec.name(member)],
            links={0: Link(values=values, buffers=link.buffers)},
            limits={} if limits is None else {0: limits},
            declared={} if declared is None else {0: declared},
            surroundings=self._surroundings,
            open=False,
            directory=self._directory,
        )
        with by_reference():
            payload = pickling.dumps(alone)
        run = IsolatedRun(alone, (), payload)
        run.context, run.journal = self.context, self.journal
        return run

    # -- other threads --------------------------------------------------------------------

    def tick(self) -> None:
        super().tick()
        if (inner := self._inner) is not None:
            inner[1].tick()

    def stop_running(self, member: int) -> bool:
        with self._inner_lock:
            if member in self._stopped:
                return True
            if member <= self._over:
                return False
            if self._inner is not None:
                run = self._inner[1]
                is_interrupted = self.interrupted == member
                if is_interrupted:
                    run.interrupted = 0  # no outcome of it is recorded
                if run.stop([0]):
                    if is_interrupted:
                        run.interrupted = None
                    return False
            self._stopped.add(member)
            return True

    def interrupt(self) -> bool:
        with self._inner_lock:
            if self._inner is None:
                if self.running > self._over:
                    self._given_back = self.running
                return False
            if not self._inner[1].revoke([0], Status.DEFERRED):
                return False  # its child has not begun it, and will not: it runs elsewhere
        return super().interrupt()

    def read_output(self, member: int, name: str, position: int, most: int) -> OutputPart | None:
        inner = self._inner
        if inner is None or inner[0] != member:
            return None
        part = inner[1].read_output(0, name, position, most)
        return part if self._inner is inner else None

    def _begun_member(self) -> int:
        inner = self._inner
        return inner[0] if inner is not None and inner[1].has_begun else -1

    def begin_of(self, member: int) -> MemberBegin:
        inner = self._inner
        if inner is None or inner[0] != member:
            return super().begin_of(member)
        return inner[1].begin_of(0)
