"""Runs the blocks that a worker requests, in a child process: its program.

See the package's docstring for what each part writes and reads. The process may be killed at any
moment. So before a member begins, the outcomes of all members before it have been written.
"""

from __future__ import annotations

import contextlib
import faulthandler
import mmap
import os
import select
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

from daskbatch.forking import after_fork, generation
from daskbatch.memory import kept_mappings
from daskbatch.memory.arena import use_arena
from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker import unreachable
from daskbatch.worker.execution import handover, surroundings
from daskbatch.worker.execution.block import NO_LIMITS, BlockSpec, Link
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.execution.initialized_function import after_initializer
from daskbatch.worker.execution.journal import Journal
from daskbatch.worker.execution.measures import (
    UNKNOWN_CPU,
    MemberDetails,
    process_cpu,
)
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.execution.outcome_log import OutcomeLog
from daskbatch.worker.execution.task_context import TaskContext
from daskbatch.worker.isolation.control import BLOCK_OVER, READY, REQUEST_SIZE, WAITING_CHANGED
from daskbatch.worker.isolation.frames import NOTICE, Frame, FrameWriter
from daskbatch.worker.isolation.own_memory import OwnMemory
from daskbatch.worker.isolation.process_state import FileCapture, ProcessState
from daskbatch.worker.isolation.request import BlockRequest, unpack_request
from daskbatch.worker.isolation.shared_claims import BlockHalted, SharedClaims
from daskbatch.worker.processes.parent_death import end_with_parent
from daskbatch.worker.profiling.child_server import run_wanted


class FlushingClaims(SharedClaims):
    """Claims that write the frames of all earlier members before a member begins.

    The thread that runs the block claims; see `SharedClaims` for other threads.
    """

    def __init__(self, count: int, file: int, frames: FrameWriter) -> None:
        super().__init__(count, file)
        self._frames = frames

    def claim(self, member: int) -> int:
        if not self.has_status(member):
            self._frames.flush()
        self.kept_bytes = kept_mappings.kept_bytes()
        return super().claim(member)


class RemoteSlot:
    """The slot of the worker's thread that watches this process; a `WorkerSlot`.

    Any thread of the running member may use it.
    """

    def __init__(self, claims: SharedClaims, control: socket.socket) -> None:
        self._claims = claims
        self._control = control

    def release(self) -> None:
        self._claims.is_waiting = True
        self._control.send(WAITING_CHANGED)

    def request(self) -> None:
        self._claims.is_waiting = False
        self._control.send(WAITING_CHANGED)

    def is_held(self) -> bool:
        return self._claims.has_slot and not self._claims.is_waiting


class SendingLog(OutcomeLog):
    """A log that also sends each outcome to the worker. Used by the thread of the block."""

    __slots__ = ("_frames",)

    def __init__(self, request: BlockRequest, frames: FrameWriter) -> None:
        super().__init__(request.statuses, request.values, request.outputs)
        self._frames = frames

    def record(
        self,
        member: int,
        status: int,
        value: bytes | None,
        seconds: float,
        output: tuple[str, str] | None,
        ended: float = 0.0,
        cpu_seconds: float = UNKNOWN_CPU,
        details: MemberDetails | None = None,
    ) -> None:
        super().record(member, status, value, seconds, output)
        frame = Frame(member, status, seconds, value, output, ended, cpu_seconds)
        if details is not None:
            memory = -1 if details.max_memory is None else details.max_memory
            frame = frame._replace(max_memory=memory, attempts=details.attempts)
        self._frames.add(frame)


class ChildRun(BlockRun):
    """A block whose members run in this process, which runs nothing else."""

    claims: FlushingClaims
    owns_process = True
    _cpu_clock = staticmethod(process_cpu)

    def __init__(
        self,
        spec: BlockSpec,
        request: BlockRequest,
        claims: FlushingClaims,
        frames: FrameWriter,
        process_state: ProcessState,
        memory: OwnMemory,
    ) -> None:
        self._memory = memory
        super().__init__(spec, request.inputs, claims, SendingLog(request, frames))
        self._frame_writer = frames
        self._process_state = process_state
        self._capture = FileCapture(spec.output_limit, process_state.files, claims)

    @contextlib.contextmanager
    def _capturing(self) -> Iterator[Capture]:
        yield self._capture

    def _details(self, member: int, seconds: float) -> MemberDetails:
        details = super()._details(member, seconds)
        peak = self._memory.peak_of(seconds)
        if peak is not None:
            details = details._replace(max_memory=max(peak, details.max_memory or 0))
        return details

    def notice(self, member: int, kind: str, paths: tuple[str, ...]) -> None:
        data = pickling.dumps_plain((kind, paths))
        self._frame_writer.add(Frame(member, NOTICE, 0.0, data, None))

    def _before_call(self) -> None:
        self.claims.mark_called()

    def _call(
        self, member: int, function: Callable[..., Any], args: Any, kwargs: Mapping[str, Any]
    ) -> Any:
        try:
            return super()._call(member, function, args, kwargs)
        finally:
            if not self._process_state.has_files() and self._process == generation():
                # To write anything now could write to a file of the member, which has the number.
                self.claims.has_closed_files = True
                os._exit(1)

    def _before_retry(self) -> None:
        self._capture.collect()
        self.claims.begin_retry()

    def _run(self, member: int, link: Link, capture: Capture) -> tuple[int, bytes | None]:
        try:
            limits = self.spec.limits.get(member, NO_LIMITS)
            if limits.cwd is None and self.spec.directory is not None:
                limits = limits._replace(cwd=self.spec.directory)
            if limits.env or limits.cwd is not None:
                try:
                    self._process_state.enter(limits, self.spec.label(member))
                except (OSError, ValueError) as error:
                    return Status.FAILED, pack_error(
                        error, self.spec.label(member), heading=self.place(member, 0)
                    )
            return super()._run(member, link, capture)
        finally:
            self._capture.collect()
            self._process_state.restore()
            if found := unreachable.take_found():
                data = pickling.dumps_plain((unreachable.NOTICE_KIND, found))
                self._frame_writer.add(Frame(member, NOTICE, 0.0, data, None))


