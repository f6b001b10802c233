"""What the page /daskbatch draws: clients and their summaries, and shared objects.

Plain records. The scheduler's event loop makes and reads them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from daskbatch.dashboard.summary import ClientSummary


class ClientOnPage(Protocol):
    """The part of a registered client that is shown."""

    topic: str
    batch: str
    where: str
    number: int


class SharedSize(NamedTuple):
    """A dictionary or a queue, and how much is in it.

    Parameters
    ----------
    kind, name : str
        Which it is.
    items, nbytes : int, optional
        The number of keys or items, and their bytes; None if a shard does not answer, or has too
        many to add them up.
    shards, replicas, lost : int
        The number of shards, on how many workers each is, and how many are lost.
    """

    kind: str
    name: str
    items: int | None
    nbytes: int | None
    shards: int
    replicas: int
    lost: int


class PageSource(Protocol):
    """Where a page finds what it draws; the scheduler's event loop calls it."""

    shared: Sequence[SharedSize]

    def look(self) -> None:
        """Ask clients and shards how they are."""

    def clients(self) -> list[tuple[ClientOnPage, ClientSummary | None]]:
        """Return the registered clients, and what each has answered last."""
