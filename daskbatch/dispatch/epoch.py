"""A sequential program that goes on: puts tasks in order that come a few at a time.

Does not know when they come, nor what starts them. Between two fences all that comes is one
program: what comes later waits for what came before by what both read and write, also if that
is over, since what it needed may have failed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from weakref import WeakValueDictionary

from daskbatch.dispatch.task_record import Cell, Phase
from daskbatch.plan.hazards import WAR, HazardTracker, Waits
from daskbatch.plan.program import may_run_again, without_implied

#: So many tasks are kept, done or not, before it is looked which of them are.
_MANY = 32


class Epoch:
    """The accesses since the last fence.

    Parameters
    ----------
    home : str
        The Batch that the tasks belong to.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._numbers = itertools.count()
        # Barriers are numbered apart: the tracker compares the numbers of tasks.
        self._barriers = itertools.count(-1, -1)
        self._ordered: list[Cell] = []
        self._begin()

    def _begin(self) -> None:
        self._tracker = HazardTracker(self._new_barrier)
        #: Those that accesses may refer to, by their nodes.
        self._cells: dict[int, Cell] = {}
        #: Those of them that have been done. There is no more to wait for, and their results are
        #: the user's to keep; but one whose result was lost may be running again.
        self._done: WeakValueDictionary[int, Cell] = WeakValueDictionary()
        self._waits: dict[int, Waits] = {}
        self._look_at = _MANY

    def add(self, cells: Iterable[Cell], ordered: list[Cell]) -> None:
        """Let tasks wait for those that they must come after.

        Parameters
        ----------
        cells : iterable of Cell
            In program order, behind all that were added before.
        ordered : list of Cell
            The tasks, and the barriers between them, are put here, each behind those that it
            waits for.
        """
        if len(self._cells) >= self._look_at:
            self._let_go()
        self._ordered = ordered
        for cell in cells:
            if cell.reads or cell.writes:
                self._add(cell)
            ordered.append(cell)

    def start_over(self) -> None:
        """Forget what is over: what comes now does not depend on how it ended."""
        # Another thread may have started more. And what was cancelled was over before that
        # which it had waited for; others wait for it only by way of the cancelled one.
        left = {node: cell for node, cell in self._cells.items() if not _is_past(cell)}
        if left:
            self._cells = left
            self._waits = {node: self._waits[node] for node in left if node in self._waits}
        else:
            self._begin()

    def _let_go(self) -> None:
        for node, cell in list(self._cells.items()):
            if cell.phase == Phase.DONE:
                del self._cells[node]
                self._waits.pop(node, None)
                self._done[node] = cell
        self._look_at = 2 * len(self._cells) + _MANY

    def _add(self, cell: Cell) -> None:
        node = next(self._numbers)
        self._cells[node] = cell
        found = self._tracker.add(node, cell.reads, cell.writes)
        cell.overwrites = tuple(
            reader
            for before, why in found.items()
            if why & WAR
            and (reader := self._find(before)) is not None
            and (before < 0 or may_run_again(reader))
        )
        if found:
            self._waits[node] = without_implied(found, self._waits)
            cell.waits = self._as_cells(self._waits[node])

    def _new_barrier(self, before: Waits) -> int:
        node = next(self._barriers)
        barrier = self._cells[node] = Cell(self._home, -1, "barrier", None)
        self._waits[node] = before
        barrier.waits = self._as_cells(before)
        self._ordered.append(barrier)
        return node

    def _find(self, node: int) -> Cell | None:
        return self._cells.get(node) or self._done.get(node)

    def _as_cells(self, waits: Waits) -> tuple[tuple[Cell, int], ...]:
        found = ((self._find(before), why) for before, why in waits.items())
        return tuple((cell, why) for cell, why in found if cell is not None)


def _is_past(cell: Cell) -> bool:
    return cell.over and not cell.waits_left()
