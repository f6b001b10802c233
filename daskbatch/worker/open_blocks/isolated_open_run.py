"""Runs an open block whose members run in child processes.

Each member is a block of its own for a child: an `IsolatedRun` with one member. So its time limit,
its attempts, its output, and the end of its process are what they are in other blocks. All that
concerns the open block, such as its claims and its journal, stays in the worker.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter
from typing import Any

from daskbatch.memory.shared_buffer import by_reference
from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.block import BlockSpec, Link
from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.execution.measures import MemberBegin, Usage
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
        #: The run of the member that runs now.
        self._inner: IsolatedRun | None = None
        #: The last member that is over, perhaps not recorded yet; and those that were cancelled.
        self._over = -1
        self._stopped: set[int] = set()

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
            if member in self._stopped:
                self._over = member
                return Status.CANCELLED, None
            try:
                self._inner = run = self._run_of(member, link)
            except Exception as error:
                self._over = member
                label = self.spec.label(member)
                return Status.FAILED, pack_error(
                    not_run(label, error), label, heading=self.place(member, 0)
                )
        began = perf_counter()
        try:
            result = run()
        finally:
            with self._inner_lock:
                self._inner = None
                self._over = member
        for notice in run.take_notices():
            self.notice(member, notice.kind, notice.paths)
        if run.interrupted is not None:
            self.interrupted = member
        if 0 in result.outputs:
            self._child_output.set(result.outputs[0])
        details = run.log.details.get(0)
        if details is not None:
            self.add_usage(Usage(run.log.cpu_seconds[0], details.max_memory, details.pid))
            self._retried = details.attempts - 1
        # What it took besides, such as the start of a child, is not the member's.
        self.preparation += max(0.0, perf_counter() - began - run.log.durations[0])
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
            journaled=False,
            surroundings=self._surroundings,
            open=False,
            directory=self._directory,
        )
        with by_reference():
            payload = pickling.dumps(alone)
        run = IsolatedRun(alone, (), payload)
        run.context = self.context
        return run

    # -- other threads --------------------------------------------------------------------

    def tick(self) -> None:
        super().tick()
        if (run := self._inner) is not None:
            run.tick()

    def stop_running(self, member: int) -> bool:
        with self._inner_lock:
            if member in self._stopped:
                return True
            if member <= self._over:
                return False
            if self._inner is not None and self._inner.stop([0]):
                return False
            self._stopped.add(member)
            return True

    def read_output(self, member: int, name: str, position: int, most: int) -> OutputPart | None:
        run = self._inner
        if run is None or self.running != member:
            return None
        part = run.read_output(0, name, position, most)
        return part if self._inner is run else None

    def _begun_member(self) -> int:
        run = self._inner
        return self.running if run is not None and run.has_begun else -1

    def begin_of(self, member: int) -> MemberBegin:
        run = self._inner
        return super().begin_of(member) if run is None else run.begin_of(0)
