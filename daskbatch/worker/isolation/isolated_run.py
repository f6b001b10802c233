"""Runs a block in a child process, and ends members that are late or cancelled by killing it.

See the package's docstring for what each part writes and reads. If the child dies, or has to be
killed, another one continues behind the member that ran.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from enum import Enum
from threading import Lock
from time import perf_counter
from typing import Any

from daskbatch.memory.shared_buffer import by_reference
from daskbatch.serialization import pickling, stored_value
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker import unreachable
from daskbatch.worker.execution.block import NO_LIMITS, BlockSpec
from daskbatch.worker.execution.ending import ended_with_worker
from daskbatch.worker.execution.journal import NOT_MEASURED
from daskbatch.worker.execution.measures import MemberDetails
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.execution.outcome_log import OutcomeLog
from daskbatch.worker.execution.output_stream import OutputPart
from daskbatch.worker.execution.progress import Progress
from daskbatch.worker.inproc_scheduler import address_for_children
from daskbatch.worker.isolation.child_pool import ChildPool, get_child_pool
from daskbatch.worker.isolation.child_process import ChildLost, ChildProcess
from daskbatch.worker.isolation.control import BLOCK_OVER, PIPE_FULL
from daskbatch.worker.isolation.deadline import MemberDeadline
from daskbatch.worker.isolation.fallback_run import FallbackRun, crashed, timed_out
from daskbatch.worker.isolation.frames import NOTICE
from daskbatch.worker.isolation.output_files import OutputFiles
from daskbatch.worker.isolation.request import make_request, pack_request, without_setup
from daskbatch.worker.isolation.shared_claims import SharedClaims
from daskbatch.worker.processes.tree_usage import TreeUsage, read_tree
from daskbatch.worker.profiling import child_profiles

#: While outcomes arrive in quick succession, the pipe is read at intervals, and not for each of
#: them: the shortest and the longest interval.
_MIN_READ_INTERVAL_SECONDS, _MAX_READ_INTERVAL_SECONDS = 0.002, 0.05

#: How many children in a row may end before they begin a member.
_MAX_FAILED_STARTS = 3

#: How much of the output of the last of them the message contains.
_MAX_MESSAGE_CHARACTERS = 2000

#: How often a member that has finished waiting looks for a free slot.
_SLOT_POLL_SECONDS = 0.005

#: How often the memory of a child is measured.
_MEMORY_INTERVAL_SECONDS = 0.1


class _End(Enum):
    """Why the worker no longer waits for a child to run a block."""

    BLOCK_OVER = 1
    #: A member was cancelled.
    STOPPED = 2
    #: It has ended, or is about to end.
    GONE = 3
    #: The time limit of the running member has passed.
    LATE = 4


class IsolatedRun(Progress):
    """A block whose members are run one after another by a child process.

    `Progress` says what other threads may call.

    Parameters
    ----------
    spec, inputs
        As for a `BlockRun`.
    payload : bytes, optional
        The pickled block; else it is pickled here.
    pool : ChildPool, optional
        Where children come from; else the pool of this process.
    """

    claims: SharedClaims

    def __init__(
        self,
        spec: BlockSpec,
        inputs: Sequence[Any],
        payload: bytes | None = None,
        pool: ChildPool | None = None,
    ) -> None:
        super().__init__(spec, SharedClaims(len(spec.calls)), OutcomeLog())
        self._inputs = inputs
        self._payload = pickling.dumps(spec) if payload is None else payload
        self._pool = get_child_pool() if pool is None else pool
        #: Held while outcomes are recorded, or decided, and while `_child` changes.
        self._outcome_lock = Lock()
        #: The child that runs the block now.
        self._child: ChildProcess | None = None
        #: Members that were cancelled while they ran: their results do not count.
        self._stopped: set[int] = set()
        #: For members that were tried before: how often they may be tried again.
        self._retries: dict[int, int] = {}
        #: How many bytes members may still return before the rest is deferred.
        self._share_limit = spec.share_limit
        #: And how much memory their stored values may take.
        self._stored_limit = stored_value.block_limit()
        self._failed_starts = 0
        self._outputs = OutputFiles(self.claims, spec.output_limit)
        self._deadline = MemberDeadline(spec, self.claims, self.log.statuses)
        self._memory_bytes, self._measured_at = 0, 0.0
        #: The member that was measured last: its processor time when that was read first and last,
        #: and the peak of its memory, each with all that it has started.
        self._measured_member = -1
        self._first_usage = self._last_usage = TreeUsage()
        self._peak_bytes = 0

    def __call__(self) -> BlockResult:
        try:
            while len(self.log.statuses) < len(self.spec.calls):
                self._continue_block()
        finally:
            self.running = -1
            self.claims.close()
            if self.journal is not None:
                self.journal.resume()
        return self.log.result()

    # -- the thread that runs the block ---------------------------------------------------

    def _continue_block(self) -> None:
        """Run the remaining members in one child, until it has run all or has ended."""
        start = len(self.log.statuses)
        budget = self.began + self.spec.budget - perf_counter()
        if start > 0 and (budget < 0 or self._share_limit < 0):
            self.running = max(self.claims.running, 0)
            self.defer_rest()
        if not self.claims.has_runnable(start):
            self._run_fallback(None)
            return
        child: ChildProcess | None = None
        try:
            child = self._pool.take_unused() if self.spec.fresh else self._pool.take()
            if not self._is_ready(child):
                return
            if not self._attach(child, start):
                self._pool.give_back(child)
                return
            child.send_request(self.claims, self._packed_request(child, start, budget))
            end = self._watch(child)
        except Exception as error:
            self._detach()
            if child is not None:
                child.end()
            self._run_fallback(error)
            return
        self._detach()
        if end is _End.BLOCK_OVER and self.spec.fresh:
            child.end()
        elif end is _End.BLOCK_OVER:
            if self.spec.setup is not None and Status.DONE in self.log.statuses[start:]:
                child.initialized.add(self.spec.namespace)
            self._pool.give_back(child)
        else:
            self._end_child(child, end)

    def _is_ready(self, child: ChildProcess) -> bool:
        """Wait until a child has started; False if it has ended, and another may be tried."""
        try:
            child.wait_until_ready()
        except ChildLost:
            self._failed_starts += 1
            if self._failed_starts >= _MAX_FAILED_STARTS:
                raise
            child.end()
            return False
        return True

    def _packed_request(self, child: ChildProcess, start: int, budget: float) -> bytes:
        """Return the request for the members from `start` on."""
        request = make_request(self.spec, self._payload, self._inputs, self.log.result())
        request = request._replace(
            budget=budget,
            share_limit=self._share_limit,
            retries=self._retries.get(start),
            profile=child_profiles.wanted_in_children(),
            single=self.spec.fresh,
            unreachable=unreachable.all_unreachable() or None,
        )
        if self.spec.namespace in child.initialized:
            request = without_setup(request, self.spec)
        if self.journal is not None:
            request = request._replace(journal=self.journal.location())
        if (context := self.context) is not None:
            request = request._replace(
                context=(
                    *(context.topic, context.key, address_for_children(context.scheduler)),
                    *(context.security, context.worker),
                ),
                allocation=context.allocation,
            )
        with by_reference():
            return pack_request(request)

    def _attach(self, child: ChildProcess, start: int) -> bool:
        """Let other threads use the child; False if the member that it would run was stopped."""
        with self._outcome_lock:
            if start in self._stopped:
                self._record_without_child(start, Status.CANCELLED, None, None)
                return False
            self._child = child
            return True

    def _detach(self) -> None:
        with self._outcome_lock:
            self._child = None

    def _watch(self, child: ChildProcess) -> _End:
        """Record outcomes until the child is done, or gone, or must be killed."""
        # Whether the pipe is read at intervals, or as soon as frames arrive.
        paced, pace = True, _MIN_READ_INTERVAL_SECONDS
        while True:
            longest = pace if paced else _SLOT_POLL_SECONDS if self._exchange_slot() else None
            messages = child.wait(self._deadline.seconds_to_wait(longest), frames=not paced)
            with self._outcome_lock:
                before = len(self.log.statuses)
                more = self._record_frames(child)
                done = len(self.log.statuses)
            if BLOCK_OVER in messages:
                self._record_all_frames(child)
                return _End.BLOCK_OVER
            if self.claims.halted:
                return _End.STOPPED
            if child.has_gone():
                return _End.GONE
            if self._halt_if_late(child):
                return _End.LATE
            # Either more outcomes are likely to arrive soon, or the next member is about to begin.
            soon = done > before or self.claims.running < done
            paced = soon and not more and PIPE_FULL not in messages
            pace = (
                _MIN_READ_INTERVAL_SECONDS
                if done > before
                else min(2 * pace, _MAX_READ_INTERVAL_SECONDS)
            )

    def _record_frames(self, child: ChildProcess) -> bool:
        """Record outcomes that have arrived; return whether more may have arrived."""
        frames, more = child.frames.read()
        for member, status, seconds, value, output, ended, cpu, memory, attempts in frames:
            if status == NOTICE:
                assert value is not None
                kind, *found = pickling.loads(value)
                if kind == unreachable.NOTICE_KIND:
                    unreachable.adopt(*found)
                else:
                    self.notice(member, kind, *found)
                continue
            details = None
            if ended:
                if member == self._measured_member:
                    memory = max(memory, self._peak_bytes)
                details = MemberDetails(attempts, child.pid, None if memory < 0 else memory)
            if member in self._stopped:
                status, value = Status.CANCELLED, None
            else:
                self._share_limit -= len(value or b"") + sum(map(len, output or ()))
                if value is not None and stored_value.is_stored(value):
                    value = stored_value.adopt(value, made_here=True)
                    self._stored_limit -= value.stored_bytes
                    if self._stored_limit < 0:
                        self.running = max(self.claims.running, member)
                        self.defer_rest()
            self.log.record(member, status, value, seconds, output, ended, cpu, details)
        return more

    def _record_all_frames(self, child: ChildProcess) -> None:
        more = True
        while more:
            with self._outcome_lock:
                more = self._record_frames(child)

    def _exchange_slot(self) -> bool:
        """Release the slot while the member waits; return whether it waits for the slot now."""
        claims = self.claims
        if self.context is None or (claims.has_slot and not claims.is_waiting):
            return False
        slot = self.context.slot
        if claims.is_waiting:
            if claims.has_slot:
                claims.has_slot = False
                self.running = max(claims.running, 0)
                slot.release()
            return False
        slot.request()
        claims.has_slot = slot.is_held()
        return not claims.has_slot

    # -- time limits ----------------------------------------------------------------------

    def _halt_if_late(self, child: ChildProcess) -> bool:
        """If the running member has passed its time limit, halt the block; return whether."""
        if not self._deadline.has_passed():
            return False
        with self._outcome_lock, self.claims.locked():
            # Look again: by now it may be over or tried again, or another one may have begun.
            self._record_frames(child)
            if not self._deadline.has_passed():
                return False
            self.claims.halt()
            return True

    # -- the end of a child ---------------------------------------------------------------

    def _end_child(self, child: ChildProcess, end: _End) -> None:
        """End a child, and record the outcome of the member that ran, or have it tried again."""
        ran = perf_counter() - self.claims.began
        self._pool.replace()
        if end is _End.GONE:
            child.wait_for_end()
        child.kill()
        self._record_all_frames(child)
        output = self._outputs.texts(child.files)
        code = child.close()
        with self._outcome_lock:
            member = len(self.log.statuses)
            has_begun = member == self.claims.running
            attempt, has_closed_files = self.claims.attempt, self.claims.has_closed_files
            self.claims.reset()
            if not has_begun:
                # The member did not cause the end, and the one before it is over.
                self._failed_starts += end is _End.GONE
            elif member in self._stopped:
                self._record_without_child(
                    member, Status.CANCELLED, None, output, child.pid, attempt + 1, ran
                )
            elif end is _End.GONE and ended_with_worker(code):
                self.interrupted = member
                self._record_without_child(
                    member, Status.CANCELLED, None, output, child.pid, attempt + 1, ran
                )
            else:
                limits = self.spec.limits.get(member, NO_LIMITS)
                retries = self._retries.get(member, limits.retries) - attempt
                self._retries[member] = retries - 1
                if retries <= 0:
                    label = self.spec.label(member)
                    error = (
                        timed_out(label, limits.timeout or 0.0, ran)
                        if end is _End.LATE
                        else crashed(label, code, self._memory_bytes, has_closed_files)
                    )
                    place = self.place(member, limits.retries - retries)
                    packed = pack_error(error, label, heading=place)
                    self._record_without_child(
                        *(member, Status.FAILED, packed, output, child.pid),
                        *(limits.retries - retries + 1, ran),
                    )
            self._memory_bytes = 0
        if self._failed_starts >= _MAX_FAILED_STARTS:
            text = "" if output is None else "".join(output).strip()[-_MAX_MESSAGE_CHARACTERS:]
            self._run_fallback(
                ChildLost(
                    f"{_MAX_FAILED_STARTS} children have ended before they began anything, "
                    f"the last with exit code {code}" + (f": {text}" if text else "")
                )
            )

    def _record_without_child(
        self,
        member: int,
        status: int,
        value: bytes | None,
        output: tuple[str, str] | None,
        pid: int | None = None,
        attempts: int = 1,
        seconds: float = 0.0,
    ) -> None:
        """Record an outcome that no child sends; called while no child uses the journal."""
        ended, cpu, details = NOT_MEASURED
        if pid is not None:  # else it has not begun
            ended, memory = perf_counter() + self.epoch_offset, None
            if self._measured_member == member:
                cpu = max(0.0, self._last_usage.cpu_seconds - self._first_usage.cpu_seconds)
                memory = self._peak_bytes or None
            details = MemberDetails(attempts, pid, memory)
        measured = ended, cpu, details
        if self.journal is not None:
            self.journal.resume()
            if self.spec.journaled and member != self.interrupted:
                self.journal.record((member, status, value, seconds, output, *measured))
        self.log.record(member, status, value, seconds, output, *measured)

    def _run_fallback(self, error: Exception | None) -> None:
        """Continue without a child: no member can be run, or no child can be started."""
        with self._outcome_lock:
            if len(self.log.statuses) in self._stopped:
                member = len(self.log.statuses)
                self._record_without_child(member, Status.CANCELLED, None, None)
                return
        fallback = FallbackRun(self.spec, self._inputs, self.claims, self.log, error)
        if self.journal is not None:
            self.journal.resume()
            fallback.journal = self.journal
        fallback()

    # -- other threads --------------------------------------------------------------------

    def tick(self) -> None:
        with self._outcome_lock:
            child = self._child
            if child is not None:
                self.running = self.claims.running
                if self._outputs.are_large(child.files):
                    with self.claims.locked() as held:
                        # While the lock is held, no other member begins to write.
                        if held:
                            self._outputs.shorten(child.files)
                if perf_counter() > self._measured_at + _MEMORY_INTERVAL_SECONDS:
                    self._measure(child)
        super().tick()

    def _measure(self, child: ChildProcess) -> None:
        """Measure what the running member uses, with all that it has started."""
        memory = child.memory_bytes() - self.claims.kept_bytes
        self._memory_bytes, self._measured_at = max(0, memory), perf_counter()
        member, used = self.claims.running, read_tree(child.pid)
        if self._measured_member != member:
            self._measured_member, self._first_usage, self._peak_bytes = member, used, 0
        self._last_usage = used
        self._peak_bytes = max(self._peak_bytes, used.memory - self.claims.kept_bytes)

    def read_output(self, member: int, name: str, position: int, most: int) -> OutputPart | None:
        with self._outcome_lock:
            child, attempt = self._child, self._attempt_of(member)
            if child is None or self.claims.running != member or member < len(self.log.statuses):
                return None
            begin, data = self._outputs.since(child.files, name == "stderr", position, most)
            if self.claims.running != member or self._attempt_of(member) != attempt:
                return None
            return OutputPart(attempt, begin, data)

    @property
    def has_begun(self) -> bool:
        """Whether a child runs a member now."""
        return self._child is not None and self.claims.running >= len(self.log.statuses)

    def _pid_of(self, member: int) -> int:
        child = self._child
        return os.getpid() if child is None else child.pid

    def _attempt_of(self, member: int) -> int:
        limits = self.spec.limits.get(member, NO_LIMITS)
        earlier = limits.retries - self._retries.get(member, limits.retries)
        return earlier + self.claims.attempt + 1

    def _began_at(self, member: int) -> float:
        return self.claims.began

    def stop_running(self, member: int) -> bool:
        if member < len(self.log.statuses):
            return member in self._stopped
        with self._outcome_lock, self.claims.locked() as held:
            # While the lock is held, the running member stays the same.
            if not held or self.claims.running != member:
                return member in self._stopped
            if self._child is not None:
                self._record_frames(self._child)
            if member < len(self.log.statuses):
                return member in self._stopped
            self._stopped.add(member)
            if self._child is not None:
                self.claims.halt()
                self._child.wake()
            return True