class ChildServer:
    """Serves the requests of the worker, one after another, in the main thread.

    Parameters
    ----------
    control : int
        The descriptor of the control socket: requests arrive there, and messages are sent.
    pipe : int
        The write end of the frames pipe.
    """

    def __init__(self, control: int, pipe: int) -> None:
        self._control = socket.socket(fileno=control)
        self._control.settimeout(None)
        self._frames = FrameWriter(pipe, self._control)
        self._process_state = ProcessState()
        self._memory = OwnMemory()
        after_initializer.append(self._process_state.settings.record)
        self._claims: FlushingClaims | None = None
        #: The journal of the last block: most blocks are of the same slot.
        self._journal: Journal | None = None
        #: The run whose block was halted.
        self._halted: ChildRun | None = None
        after_fork(self._close_in_forked_process)

    def serve(self) -> None:
        """Serve requests until the worker closes the socket."""
        self._control.send(READY)
        outcomes: BlockResult | None = None
        while True:
            while handover.has_offers() and not self._has_message():
                handover.drop_old()
            message, files, _, _ = socket.recv_fds(self._control, REQUEST_SIZE.size, 2)
            if len(message) < REQUEST_SIZE.size or len(files) < 2:
                return
            outcomes = None
            claims, file = files
            (size,) = REQUEST_SIZE.unpack(message)
            with mmap.mmap(file, size, access=mmap.ACCESS_READ) as data:
                os.close(file)
                request = unpack_request(data)
            try:
                # The outcomes are kept until the next request: by then the worker holds the
                # values that this process has stored.
                outcomes = self._run(request, claims)  # noqa: F841
            except BlockHalted:
                # The worker kills this process, or closes the socket when the worker ends.
                continue
            del request
            self._claims = None
            self._control.send(BLOCK_OVER)

    def _has_message(self) -> bool:
        """Wait a little for the next request; returns whether it is there."""
        # There is no thread that drops what is kept for the next task: a task may fork.
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        return bool(poll.poll(handover.INTERVAL_SECONDS * 1000))

    def _run(self, request: BlockRequest, claims: int) -> BlockResult:
        """Run a block; `claims` is the descriptor of the memory of its claims."""
        sys.path[:] = request.path
        unreachable.adopt(request.unreachable or {})
        run_wanted(request.profile)
        spec: BlockSpec = pickling.loads(request.payload)
        limits, tried = spec.limits, {}
        if request.single:
            spec = spec._replace(calls=spec.calls[: len(request.statuses) + 1])
        if request.retries is not None:
            start = len(request.statuses)
            first = limits.get(start, NO_LIMITS)
            tried[start] = first.retries - request.retries
            limits = {**limits, start: first._replace(retries=request.retries)}
        spec = spec._replace(limits=limits, budget=request.budget, share_limit=request.share_limit)
        if surroundings.apply(spec.surroundings):
            self._process_state.keep_environment()
        self._claims = FlushingClaims(len(spec.calls), claims, self._frames)
        run = ChildRun(spec, request, self._claims, self._frames, self._process_state, self._memory)
        run.tried = tried
        if request.context is not None:
            slot = RemoteSlot(self._claims, self._control)
            run.context = TaskContext(slot, *request.context)
            run.context.allocation = request.allocation
        if request.journal is not None:
            run.journal = self._journal_of(request.journal, (spec.topic, spec.block))
        try:
            outcomes = run()
        except BlockHalted:
            # The last member may have ended in time: its value must be there for the worker.
            self._halted = run
            raise
        self._frames.flush()
        run.slow_arguments = None
        return outcomes

    def _journal_of(self, location: tuple[str, int, int], block: tuple[str, int]) -> Journal:
        """Return the journal of a slot of the worker, which has begun a block in it.

        Parameters
        ----------
        location : (str, int, int)
            As `Journal.location` returns it. No two journals of a worker have the same path.
        block : (str, int)
            The topic and the number of the block.
        """
        path, limit, first_member = location
        if self._journal is not None:
            if self._journal.location()[0] == path:
                self._journal.continue_block(block, first_member)
                return self._journal
            self._journal.close()
        self._journal = Journal(Path(path), limit, block, first_member)
        return self._journal

    def _close_in_forked_process(self) -> None:
        """Close what connects to the worker, in a process that a member has forked."""
        self._frames.close()
        self._control.close()
        if self._claims is not None:
            self._claims.close_in_forked_process()


def main(
    control: int,
    pipe: int,
    parent: int,
    arena: tuple[tuple[int, int], bytes, int, int] | None = None,
) -> NoReturn:
    """Run a child process, to its end.

    Parameters
    ----------
    control, pipe : int
        As for a `ChildServer`.
    parent : int
        The process that has started this one.
    arena : tuple, optional
        The parameters of `use_arena`.
    """
    code = 1
    try:
        end_with_parent(parent)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if arena is not None:
            use_arena(*arena)
        server = ChildServer(control, pipe)
        faulthandler.enable(2)
        server.serve()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        # Not by a return: the interpreter would wait for threads that members have started.
        os._exit(code)
