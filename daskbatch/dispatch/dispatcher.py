"""Follows every started task of a client from its placing in a block to its outcome.

Does not know Dask: a `Backend` submits, revokes and calls back. It is the one place where
the state of tasks changes.

A started task that is not over is always in one block (`Cell.placement`), and only what is
told of that block counts. So a task that comes back *deferred* is simply placed again, now
that more is known of how long its like take, and whatever the old block still says of it
is ignored. Tasks behind it come back by themselves: a block whose input was deferred
defers them.
"""

from __future__ import annotations

import itertools
import pickle
import threading
from array import array
from collections.abc import Iterable, Sequence

from daskbatch.dispatch.backend import Backend, Members
from daskbatch.dispatch.cell import SILENT, Cell, Group, Phase, find_blame
from daskbatch.dispatch.lower import Setting
from daskbatch.dispatch.outcomes import Outcomes
from daskbatch.dispatch.placement import Placement, blocks_behind, by_block
from daskbatch.dispatch.placing import Placer, pickle_functions
from daskbatch.dispatch.uninterrupted import uninterrupted
from daskbatch.dispatch.wiring import wait_for_producers
from daskbatch.errors import (
    BatchError,
    LifecycleError,
    SerializationError,
    ServiceLost,
    WorkerLost,
)
from daskbatch.worker.block import Report
from daskbatch.worker.outcome import BlockResult, Status, pack_error

#: How long tasks that wait behind a stuck block are gathered before they are taken back.
_UNSTICK_SECONDS = 0.05

#: How often is looked whether an answer can still come. Seconds.
_LOOK_SECONDS = 0.2

#: By `Status`.
_PHASES = (Phase.DONE, Phase.FAILED, Phase.FAILED, Phase.CANCELLED)


