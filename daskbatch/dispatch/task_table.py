"""The moves that started tasks make: into a block, out of it, to their end, and back.

Does not know when each is due: that is the dispatcher's to say, which holds the lock.
"""

from __future__ import annotations

import itertools
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from daskbatch.dispatch.backend import Backend, Key
from daskbatch.dispatch.completion import Outcomes
from daskbatch.dispatch.edges import wait_for_producers
from daskbatch.dispatch.lower import Setting
from daskbatch.dispatch.placement import Placement
from daskbatch.dispatch.placer import Placer
from daskbatch.dispatch.recovery import (
    Writers,
    is_gone,
    lost_with_worker,
    to_revive,
    why_not_again,
)
from daskbatch.dispatch.task_record import SILENT, Cell, Phase, find_blame
from daskbatch.errors import SerializationError
from daskbatch.worker.execution.block import Report
from daskbatch.worker.execution.outcome import Status, pack_error

#: By `Status`.
_PHASES = (Phase.DONE, Phase.FAILED, Phase.FAILED, Phase.CANCELLED)


class Moves:
    """The started tasks of one client, and where they are.

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
        #: Those that run, and are being stopped.
        self._stopping: set[Cell] = set()
        self._writers = Writers()
        #: Under how many workers' deaths a task has run.
        self._deaths: Counter[Cell] = Counter()
        #: The blocks whose results somebody may still want; and whether any was ever lost.
        self._placed: WeakValueDictionary[Key, Placement] = WeakValueDictionary()
        self._any_lost = False

    def _place(self, cells: Sequence[Cell], name: str, again: bool = True) -> None:
        if self._any_lost:
            cells = self._with_revived(cells)
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
            self._placed[placement.key] = placement

    def _with_revived(self, cells: Sequence[Cell]) -> Sequence[Cell]:
        """Give tasks together with those whose lost results they take."""
        revived: list[Cell] = []
        for cell in cells:
            for producer in cell.producers:
                if producer.over and not producer.unsuccessful and is_gone(producer):
                    revived += self._revive(producer)
            if revived:
                wait_for_producers([cell])
        return sorted([*revived, *cells], key=lambda cell: cell.rank) if revived else cells

    def _revive(self, cell: Cell) -> list[Cell]:
        """Count a finished task whose value was lost as one that is to run, if it may."""
        cells = None if cell.unsuccessful else to_revive(cell, self._writers)
        if cells is None:
            cell.placement = None  # it is over all the same, but there is nothing to be had
            return []
        for each in cells:
            each.phase, each.placement = Phase.WAITING, None
            self.outcomes.left += 1
            if each.group is not None:
                each.group.left += 1
        wait_for_producers(cells)
        return cells

    def _may_run(self, cell: Cell) -> bool:
        if cell.waits:
            cell.blame = find_blame(cell) or self._find_gone(cell)
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

    def _find_gone(self, cell: Cell) -> Cell | None:
        """Find a task whose value another one takes, and which is lost for good."""
        if not self._any_lost:
            return None
        return next((each for each in cell.producers if each.over and is_gone(each)), None)

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
        self._stopping.discard(cell)
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

    def _recover(
        self, placement: Placement, running: int | None, why: Mapping[str, Any]
    ) -> list[Cell]:
        """Settle what may not run again; returns what does. `running` is None if unknown."""
        deferred = []
        left = placement.members_left()
        for cell in left:
            began = running is None or cell.member == running
            if cell in self._stopping:
                self._tell(placement, cell, Status.CANCELLED)
                continue
            if began:
                self._deaths[cell] += 1
                beside = [each for each in left if each is not cell] if running is None else ()
                reason = why_not_again(cell, self._deaths[cell], beside)
                if reason is not None:
                    error = lost_with_worker(cell, reason, self._deaths[cell], why)
                    self._tell(placement, cell, Status.FAILED, pack_error(error, cell.label))
                    continue
            self._give_back(placement, cell)
            deferred.append(cell)
        return deferred

    def _forget(self, placement: Placement) -> None:
        """Drop what was needed of a block until it was over."""
        self._live.pop(placement.number, None)
        self._stuck.discard(placement)
        placement.waits = frozenset()
        placement.held = ()
        if placement.number in self._revoked:
            self._revoked.discard(placement.number)
            self._backend.forget([placement.number])
