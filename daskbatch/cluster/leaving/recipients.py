"""Decides which workers can leave without a loss.

The functions are pure: `departures` describes the workers to them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple


class Holding(NamedTuple):
    """What a worker has that would be lost with it.

    Parameters
    ----------
    unique_values : bool
        Whether it has values that no worker has that stays.
    shards : bool
        Whether it has parts of dictionaries or queues.
    foreign_actors : bool
        Whether it has actors that are not daskbatch's. Nothing can move them.
    """

    unique_values: bool = False
    shards: bool = False
    foreign_actors: bool = False


def unable_to_leave(holdings: Mapping[str, Holding], staying: Collection[str]) -> set[str]:
    """Return the workers that would lose something if they left, since no worker can take it.

    Parameters
    ----------
    holdings : mapping
        What each worker that is to leave has, by its address.
    staying : collection of str
        The workers that can take something.

    Examples
    --------
    >>> unable_to_leave({"a": Holding(shards=True), "b": Holding()}, [])
    {'a'}
    >>> unable_to_leave({"a": Holding(shards=True), "b": Holding(foreign_actors=True)}, ["c"])
    {'b'}
    """
    return {
        address
        for address, has in holdings.items()
        if has.foreign_actors or (not staying and (has.unique_values or has.shards))
    }


def not_begun(processing: Iterable[object], executing: Collection[object]) -> list[object]:
    """Return the keys that a worker has been sent and has not begun; they can run elsewhere."""
    begun = set(executing)
    return [key for key in processing if key not in begun]
