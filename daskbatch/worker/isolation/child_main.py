"""The program of a child process: it runs the blocks that its worker gives it.

Does not know what its worker makes of it. It may be killed at any moment: before a member
begins, all that has become of those before it has been written.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import mmap
import os
import select
import signal
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.block import BlockSpec, Limits, Link
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.capture import Capture
from daskbatch.worker.execution.journal import Journal
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.execution.task_context import TaskContext
from daskbatch.worker.isolation.frames import (
    ANNOUNCEMENT,
    FULL,
    OVER,
    READY,
    WAITS,
    Frame,
    pack_frame,
)
from daskbatch.worker.isolation.process_state import FileCapture, ProcessState
from daskbatch.worker.isolation.request import BlockRequest, unpack_order
from daskbatch.worker.isolation.shared_claims import Halted, SharedClaims
from daskbatch.worker.profiling.child_profiles import obey

#: Frames up to this size are put together before they are written.
_SMALL = 1 << 16

_NO_LIMITS = Limits()
_PR_SET_PDEATHSIG = 1

_libc = ctypes.CDLL(None)


class FrameWriter:
    """Writes frames to the worker, now or when a member is about to begin."""

    def __init__(self, pipe: int, bell: socket.socket) -> None:
        self.pipe = pipe
        self._bell = bell
        self._pieces: list[bytes] = []

    def add(self, frame: Frame) -> None:
        self._pieces += pack_frame(frame)

    def flush(self) -> None:
        """Write what there is; returns when the worker can read all of it."""
        pieces = self._pieces
        if not pieces:
            return
        self._pieces = []
        small: list[bytes] = []
        for piece in pieces:
            if len(piece) > _SMALL:
                self._write(b"".join(small))
                small.clear()
                self._write(piece)
            else:
                small.append(piece)
        self._write(b"".join(small))

    def _write(self, data: bytes) -> None:
        done, size = 0, len(data)
        while done < size:
            try:
                done += os.write(self.pipe, memoryview(data)[done:] if done else data)
            except BlockingIOError:
                # The worker looks now and then only, as long as there is no need.
                self._bell.send(FULL)
                poll = select.poll()
                poll.register(self.pipe, select.POLLOUT)
                poll.poll()

    def forget(self) -> None:
        """Let go of the worker: this is a process that a member has forked."""
        os.close(self.pipe)
        self.pipe = -1
        self._bell.close()


class FlushingClaims(SharedClaims):
    """Has what came before written down when a member is begun."""

    def __init__(self, count: int, file: int, frames: FrameWriter) -> None:
        super().__init__(count, file)
        self._frames = frames

    def claim(self, member: int) -> int:
        if not self.is_given(member):
            self._frames.flush()
        return super().claim(member)


class RemoteSlot:
    """The slot of the worker's thread that watches over this process; implements `Slot`."""

    def __init__(self, board: SharedClaims, bell: socket.socket) -> None:
        self._board = board
        self._bell = bell

    def give(self) -> None:
        self._board.waits = True
        self._bell.send(WAITS)

    def ask(self) -> None:
        self._board.waits = False
        self._bell.send(WAITS)

    def has(self) -> bool:
        return self._board.has_slot and not self._board.waits


