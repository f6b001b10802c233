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
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol

from daskbatch.dispatch.cell import SILENT, Cell, Group, Phase
from daskbatch.dispatch.lower import Setting
from daskbatch.dispatch.placement import Placement
from daskbatch.dispatch.placing import Placer, Submitter, pickle_functions
from daskbatch.errors import LifecycleError, SerializationError, ServiceLost, WorkerLost
from daskbatch.plan.hazards import NEEDS
from daskbatch.worker.block import Report
from daskbatch.worker.outcome import BlockResult, Status, pack_error

#: How long tasks that wait behind a stuck block are gathered before they are taken back.
_UNSTICK_SECONDS = 0.05

_PHASES = {
    Status.DONE: Phase.DONE,
    Status.FAILED: Phase.FAILED,
    Status.SKIPPED: Phase.FAILED,
    Status.CANCELLED: Phase.CANCELLED,
}

#: Members of blocks, by the blocks' numbers.
Members = Mapping[int, Sequence[int]]


class Backend(Submitter, Protocol):
    """What runs graphs, and tells `Dispatcher.report` and `Dispatcher.key_over` of them."""

    def revoke(self, members: Members, status: Status, then: Callable[[Members], None]) -> None:
        """Take members back; `then` is surely told, some time, which will not run."""

    def forget(self, blocks: Sequence[int]) -> None:
        """Drop what is kept of the revocations of blocks that are over."""

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function after some time."""


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
        #: Held for every change; notified when tasks are over.
        self._changed = threading.Condition()
        #: How many started tasks are not over.
        self.left = 0
        self._live: dict[int, Placement] = {}
        self._ranks = itertools.count()
        self._callbacks: dict[Cell, list[Callable[[], None]]] = {}
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
        """
        pickle_functions(cells)
        with self._changed:
            if (group is None and cells[0].phase != Phase.CREATED) or (group and group.started):
                raise LifecycleError(f"{group.name if group else cells[0].label} has been started")
            if group is not None:
                group.started = True
            new = [cell for cell in cells if cell.phase < Phase.WAITING]
            for cell in new:
                cell.phase = Phase.WAITING
                cell.rank = next(self._ranks)
            self.left += len(new)
            self._place(new, name)
            self._changed.notify_all()

    def cancel(self, cells: Iterable[Cell]) -> None:
        """Cancel what has not begun; returns when it is known what that is."""
        with self._changed:
            waiting = []
            for cell in cells:
                if cell.phase < Phase.WAITING:
                    self.left += 1
                    self._settle(cell, Phase.CANCELLED)
                elif not cell.over:
                    waiting.append(cell)
            members = _by_placement(waiting)
            self._revoked.update(members)
            live = dict(self._live)
            self._changed.notify_all()
        if not members:
            return
        answered = threading.Event()
        revoked: Members = {}

        def then(confirmed: Members) -> None:
            nonlocal revoked
            revoked = confirmed
            answered.set()

        self._backend.revoke(members, Status.CANCELLED, then)
        answered.wait()
        with self._changed:
            for number, confirmed in revoked.items():
                for cell in _still_in(live.get(number), confirmed):
                    self._tell(live[number], cell, Status.CANCELLED)
            self._changed.notify_all()

    def give_up(self) -> None:
        """Count all that is not over as cancelled, whatever becomes of it."""
        with self._changed:
            for placement in self._live.values():
                for cell in _still_in(placement):
                    self._tell(placement, cell, Status.CANCELLED)
            self._live.clear()
            self._changed.notify_all()

    def wait(self, over: Callable[[], bool], timeout: float | None = None) -> bool:
        """Wait until something is over; False if the time is up first."""
        with self._changed:
            return self._changed.wait_for(over, timeout)

    def when_over(self, cell: Cell, callback: Callable[[], None]) -> None:
        """Have a function called, in any thread, when a task is over."""
        with self._changed:
            if not cell.over:
                self._callbacks.setdefault(cell, []).append(callback)
                return
        callback()

    def fetch(self, cell: Cell, timeout: float | None = None) -> None:
        """Bring here what a finished task left on its worker.

        Raises
        ------
        TimeoutError
            It is not here in time.
        WorkerLost
            It was lost with its worker.
        """
        placement = cell.placement
        if placement is None or placement.future is None:
            return
        try:
            result: BlockResult = placement.future.result(timeout)
        except TimeoutError:
            raise
        except Exception as error:
            raise WorkerLost(
                f"the result of task {cell.label} was lost with the worker that held it: {error}"
            ) from error
        with self._changed:
            for member, each in enumerate(placement.cells):
                if each.placement is placement and each.over:
                    each.value = result.values[member]
                    each.output = result.outputs.get(member, SILENT)

    # -- what the backend tells -----------------------------------------------------------

    def report(self, data: bytes) -> None:
        """Take in a report from a worker."""
        report: Report = pickle.loads(data)
        with self._changed:
            placement = self._live.get(report.block)
            if placement is None:
                return
            deferred = self._take_in(placement, report)
            for cell in _still_in(placement, [report.running]):
                cell.phase = Phase.RUNNING
            first = report.running + 1
            behind = [m for m, s in enumerate(report.rest, first) if s == Status.DEFERRED]
            for cell in _still_in(placement, behind):
                self._give_back(placement, cell)
                deferred.append(cell)
            self._place(deferred, placement.name)
            if report.rest:
                self._unstick(placement)
            self._changed.notify_all()

    def key_over(
        self, placement: Placement, error: BaseException | None = None, lost: bool = False
    ) -> None:
        """Take in that a block's key is finished, or has failed as a whole.

        Parameters
        ----------
        placement : Placement
            The block.
        error : BaseException, optional
            Why there is no result.
        lost : bool
            Whether it is the cluster that is gone, rather than a worker.
        """
        result: BlockResult | None = None
        if error is None and placement.left and placement.future is not None:
            # Not all has been reported: the worker knew nobody to report it to.
            try:
                result = placement.future.result()
            except Exception as failure:
                error = failure
        with self._changed:
            deferred: list[Cell] = []
            if error is not None:
                deferred = self._key_failed(placement, error, lost)
            elif result is not None:
                deferred = self._take_in(placement, _whole_report(placement, result))
            self._live.pop(placement.number, None)
            self._stuck.discard(placement)
            placement.waits = frozenset()
            placement.held = ()
            if placement.number in self._revoked:
                self._revoked.discard(placement.number)
                self._backend.forget([placement.number])
            self._place(deferred, placement.name)
            self._changed.notify_all()

    def _key_failed(self, placement: Placement, error: BaseException, lost: bool) -> list[Cell]:
        # Dask does not run what depends on a key that failed, though it may well be allowed
        # to run: it is placed again, without that key.
        innocent = any(other.failed for other in placement.waits)
        placement.failed = True
        deferred = []
        for cell in _still_in(placement):
            if innocent:
                self._give_back(placement, cell)
                deferred.append(cell)
            else:
                kind, what = (ServiceLost, "cluster") if lost else (WorkerLost, "worker")
                failure = kind(f"task {cell.label} was lost with its {what}: {error}")
                failure.__cause__ = error
                self._tell(placement, cell, Status.FAILED, pack_error(failure, cell.label))
        return deferred

    # -- placing and settling -------------------------------------------------------------

    def _place(self, cells: Sequence[Cell], name: str) -> None:
        ready = [cell for cell in cells if self._may_run(cell)]
        if ready:
            for placement in self._placer.place(ready, name):
                self._live[placement.number] = placement

    def _may_run(self, cell: Cell) -> bool:
        if cell.waits:
            cell.blame = _find_blame(cell)
            if cell.blame is not None:
                self._settle(cell, Phase.FAILED)
                return False
        if cell.call is not None:
            failure = cell.call.failure or cell.function
            if isinstance(failure, SerializationError):
                self._settle(cell, Phase.FAILED, pack_error(failure, cell.label))
                return False
        return True

    def _take_in(self, placement: Placement, report: Report) -> list[Cell]:
        """Settle what a report tells of; returns what has to be placed again."""
        durations = array("f", report.durations)
        deferred = []
        members = range(report.start, report.start + len(report.statuses))
        for member, status, value, seconds in zip(
            members, report.statuses, report.values, durations, strict=True
        ):
            cell = placement.cells[member]
            if cell.placement is not placement or cell.over:
                continue
            if status == Status.DEFERRED:
                self._give_back(placement, cell)
                deferred.append(cell)
            else:
                output = report.outputs.get(member, SILENT)
                self._tell(placement, cell, status, value, output, seconds)
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
        if status > Status.FAILED:
            cell.placement = None
            if status == Status.SKIPPED:
                cell.blame = _find_blame(cell)
        else:
            size = None
            if value is not None and output is not None:
                cell.placement = None
                size = len(value) if output is SILENT else len(value) + sum(map(len, output))
            self._placer.learn(cell, seconds, size)
        self._settle(cell, _PHASES[Status(status)], value, output, seconds)

    def _settle(
        self,
        cell: Cell,
        phase: Phase,
        value: bytes | None = None,
        output: tuple[str, str] | None = SILENT,
        seconds: float = 0.0,
    ) -> None:
        cell.phase = phase
        cell.value = value
        cell.output = output
        cell.seconds = seconds
        cell.waits = cell.overwrites = ()
        self.left -= 1
        if cell.group is not None:
            cell.group.left -= 1
        if self._callbacks:
            for callback in self._callbacks.pop(cell, ()):
                callback()

    def _give_back(self, placement: Placement, cell: Cell) -> None:
        placement.left -= 1
        cell.placement = None
        cell.phase = Phase.WAITING

    # -- stuck blocks ---------------------------------------------------------------------

    def _unstick(self, placement: Placement) -> None:
        """Take back what waits for a block's key, but perhaps not for what runs in it."""
        if not self._stuck:
            self._backend.later(_UNSTICK_SECONDS, self._take_back)
        self._stuck.add(placement)

    def _take_back(self) -> None:
        with self._changed:
            behind = _behind(self._stuck, self._live.values())
            self._stuck.clear()
            members = _by_placement(cell for each in behind for cell in _still_in(each))
            self._revoked.update(members)
        if members:
            self._backend.revoke(members, Status.DEFERRED, self._taken_back)

    def _taken_back(self, revoked: Members) -> None:
        with self._changed:
            deferred: list[Cell] = []
            names: set[str] = set()
            for number, members in revoked.items():
                placement = self._live.get(number)
                for cell in _still_in(placement, members):
                    assert placement is not None
                    self._give_back(placement, cell)
                    deferred.append(cell)
                    names.add(placement.name)
            # All at once, since one may wait for another.
            deferred.sort(key=lambda cell: cell.rank)
            self._place(deferred, names.pop() if len(names) == 1 else "batch")
            self._changed.notify_all()