class Dispatcher:
    """The started tasks of one client.

    Parameters
    ----------
    backend : Backend
        Where blocks run.
    setting : Setting
        What is the same for all blocks.
    """

    def __init__(self, backend: Backend, setting: Setting) -> None:
        self._backend = backend
        self._placer = Placer(backend, setting)
        self._inline_limit = setting.inline_limit
        self.outcomes = Outcomes()
        self._changed = self.outcomes.changed
        self._live: dict[int, Placement] = {}
        self._ranks = itertools.count()
        self._stuck: set[Placement] = set()
        self._revoked: set[int] = set()

    # -- the user's threads ---------------------------------------------------------------

    def submit(self, cells: Sequence[Cell], name: str, group: Group | None = None) -> None:
        """Start tasks.

        Parameters
        ----------
        cells : sequence of Cell
            Each behind those that it waits for.
        name : str
            What the dashboard calls them.
        group : Group, optional
            What they are the members of.

        Raises
        ------
        LifecycleError
            Another thread has just started them.
        ServiceLost
            The cluster is gone.
        """
        self._backend.require_alive()
        pickle_functions(cells)
        with uninterrupted(), self._changed:
            if (group is None and cells[0].phase != Phase.CREATED) or (group and group.started):
                raise LifecycleError(f"{group.name if group else cells[0].label} has been started")
            if group is not None:
                group.started = True
            new = [cell for cell in cells if cell.phase < Phase.WAITING]
            wait_for_producers(new)
            for cell in new:
                cell.phase = Phase.WAITING
                cell.rank = next(self._ranks)
            self.outcomes.left += len(new)
            self._place(new, name, again=False)
            self._changed.notify_all()

    def cancel(self, cells: Iterable[Cell]) -> None:
        """Cancel what has not begun; returns when it is known what that is."""
        with self._changed:
            started = []
            for cell in cells:
                if cell.phase < Phase.WAITING:
                    self.outcomes.left += 1
                    self.outcomes.settle(cell, Phase.CANCELLED)
                else:
                    started.append(cell)
            self._changed.notify_all()
        while started:
            started = self._cancel_started(started)

    def _cancel_started(self, cells: Iterable[Cell]) -> list[Cell]:
        """Cancel what has not begun; returns what has been placed elsewhere meanwhile."""
        answered = threading.Event()
        revoked: Members = {}

        def then(confirmed: Members) -> None:
            nonlocal revoked
            revoked = confirmed
            answered.set()

        with self._changed:
            asked = {cell: cell.placement for cell in cells if not cell.over}
            members = by_block(asked)
            self._revoked.update(members)
            live = dict(self._live)
        if not members:
            return []
        self._backend.revoke(members, Status.CANCELLED, then)
        while not answered.wait(_LOOK_SECONDS):
            # Whoever ends the client meanwhile has settled them all.
            if all(cell.over for cell in asked):
                return []
        with self._changed:
            for number, confirmed in revoked.items():
                for cell in live[number].members_left(confirmed):
                    self._tell(live[number], cell, Status.CANCELLED)
                self._drop_if_empty(live[number])
            self._changed.notify_all()
            return [c for c, where in asked.items() if not c.over and c.placement is not where]

    def give_up(self, error: BaseException | None = None) -> None:
        """Count all that is not over as cancelled, or as failed of an error."""
        with self._changed:
            for placement in self._live.values():
                for cell in placement.members_left():
                    if error is None:
                        self._tell(placement, cell, Status.CANCELLED)
                    else:
                        self._tell(placement, cell, Status.FAILED, pack_error(error, cell.label))
                self._backend.release(placement)
            self._live.clear()
            self._changed.notify_all()

    def fetch(self, cell: Cell, timeout: float | None = None) -> None:
        """Bring here what a finished task left on its worker; see `Placement.fetch`."""
        if cell.placement is not None:
            result = cell.placement.fetch(cell.label, timeout)
            with self._changed:
                cell.placement.hand_out(result)

    # -- what the backend tells -----------------------------------------------------------

    def report(self, data: bytes) -> None:
        """Take in a report from a worker."""
        report: Report = pickle.loads(data)
        with self._changed:
            placement = self._live.get(report.block)
            if placement is None:
                return
            deferred = self._take_in(placement, report)
            for cell in placement.members_left([report.running]):
                cell.phase = Phase.RUNNING
            first = report.running + 1
            behind = [m for m, s in enumerate(report.rest, first) if s == Status.DEFERRED]
            for cell in placement.members_left(behind):
                self._give_back(placement, cell)
                deferred.append(cell)
            self._place(deferred, placement.name)
            if report.expired:
                self._unstick(placement)
            self._changed.notify_all()

    def key_over(
        self,
        placement: Placement,
        result: BlockResult | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Take in that a block's key is finished, or has failed as a whole.

        Parameters
        ----------
        placement : Placement
            The block.
        result : BlockResult, optional
            Its result, if it was needed (`Placement.left`) and could be had.
        error : BaseException, optional
            Why there is no result: `ServiceLost`, `WorkerLost`, or what else.
        """
        with self._changed:
            deferred: list[Cell] = []
            if error is not None:
                deferred = self._key_failed(placement, error)
            elif result is not None:
                report = result.as_report(placement.number)
                deferred = self._take_in(placement, report, timed=False)
            self._live.pop(placement.number, None)
            self._stuck.discard(placement)
            placement.waits = frozenset()
            placement.held = ()
            if placement.number in self._revoked:
                self._revoked.discard(placement.number)
                self._backend.forget([placement.number])
            self._place(deferred, placement.name)
            self._changed.notify_all()

    def _key_failed(self, placement: Placement, error: BaseException) -> list[Cell]:
        # Dask does not run what depends on a key that failed, though it may well be allowed
        # to run: it is placed again, without that key.
        innocent = any(other.failed for other in placement.waits)
        placement.failed = True
        deferred = []
        for cell in placement.members_left():
            if innocent:
                self._give_back(placement, cell)
                deferred.append(cell)
            else:
                failure = _as_failure(cell, error)
                failure.__cause__ = error
                self._tell(placement, cell, Status.FAILED, pack_error(failure, cell.label))
        return deferred

    # -- placing and settling -------------------------------------------------------------

    def _place(self, cells: Sequence[Cell], name: str, again: bool = True) -> None:
        ready = [cell for cell in cells if self._may_run(cell)]
        if not ready:
            return
        try:
            others = self.outcomes.left - len(ready)
            placements = self._placer.place(ready, name, others, again)
        except Exception as error:
            # Somebody waits for these: they must hear of it.
            data = pack_error(error, name)
            for cell in ready:
                self.outcomes.settle(cell, Phase.FAILED, data)
            return
        for placement in placements:
            self._live[placement.number] = placement

    def _may_run(self, cell: Cell) -> bool:
        if cell.waits:
            cell.blame = find_blame(cell)
            if cell.blame is not None:
                self.outcomes.settle(cell, Phase.FAILED)
                return False
        if cell.call is not None:
            failure = cell.call.failure or cell.function
            if isinstance(failure, SerializationError):
                what = "its arguments" if cell.call.failure else "its function"
                error = SerializationError(f"task {cell.label}: {what} cannot be sent: {failure}")
                error.__cause__ = failure.__cause__
                self.outcomes.settle(cell, Phase.FAILED, pack_error(error, cell.label))
                return False
        return True

    def _take_in(self, placement: Placement, report: Report, timed: bool = True) -> list[Cell]:
        """Settle what a report tells of; returns what has to be placed again."""
        deferred = []
        ran: list[Cell] = []
        sizes: list[int] = []
        stop = report.start + len(report.statuses)
        for member, (cell, status, value, seconds) in enumerate(
            zip(
                placement.cells[report.start : stop],
                report.statuses,
                report.values,
                array("f", report.durations),
                strict=True,
            ),
            report.start,
        ):
            if cell.placement is not placement or cell.phase >= Phase.DONE:
                continue
            if status == Status.DEFERRED:
                self._give_back(placement, cell)
                deferred.append(cell)
                continue
            output = report.outputs.get(member, SILENT)
            if timed and status <= Status.FAILED:
                ran.append(cell)
                if value is None or output is None:
                    sizes.append(-1)
                else:
                    sizes.append(len(value) + len(output[0]) + len(output[1]))
            self._tell(placement, cell, status, value, output, seconds)
        self._placer.learn(ran, sizes)
        return deferred

    def _tell(
        self,
        placement: Placement,
        cell: Cell,
        status: int,
        value: bytes | None = None,
        output: tuple[str, str] | None = SILENT,
        seconds: float = 0.0,
    ) -> None:
        placement.left -= 1
        if status > Status.FAILED or self._is_here(value, output):
            cell.placement = None
        if status == Status.SKIPPED:
            cell.blame = find_blame(cell)
        self.outcomes.settle(cell, _PHASES[status], value, output, seconds)

    def _is_here(self, value: bytes | None, output: tuple[str, str] | None) -> bool:
        """Say whether all of an outcome is here, and small enough to be sent from here."""
        if value is None or output is None:
            return False
        return len(value) <= self._inline_limit

    def _drop_if_empty(self, placement: Placement) -> None:
        """Spare the cluster a block of which nothing is left to run."""
        if not placement.left and all(cell.placement is not placement for cell in placement.cells):
            # It runs all the same if others hang on its key: what was revoked stays so.
            self._revoked.discard(placement.number)
            self._backend.release(placement)

    def _give_back(self, placement: Placement, cell: Cell) -> None:
        placement.left -= 1
        cell.placement = None
        cell.phase = Phase.WAITING

    # -- stuck blocks ---------------------------------------------------------------------

    def _unstick(self, placement: Placement) -> None:
        """Take back what waits for a block's key, but perhaps not for what runs in it."""
        placement.long = True
        if not self._stuck:
            self._backend.later(_UNSTICK_SECONDS, self._take_back)
        self._stuck.add(placement)

    def _take_back(self) -> None:
        with self._changed:
            behind = blocks_behind(self._stuck, self._live.values())
            self._stuck.clear()
            members = by_block(cell for each in behind for cell in each.members_left())
            self._revoked.update(members)
        if members:
            self._backend.revoke(members, Status.DEFERRED, self._taken_back)

    def _taken_back(self, revoked: Members) -> None:
        with self._changed:
            deferred: list[Cell] = []
            names: set[str] = set()
            for number, members in revoked.items():
                placement = self._live.get(number)
                for cell in [] if placement is None else placement.members_left(members):
                    assert placement is not None
                    self._give_back(placement, cell)
                    deferred.append(cell)
                    names.add(placement.name)
                if placement is not None:
                    self._drop_if_empty(placement)
            # All at once, since one may wait for another.
            deferred.sort(key=lambda cell: cell.rank)
            self._place(deferred, names.pop() if len(names) == 1 else "batch")
            self._changed.notify_all()


def _as_failure(cell: Cell, error: BaseException) -> BatchError:
    for kind, what in ((ServiceLost, "was lost with its cluster"), (WorkerLost, "was lost")):
        if isinstance(error, kind):
            return kind(f"task {cell.label} {what}: {error}")
    return BatchError(f"task {cell.label} could not be run: {error}")
