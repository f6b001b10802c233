"""A block on the cluster: its key, its members, what it hangs on.

Does not know how it was packed, nor what its members return.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from daskbatch.dispatch.cell import Cell


class Future(Protocol):
    """What of a Dask future is needed here. The key lives as long as it does."""

    @property
    def status(self) -> str: ...
    def result(self, timeout: float | None = None) -> Any: ...


class Placement:
    """A block that has been, or is about to be, submitted.

    Parameters
    ----------
    number : int
        Its number in reports and revocations.
    cells : sequence of Cell
        Its members; one that was deferred or revoked points to another placement.
    """

    __slots__ = (
        "buffers",
        "cells",
        "failed",
        "future",
        "held",
        "key",
        "left",
        "number",
        "small",
        "waits",
    )

    def __init__(self, number: int, cells: Sequence[Cell]) -> None:
        self.number = number
        self.cells = cells
        self.key: tuple[str, int] = ("", number)
        #: Members whose outcome has not been told yet.
        self.left = len(cells)
        #: Whether its result is known to be small, so that order-only edges may carry it.
        self.small = False
        #: The placements that its key waits for.
        self.waits: frozenset[Placement] = frozenset()
        self.future: Future | None = None
        #: Whether its key has failed as a whole.
        self.failed = False
        #: The keys of the shared buffers that it takes, and their futures, which must live
        #: as long as it runs.
        self.buffers: Sequence[str] = ()
        self.held: Sequence[Any] = ()

    @property
    def name(self) -> str:
        """What Dask's dashboard calls it."""
        return self.key[0].rpartition("-")[0]
