"""Tasks that wait in the background until somebody asks for what they do.

Does not know how they came about, nor how they are started. When one is needed all are, so
that they run in parallel; in the order that their reads and writes ask for, also towards those
that were started before, until a fence.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from daskbatch.dispatch.cell import Cell, Phase
from daskbatch.dispatch.epoch import Epoch
from daskbatch.dispatch.uninterrupted import uninterrupted


class Backlog:
    """What waits in the background of a Batch.

    Parameters
    ----------
    home : str
        The Batch.
    """

    def __init__(self, home: str) -> None:
        self._home = home
        self._cells: list[Cell] = []
        self._epoch = Epoch(home)
        #: Held from when tasks are taken until they are started, or two threads could start
        #: them out of order.
        self._starting = threading.RLock()

    def __len__(self) -> int:
        return len(self._cells)

    @property
    def cells(self) -> list[Cell]:
        """The tasks that wait."""
        return list(self._cells)

    def add(self, cell: Cell) -> None:
        """Put a task behind the others."""
        with self._starting:
            cell.phase = Phase.QUEUED
            self._cells.append(cell)

    def flush(self, start: Callable[[Sequence[Cell]], None]) -> None:
        """Start all that wait."""
        if self._cells:
            with self._starting, uninterrupted():
                cells, self._cells = self._cells, []
                start(self._epoch.add(cells))

    def start_over(self) -> None:
        """Forget what was read and written before: it is over."""
        with self._starting:
            if not self._cells:
                self._epoch = Epoch(self._home)

    def drop(self) -> list[Cell]:
        """Start none of those that wait; returns them."""
        with self._starting:
            cells, self._cells = self._cells, []
            return cells
