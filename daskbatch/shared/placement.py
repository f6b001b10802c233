"""Decides where the parts of a shared object are to be: what to add, to drop, and to move.

The functions change nothing. Workers are given by their addresses. See `registry`, which carries
out what they decide.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple


class Move(NamedTuple):
    """A part that is to move from one worker to another.

    Parameters
    ----------
    shard : int
        The index of the shard.
    source, target : str
        The worker that has it, and the worker that is to have it.
    """

    shard: int
    source: str
    target: str


def missing_replicas(workers: Sequence[str], wanted: int, leaving: Collection[str]) -> int:
    """Return how many replicas a shard lacks on workers that stay.

    Parameters
    ----------
    workers : sequence of str
        The workers that have it.
    wanted : int
        How many replicas it is to have.
    leaving : collection of str
        The workers that leave, or from which the shard is to move away.

    Examples
    --------
    >>> missing_replicas(["a", "b"], 2, leaving=["a"])
    1
    """
    return max(0, wanted - sum(worker not in leaving for worker in workers))


def to_drop(
    workers: Sequence[str], wanted: int, leaving: Collection[str], more_come: bool
) -> list[str]:
    """Return the leaving workers that are no longer needed for a shard.

    Parameters
    ----------
    workers, wanted, leaving
        See `missing_replicas`.
    more_come : bool
        Whether more replicas are being built, or can be.

    Examples
    --------
    >>> to_drop(["a", "b"], 1, leaving=["a"], more_come=False)
    ['a']
    >>> to_drop(["a"], 1, leaving=["a"], more_come=True)
    []
    """
    gone = [worker for worker in workers if worker in leaving]
    staying = len(workers) - len(gone)
    if not staying or (more_come and staying < wanted):
        return []
    return gone


def spread(shards: Mapping[int, Sequence[str]], able: Sequence[str]) -> list[Move]:
    """Return the moves after which each worker has as many shards of an object as any other.

    Parameters
    ----------
    shards : mapping
        For each shard that may move, the workers that have it, first the primary's.
    able : sequence of str
        The workers that can take a part.

    Examples
    --------
    >>> spread({0: ["a"], 1: ["a"], 2: ["a"]}, ["a", "b"])
    [Move(shard=0, source='a', target='b')]
    >>> spread({0: ["a", "b"], 1: ["a", "b"]}, ["a", "b"])
    []
    """
    places = {index: list(workers) for index, workers in shards.items()}
    load = dict.fromkeys(able, 0)
    for workers in places.values():
        for worker in workers:
            if worker in load:
                load[worker] += 1
    moves: list[Move] = []
    moved: set[int] = set()
    while len(load) > 1:
        target = min(load, key=lambda worker: load[worker])
        found = None
        for source in sorted(load, key=lambda worker: -load[worker]):
            if load[source] - load[target] < 2:
                break
            found = next(
                (
                    Move(index, source, target)
                    for index, workers in places.items()
                    if source in workers and target not in workers and index not in moved
                ),
                None,
            )
            if found is not None:
                break
        if found is None:
            break
        moves.append(found)
        moved.add(found.shard)
        places[found.shard].remove(found.source)
        places[found.shard].append(found.target)
        load[found.source] -= 1
        load[found.target] += 1
    return moves
