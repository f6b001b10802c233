"""Runs a block in a child process, and sees to it that a member ends when it has to.

Does not know Dask, nor how members are run: the child does that, and tells the outcomes one
by one. If it dies, or has to be killed, another one goes on behind the member that ran.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from time import perf_counter
from typing import Any

from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import pack_error
from daskbatch.worker.execution.block import BlockSpec, Limits
from daskbatch.worker.execution.journal import Journal
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.execution.progress import Progress
from daskbatch.worker.isolation.child_pool import ChildPool, children
from daskbatch.worker.isolation.child_process import ChildLost, ChildProcess
from daskbatch.worker.isolation.deadline import Deadline
from daskbatch.worker.isolation.fallback_run import FallbackRun, crashed, timed_out
from daskbatch.worker.isolation.frames import FULL, OVER
from daskbatch.worker.isolation.output_files import OutputFiles
from daskbatch.worker.isolation.request import make_order, pack_order, without_setup
from daskbatch.worker.isolation.shared_claims import SharedClaims
from daskbatch.worker.profiling import child_profiles

#: While outcomes come in quick succession it is looked for them no more often. Seconds.
_PACE, _LONGEST_PACE = 0.002, 0.05

#: How many children may in a row end before they begin anything.
_PATIENCE = 3

#: How much of what the last of them has written is told. Characters.
_TOLD = 2000

#: How often is looked whether there is a slot for a member that has done with waiting. Seconds.
_IN_LINE = 0.005

#: How often is looked how much memory a child has. Seconds.
_MEMORY = 0.1

_NO_LIMITS = Limits()


class IsolatedRun(Progress):
    """A block whose members are run one after another by a child process.

    Parameters
    ----------
    spec, inputs
        As a `BlockRun` has them.
    payload : bytes, optional
        The block as it came.
    pool : Children, optional
        Where children come from.
    """

    claims: SharedClaims

    def __init__(
        self,
        spec: BlockSpec,
        inputs: Sequence[Any],
        payload: bytes | None = None,
        pool: ChildPool | None = None,
    ) -> None:
        super().__init__(spec, SharedClaims(len(spec.calls)))
        self._inputs = inputs
        self._payload = pickling.dumps(spec) if payload is None else payload
        self._pool = children() if pool is None else pool
        # Held while outcomes are written down, or decided.
        self._guard = Lock()
        self._child: ChildProcess | None = None
        #: Members that were stopped while they ran: whatever they leave behind does not count.
        self._stopped: set[int] = set()
        self._journal: Journal | None = None
        #: How often members that were tried before may yet be tried again.
        self._retries: dict[int, int] = {}
        self._room = spec.share_limit
        self._deaths = 0
        self._outputs = OutputFiles(self.claims, spec.output_limit)
        self._deadline = Deadline(spec, self.claims, self.statuses)
        self._memory, self._measured = 0, 0.0

    def __call__(self) -> BlockResult:
        # What a child tells it has written down itself, where that lasts if this is killed.
        self._journal, self.journal = self.journal, None
        try:
            while len(self.statuses) < len(self.spec.calls):
                self._go_on()
        finally:
            self.running = -1
            self.claims.close()
            self.journal = self._journal
            if self.journal is not None:
                self.journal.take_up()
        return self.result()

    # -- the thread that runs the block ---------------------------------------------------

    def _is_ready(self, child: ChildProcess) -> bool:
        """Wait until a child has started; False if it has not, and another may."""
        try:
            child.wait_until_ready()
        except ChildLost:
            self._deaths += 1
            if self._deaths >= _PATIENCE:
                raise
            child.end()
            return False
        return True

    def _go_on(self) -> None:
        """Get on with what is left, as far as one child gets."""
        start = len(self.statuses)
        budget = self.began + self.spec.budget - perf_counter()
        if start > 0 and (budget < 0 or self._room < 0):
            self.running = max(self.claims.running, 0)
            self.defer_rest()
        if not self.claims.is_free(start):
            self._settle(None)
            return
        child: ChildProcess | None = None
        try:
            child = self._pool.take()
            if not self._is_ready(child):
                return
            if not self._attach(child, start):
                self._pool.give(child)
                return
            retries = self._retries.get(start)
            order = make_order(self.spec, self._payload, self._inputs, self.result())._replace(
                budget=budget,
                share_limit=self._room,
                retries=retries,
                profile=child_profiles.order(),
            )
            if self.spec.topic in child.prepared:
                order = without_setup(order, self.spec)
            if self._journal is not None:
                order = order._replace(journal=self._journal.to_take_up())
            if (host := self.host) is not None:
                order = order._replace(host=(host.topic, host.key, host.scheduler, host.security))
            child.order(self.claims, pack_order(order))
            why = self._watch(child)
        except Exception as error:
            self._detach()
            if child is not None:
                child.end()
            self._settle(error)
            return
        self._detach()
        if why == "over":
            if self.spec.setup is not None and Status.DONE in self.statuses[start:]:
                child.prepared.add(self.spec.topic)
            self._pool.give(child)
        else:
            self._bury(child, why)

    def _attach(self, child: ChildProcess, start: int) -> bool:
        """Have others know the child; False if what it would begin with was stopped."""
        with self._guard:
            if start in self._stopped:
                self._decide(start, Status.CANCELLED, None, None)
                return False
            self._child = child
            return True

    def _detach(self) -> None:
        with self._guard:
            self._child = None

    def _watch(self, child: ChildProcess) -> str:
        """Take outcomes until the child is done, or gone, or has to go: says which."""
        paced, pace = True, _PACE
        while True:
            longest = pace if paced else _IN_LINE if self._is_in_line() else None
            said = child.wait(self._deadline.seconds_to_wait(longest), frames=not paced)
            with self._guard:
                before = len(self.statuses)
                more = self._drain(child)
                done = len(self.statuses)
            if OVER in said:
                self._drain_all(child)
                return "over"
            if self.claims.halted:
                return "stopped"
            if child.has_gone():
                return "gone"
            if self._is_late(child):
                return "late"
            # Either more is likely to come soon, or the next member is about to begin.
            soon = done > before or self.claims.running < done
            paced = soon and not more and FULL not in said
            pace = _PACE if done > before else min(2 * pace, _LONGEST_PACE)

    def _drain(self, child: ChildProcess) -> bool:
        """Write down outcomes that have come; says whether there may be more at once."""
        frames, more = child.frames.read()
        for member, status, seconds, value, output in frames:
            if member in self._stopped:
                self.over(member, Status.CANCELLED, None, seconds, output)
                continue
            self._room -= len(value or b"") + sum(map(len, output or ()))
            self.over(member, status, value, seconds, output)
        return more

    def _drain_all(self, child: ChildProcess) -> None:
        more = True
        while more:
            with self._guard:
                more = self._drain(child)

    def _is_in_line(self) -> bool:
        """Give the slot away while the member waits; says whether it is asked for again."""
        board = self.claims
        if self.host is None or (board.has_slot and not board.waits):
            return False
        slot = self.host.slot
        if board.waits:
            if board.has_slot:
                board.has_slot = False
                self.running = max(board.running, 0)
                slot.give()
            return False
        slot.ask()
        board.has_slot = slot.has()
        return not board.has_slot

    # -- time limits ----------------------------------------------------------------------

    def _is_late(self, child: ChildProcess) -> bool:
        """Say whether the time of the member that runs is up; then nothing more begins."""
        if not self._deadline.is_over():
            return False
        with self._guard, self.claims.locked():
            # Not if it was over, or was tried again, or another one has begun meanwhile.
            self._drain(child)
            if not self._deadline.is_over():
                return False
            self.claims.halt()
            return True

    # -- the end of a child ---------------------------------------------------------------

    def _bury(self, child: ChildProcess, why: str) -> None:
        """End a child, and find out what that means for the member that ran."""
        ran = perf_counter() - self.claims.began
        self._pool.replace()
        if why == "gone":
            child.wait_for_end()
        child.kill()
        self._drain_all(child)
        output = self._outputs.so_far(child.files)
        code = child.close()
        with self._guard:
            member = len(self.statuses)
            has_begun = member == self.claims.running
            attempt = self.claims.attempt
            self.claims.reset()
            if not has_begun:
                # It is not to blame, and what ran before is over.
                self._deaths += why == "gone"
            elif member in self._stopped:
                self._decide(member, Status.CANCELLED, None, output)
            else:
                limits = self.spec.limits.get(member, _NO_LIMITS)
                left = self._retries.get(member, limits.retries) - attempt
                self._retries[member] = left - 1
                if left <= 0:
                    label = self.spec.label(member)
                    late = timed_out(label, limits.timeout or 0.0, ran)
                    error = late if why == "late" else crashed(label, code, self._memory)
                    self._decide(member, Status.FAILED, pack_error(error, label), output)
            self._memory = 0
        if self._deaths >= _PATIENCE:
            said = "" if output is None else "".join(output).strip()[-_TOLD:]
            self._settle(
                ChildLost(
                    f"{_PATIENCE} children have ended before they began anything, the last "
                    f"with exit code {code}" + (f": {said}" if said else "")
                )
            )

    def _decide(
        self, member: int, status: int, value: bytes | None, output: tuple[str, str] | None
    ) -> None:
        """Write down an outcome that is not the child's to tell, once there is no child."""
        if self._journal is not None:
            self._journal.take_up()
            if self.spec.journaled:
                self._journal.over((member, status, value, 0.0, output))
        self.over(member, status, value, perf_counter() - self.claims.began, output)

    def _settle(self, error: Exception | None) -> None:
        """Go on where there is nothing to run, or no way to: without a child."""
        with self._guard:
            if len(self.statuses) in self._stopped:
                self._decide(len(self.statuses), Status.CANCELLED, None, None)
                return
        rest = FallbackRun(self.spec, self._inputs, self.claims, error)
        rest.statuses, rest.values = self.statuses, self.values
        rest.durations, rest.outputs = self.durations, self.outputs
        if self._journal is not None:
            self._journal.take_up()
            rest.journal = self._journal
        rest()

    # -- other threads --------------------------------------------------------------------

    def look(self) -> None:
        with self._guard:
            child = self._child
            if child is not None:
                self.running = self.claims.running
                if self._outputs.are_large(child.files):
                    with self.claims.locked() as held:
                        # With the lock no other member begins to write.
                        if held:
                            self._outputs.shorten(child.files)
                if perf_counter() > self._measured + _MEMORY:
                    self._memory, self._measured = child.memory(), perf_counter()
        super().look()

    def stop_running(self, member: int) -> bool:
        if member < len(self.statuses):
            return member in self._stopped
        with self._guard, self.claims.locked() as held:
            # As long as this has the lock, what runs stays the same.
            if not held or self.claims.running != member:
                return member in self._stopped
            if self._child is not None:
                self._drain(self._child)
            if member < len(self.statuses):
                return member in self._stopped
            self._stopped.add(member)
            if self._child is not None:
                self.claims.halt()
                self._child.wake()
            return True