class ChildRun(BlockRun):
    """A block whose members run in this process, which is there for nothing else."""

    claims: FlushingClaims
    has_process = True

    def __init__(
        self,
        spec: BlockSpec,
        order: BlockRequest,
        claims: FlushingClaims,
        frames: FrameWriter,
        around: ProcessState,
    ) -> None:
        super().__init__(spec, order.inputs, claims)
        self.statuses = bytearray(order.statuses)
        self.values = list(order.values)
        self.outputs = order.outputs
        self._frames = frames
        self._around = around
        self._capture = FileCapture(spec.output_limit, around.files, claims)

    @contextlib.contextmanager
    def _capturing(self) -> Iterator[Capture]:
        yield self._capture

    def _calling(self) -> None:
        self.claims.calling()

    def _again(self) -> None:
        self._capture.collect()
        self.claims.again()

    def _run(self, member: int, link: Link, capture: Capture) -> tuple[int, bytes | None]:
        try:
            limits = self.spec.limits.get(member, _NO_LIMITS)
            if limits.env or limits.cwd is not None:
                try:
                    self._around.enter(limits, self.spec.label(member))
                except (OSError, ValueError) as error:
                    return Status.FAILED, pack_error(error, self.spec.label(member))
            return super()._run(member, link, capture)
        finally:
            self._capture.collect()
            self._around.restore()

    def over(
        self,
        member: int,
        status: int,
        value: bytes | None,
        seconds: float,
        output: tuple[str, str] | None,
    ) -> None:
        super().over(member, status, value, seconds, output)
        self._frames.add(Frame(member, status, seconds, value, output))


class ChildServer:
    """This process, as long as the worker has use for it.

    Parameters
    ----------
    bell : int
        The socket that orders come from, and that attention is asked for by.
    pipe : int
        What frames are written to.
    """

    def __init__(self, bell: int, pipe: int) -> None:
        self._bell = socket.socket(fileno=bell)
        self._frames = FrameWriter(pipe, self._bell)
        self._around = ProcessState()
        self._claims: FlushingClaims | None = None
        os.register_at_fork(after_in_child=self._forget_worker)

    def serve(self) -> None:
        """Carry out orders until there can be no more."""
        self._bell.send(READY)
        while True:
            said, files, _, _ = socket.recv_fds(self._bell, ANNOUNCEMENT.size, 2)
            if len(said) < ANNOUNCEMENT.size or len(files) < 2:
                return
            board, file = files
            (size,) = ANNOUNCEMENT.unpack(said)
            with mmap.mmap(file, size, access=mmap.ACCESS_READ) as data:
                os.close(file)
                order = unpack_order(data)
            try:
                self._run(order, board)
            except Halted:
                # It will be killed, or the worker goes and this ends with it.
                continue
            del order
            self._claims = None
            self._bell.send(OVER)

    def _run(self, order: BlockRequest, board: int) -> None:
        sys.path[:] = order.path
        obey(order.profile)
        spec: BlockSpec = pickling.loads(order.payload)
        limits = spec.limits
        if order.retries is not None:
            start = len(order.statuses)
            again = limits.get(start, _NO_LIMITS)._replace(retries=order.retries)
            limits = {**limits, start: again}
        spec = spec._replace(limits=limits, budget=order.budget, share_limit=order.share_limit)
        self._claims = FlushingClaims(len(spec.calls), board, self._frames)
        run = ChildRun(spec, order, self._claims, self._frames, self._around)
        if order.host is not None:
            topic, key, scheduler, security = order.host
            run.host = TaskContext(
                RemoteSlot(self._claims, self._bell), topic, key, scheduler, security
            )
        if order.journal is not None:
            path, limit = order.journal
            run.journal = Journal(Path(path), limit, (spec.topic, spec.block))
        run()
        self._frames.flush()
        if run.journal is not None:
            run.journal.close()

    def _forget_worker(self) -> None:
        """Have nothing to do with the worker any more, in a process that a member forked."""
        self._frames.forget()
        if self._claims is not None:
            self._claims.forget()


def main(bell: int, pipe: int, parent: int) -> NoReturn:
    """Be a child.

    Parameters
    ----------
    bell, pipe : int
        As `ChildServer` takes them.
    parent : int
        The process that has started this one.
    """
    code = 1
    try:
        _end_with(parent)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        child = ChildServer(bell, pipe)
        faulthandler.enable(2)
        child.serve()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        with contextlib.suppress(Exception):
            sys.stderr.flush()
        # Threads that members have left behind would be waited for.
        os._exit(code)


def _end_with(parent: int) -> None:
    """Have the system kill this process when the thread ends that has started it."""
    with contextlib.suppress(AttributeError, OSError):
        if sys.platform == "linux":
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)