def _find_blame(cell: Cell) -> Cell | None:
    """Find the task whose failure keeps another from running."""
    for before, why in cell.waits:
        if why & NEEDS and before.unsuccessful:
            # A barrier fails for those that it stands for, and is none to blame.
            return before.blame or before
    return None


def _still_in(placement: Placement | None, members: Iterable[int] | None = None) -> list[Cell]:
    """Give those members of a block that are not over, and have not been placed elsewhere."""
    if placement is None:
        return []
    count = len(placement.cells)
    cells = (
        placement.cells
        if members is None
        else [placement.cells[member] for member in members if 0 <= member < count]
    )
    return [cell for cell in cells if cell.placement is placement and not cell.over]


def _by_placement(cells: Iterable[Cell]) -> dict[int, list[int]]:
    members: dict[int, list[int]] = {}
    for cell in cells:
        if cell.placement is not None:
            members.setdefault(cell.placement.number, []).append(cell.member)
    return members


def _behind(stuck: Iterable[Placement], live: Iterable[Placement]) -> list[Placement]:
    """Find the blocks that wait for others, directly or not."""
    behind: list[Placement] = []
    found = set(stuck)
    # In order of their numbers, each block comes after those that it waits for.
    for placement in sorted(live, key=lambda placement: placement.number):
        if placement not in found and not placement.waits.isdisjoint(found):
            found.add(placement)
            behind.append(placement)
    return behind


def _whole_report(placement: Placement, result: BlockResult) -> Report:
    count = len(result.statuses)
    durations = array("f", [0.0]) * count
    outputs = dict(result.outputs)
    return Report(
        placement.number, 0, result.statuses, result.values, durations.tobytes(), outputs, -1, b""
    )
