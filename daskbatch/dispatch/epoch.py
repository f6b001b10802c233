"""A sequential program that goes on: puts tasks in order that come a few at a time.

Does not know when they come, nor what starts them. Between two fences all that comes is one
program: what comes later waits for what came before by what both read and write, also if that
is over, since what it needed may have failed.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from daskbatch.dispatch.cell import Cell
from daskbatch.plan.hazards import WAR, HazardTracker, Waits
from daskbatch.plan.program import may_run_again, without_implied


class Epoch:
    """The accesses since the last fence.

    Parameters
    ----------
    home : str
        The Batch that the tasks belong to.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._tracker = HazardTracker(self._new_barrier)
        self._numbers = itertools.count()
        # Barriers are numbered apart: the tracker compares the numbers of tasks.
        self._barriers = itertools.count(-1, -1)
        #: Those that accesses may refer to, by their nodes.
        self._cells: dict[int, Cell] = {}
        self._waits: dict[int, Waits] = {}
        self._ordered: list[Cell] = []

    def add(self, cells: Sequence[Cell]) -> list[Cell]:
        """Let tasks wait for those that they must come after.

        Parameters
        ----------
        cells : sequence of Cell
            In program order, behind all that were added before.

        Returns
        -------
        list of Cell
            The tasks and the barriers between them, each behind those that it waits for.
        """
        self._ordered = []
        for cell in cells:
            if cell.reads or cell.writes:
                self._add(cell)
            self._ordered.append(cell)
        ordered, self._ordered = self._ordered, []
        return ordered

    def _add(self, cell: Cell) -> None:
        node = next(self._numbers)
        self._cells[node] = cell
        found = self._tracker.add(node, cell.reads, cell.writes)
        cell.overwrites = tuple(
            self._cells[before]
            for before, why in found.items()
            if why & WAR and (before < 0 or may_run_again(self._cells[before]))
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

    def _as_cells(self, waits: Waits) -> tuple[tuple[Cell, int], ...]:
        return tuple((self._cells[before], why) for before, why in waits.items())
