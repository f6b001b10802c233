"""Runs one call on all ranks of a set, and decides how the job has ended.

The thread of the job uses it, and waits here for all ranks at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from time import perf_counter
from typing import Any, NamedTuple

from daskbatch.errors import TaskTimeout
from daskbatch.serialization.exceptions import PackedError
from daskbatch.worker.execution.measures import Usage, sum_usage
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.execution.task_context import WorkerSlot
from daskbatch.worker.mpi.messages import MessageKind, RankMessage
from daskbatch.worker.mpi.output_segments import OutputSegment
from daskbatch.worker.mpi.rank_output import RankOutput
from daskbatch.worker.mpi.rank_set import JobStopped, Rank, RankSet
from daskbatch.worker.mpi.request import MAX_INLINE_BYTES, Layout, RankRequest

#: How much of a stream is read with one system call.
_READ_BYTES = 1 << 16

#: How many times a stream of a rank that was ended is read at most.
_MAX_FINAL_READS = 64

#: After a failure: how long others may take to show that they have failed before, or how.
_SETTLE_SECONDS = 0.05
_EXIT_CODE_SECONDS = 1.0

#: How often a job whose ranks have finished waiting looks for a free slot.
_SLOT_POLL_SECONDS = 0.005

#: `poll` does not accept much longer times.
_MAX_POLL_SECONDS = 86400.0


class RankFailure(NamedTuple):
    """The failure of a rank.

    Parameters
    ----------
    rank : Rank
        The rank.
    packed : bytes, optional
        The packed exception, if it has raised one; else it has ended.
    """

    rank: Rank
    packed: bytes | None


class RankCrash(Exception):
    """A rank has ended while it ran a call.

    Parameters
    ----------
    how : str
        Which rank, and how it has ended.
    code : int, optional
        The exit code; negative for a signal.
    """

    def __init__(self, how: str, code: int | None) -> None:
        super().__init__(how)
        self.code = code


class RankJob:
    """One call on all ranks of a set. Used by the thread of the job.

    Parameters
    ----------
    ranks : RankSet
        The ranks.
    slot : WorkerSlot, optional
        The slots of the job, which are released while a rank waits.
    output : RankOutput
        Receives what the ranks write.
    """

    def __init__(self, ranks: RankSet, slot: WorkerSlot | None, output: RankOutput) -> None:
        self._set = ranks
        self._slot = slot
        self._segments = [
            (OutputSegment(ranks.mark, out), OutputSegment(ranks.mark, err))
            for out, err in zip(output.stdout, output.stderr, strict=True)
        ]
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], None]] = {}
        #: The ranks to which something remains to be sent.
        self._sending: set[Rank] = set()
        #: The packed values, by rank.
        self._values: dict[int, memoryview] = {}
        self._use_mpi: list[bool] = []
        #: What the call has used, by rank.
        self._usage: dict[int, Usage] = {}
        self._left_processes = self._is_unclean = False
        #: How many ranks have found that the next job may use them.
        self.checked = 0
        self._failures: list[RankFailure] = []
        #: The ranks that wait with the slots released, and how often each has waited.
        self._waiting: dict[int, int] = {}
        #: The ranks that want to continue once the job has its slots again.
        self._resuming: dict[int, int] = {}
        self._released = False
        #: The data of the call, and what the ranks of another host do to get it.
        self._data = b""
        self._request_fields: tuple[Any, ...] = ()
        self._followers: dict[str, list[Rank]] = {}

    def run(
        self, request: RankRequest, layout: Layout, stop: int, timeout: float | None
    ) -> list[memoryview]:
        """Run the call; return the packed values of the ranks, in their order.

        Raises
        ------
        PackedError
            A rank has raised an exception.
        RankCrash
            A rank has ended.
        TaskTimeout
            The call has taken longer than `timeout`.
        JobStopped
            `stop` has become readable.
        """
        began = perf_counter()
        deadline = None if timeout is None else began + timeout
        self._register(stop)
        self._send(request, layout)
        while not self._is_over():
            remaining = None if deadline is None else deadline - perf_counter()
            if remaining is not None and remaining <= 0:
                raise TaskTimeout(
                    f"it ran for longer than its timeout of {timeout:g} s: its ranks were ended "
                    f"after {perf_counter() - began:.1f} s"
                )
            if self._wait(remaining, stop):
                raise JobStopped
            self._exchange_slot()
            if self._failures:
                self._settle(stop)
                raise self._error()
        if any(rank.aborted is not None for rank in self._set.ranks):
            # MPICH's `MPI_Abort` may return before the launcher ends the ranks.
            raise self._error()
        return [self._values[number] for number in range(len(self._set.ranks))]

    def usage(self) -> Usage:
        """Return what the call has used on all ranks that have reported it."""
        first = self._usage.get(0)
        return sum_usage(self._usage.values(), None if first is None else first.pid)

    @property
    def uses_mpi(self) -> bool:
        """Whether the ranks use MPI, so that they must check what the call has left."""
        return any(self._use_mpi)

    @property
    def may_be_reused(self) -> bool:
        """Whether the next job may run in the ranks, if their check finds nothing.

        They cannot check if only some of them use MPI. And a process that the call has started and
        left must not disturb the next one.
        """
        return not (self._left_processes or self._is_unclean) and len(set(self._use_mpi)) == 1

    # -- sending --------------------------------------------------------------------------

    def _send(self, request: RankRequest, layout: Layout) -> None:
        """Send the call to all ranks; a large one once to each host."""
        fields = self._request_fields = (tuple(request),)
        local = [rank for rank in self._set.ranks if rank.is_local]
        remote = [rank for rank in self._set.ranks if not rank.is_local]
        is_small = request.size <= MAX_INLINE_BYTES
        if is_small or remote:
            self._data = layout.joined()
        if is_small:
            for rank in self._set.ranks:
                rank.post(MessageKind.RUN, (*fields, "inline"), self._data)
            return
        if local:
            file = layout.write()
            try:
                for rank in local:
                    rank.post(MessageKind.RUN, (*fields, "file"), file=file)
            finally:
                os.close(file)
        leaders: dict[str, Rank] = {}
        for rank in remote:
            if leaders.setdefault(rank.host, rank) is rank:
                self._followers[rank.host] = []
                rank.post(MessageKind.RUN, (*fields, "share"), self._data)
                self._watch_sending(rank)
            else:
                self._followers[rank.host].append(rank)

    def _watch_sending(self, rank: Rank) -> None:
        """Have the rest of a message sent as soon as the socket takes it."""
        unsent = rank.flush()
        if unsent is (rank in self._sending):
            return
        (self._sending.add if unsent else self._sending.discard)(rank)
        self._poll.modify(rank.sock, select.POLLIN | (select.POLLOUT if unsent else 0))

    # -- waiting --------------------------------------------------------------------------

    def _register(self, stop: int) -> None:
        self._poll.register(stop, select.POLLIN)
        for rank, segments in zip(self._set.ranks, self._segments, strict=True):
            assert rank.supervisor is not None
            self._handle(rank.sock.fileno(), lambda rank=rank: self._read_rank(rank))  # type: ignore[misc]
            self._handle(
                rank.supervisor.sock.fileno(),
                lambda rank=rank: self._read_supervisor(rank),  # type: ignore[misc]
            )
            for stream, segment in zip(rank.streams, segments, strict=True):
                self._handle(
                    stream,
                    lambda s=stream, g=segment: self._read_stream(s, g),  # type: ignore[misc]
                )

    def _handle(self, file: int, handler: Callable[[], None]) -> None:
        self._poll.register(file, select.POLLIN)
        self._handlers[file] = handler

    def _forget(self, file: int) -> None:
        if self._handlers.pop(file, None) is not None:
            self._poll.unregister(file)

    def _wait(self, seconds: float | None, stop: int) -> bool:
        """Wait for messages and act on them; return whether the job is to be stopped."""
        if self._resuming:
            seconds = _SLOT_POLL_SECONDS if seconds is None else min(seconds, _SLOT_POLL_SECONDS)
        limit = None if seconds is None else min(seconds, _MAX_POLL_SECONDS) * 1000 + 1
        stopped = False
        for file, _ in self._poll.poll(limit):
            if file == stop:
                stopped = True
            elif (handler := self._handlers.get(file)) is not None:
                handler()
        return stopped

    def _is_over(self) -> bool:
        return len(self._values) == len(self._set.ranks) and all(
            out.complete and err.complete for out, err in self._segments
        )

    def _read_stream(self, stream: int, segment: OutputSegment) -> None:
        try:
            data = os.read(stream, _READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            segment.add(data)
        else:
            self._forget(stream)

    def _read_rank(self, rank: Rank) -> None:
        self._watch_sending(rank)
        for message in rank.read():
            self._act(rank, message)
        if rank.closed:
            self._forget(rank.sock.fileno())
            self._failures.append(RankFailure(rank, None))

    def _read_supervisor(self, rank: Rank) -> None:
        assert rank.supervisor is not None
        if not rank.read_supervisor():
            self._forget(rank.supervisor.sock.fileno())
        if rank.exit_code is not None and not any(f.rank is rank for f in self._failures):
            self._failures.append(RankFailure(rank, None))

    def _act(self, rank: Rank, message: RankMessage) -> None:
        fields = message.fields
        if message.kind == MessageKind.OVER:
            status, uses_mpi, left_processes, *used = fields
            self._usage[rank.number] = Usage(*used)
            self._use_mpi.append(uses_mpi)
            self._left_processes |= left_processes
            if status == Status.DONE:
                self._values[rank.number] = message.body
                if rank.is_local:
                    # What it has written before this message is in the pipes.
                    self._finish_streams(rank)
            else:
                self._failures.append(RankFailure(rank, bytes(message.body)))
        elif message.kind == MessageKind.WAITING:
            begins, count = fields
            if begins:
                self._resuming.pop(rank.number, None)
                self._waiting[rank.number] = count
            else:
                self._waiting.pop(rank.number, None)
                self._resuming[rank.number] = count
        elif message.kind == MessageKind.CHECKED:
            (clean,) = fields
            self.checked += clean
            self._is_unclean |= not clean
        elif message.kind == MessageKind.ABORTING:
            (rank.aborted,) = fields
        elif message.kind == MessageKind.SHARED:
            (path,) = fields
            for follower in self._followers.pop(rank.host, ()):
                follower.post(MessageKind.RUN, (*self._request_fields, path))
        elif message.kind == MessageKind.NEED_DATA:
            rank.post(MessageKind.DATA, (), self._data)
            self._watch_sending(rank)

    # -- the slots ------------------------------------------------------------------------

    def _exchange_slot(self) -> None:
        """Release the slots while a rank waits, and have ranks continue.

        While one rank waits, another one that has finished waiting continues at once: what the
        first one waits for may depend on it.
        """
        slot = self._slot
        if self._waiting:
            if not self._released:
                self._released = True
                if slot is not None:
                    slot.release()
        elif self._resuming and self._released:
            if slot is not None:
                slot.request()
            self._released = False
        if self._resuming and (self._released or slot is None or slot.is_held()):
            for number, count in self._resuming.items():
                self._set.ranks[number].post(MessageKind.SLOT, (count,))
            self._resuming.clear()

    # -- failures -------------------------------------------------------------------------

    def _settle(self, stop: int) -> None:
        """Wait a moment: another rank may have ended, and so have caused the first failure."""
        raised = self._failures[0].packed is not None
        until = perf_counter() + (_SETTLE_SECONDS if raised else _EXIT_CODE_SECONDS)
        while (remaining := until - perf_counter()) > 0:
            ended = [failure.rank for failure in self._failures if failure.packed is None]
            if any(rank.exit_code is not None for rank in ended):
                return
            if not ended and len(self._use_mpi) == len(self._set.ranks):
                return
            if self._wait(remaining, stop):
                return

    def _error(self) -> Exception:
        """Return the error of the job, which the first failure decides."""
        ended = [failure.rank for failure in self._failures if failure.packed is None]
        aborted = [rank for rank in self._set.ranks if rank.aborted is not None]
        if not ended and not aborted:
            packed = self._failures[0].packed
            assert packed is not None
            return PackedError(packed)
        by_itself = [rank for rank in ended if rank.exit_code is not None]
        rank = (aborted or by_itself or ended)[0]
        code = rank.exit_code
        if rank.aborted is not None:
            code = rank.aborted
            how = f"called MPI.Comm.Abort({code})"
        elif code is None:
            code = self._set.launcher_code(_EXIT_CODE_SECONDS)
            how = "has ended with all that its launcher has started"
            if code is not None:
                how += f", which ended with exit code {code}"
        elif code < 0:
            how = f"was ended by {_signal_name(-code)}"
        else:
            how = f"ended its interpreter with exit code {code}"
        place = f"rank {rank.number} of {len(self._set.ranks)} on {rank.host}"
        return RankCrash(f"{place} {how}", code)

    def finish_output(self) -> None:
        """Add what can still be read from the ranks, after these have ended."""
        for rank in self._set.ranks:
            self._finish_streams(rank)

    def _finish_streams(self, rank: Rank) -> None:
        """Read what a rank has written; not for ever, since a process that it left may write."""
        for stream, segment in zip(rank.streams, self._segments[rank.number], strict=True):
            with contextlib.suppress(OSError):
                for _ in range(_MAX_FINAL_READS):
                    data = os.read(stream, _READ_BYTES)
                    if not data:
                        break
                    segment.add(data)
            segment.end()


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
