"""Chooses the slots of a gang: consecutive ranks fill a host, and the hosts are as few as possible.

Pure functions. The scheduler calls them to grant slots, and the client to find out whether a gang
could ever be granted.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from daskbatch.describe.gang import Gang


class OfferedSlots(NamedTuple):
    """The slots of one worker that a gang may take.

    Parameters
    ----------
    address, host : str
        The worker's address, and its machine.
    slots : int
        How many slots the gang may take.
    resources : mapping
        The abstract resources that it may take.
    """

    address: str
    host: str
    slots: int
    resources: Mapping[str, float]


class ChosenSlot(NamedTuple):
    """One slot of a gang.

    Parameters
    ----------
    address : str
        The worker.
    leads_rank : bool
        Whether it is the first slot of a rank, which takes the rank's resources.
    """

    address: str
    leads_rank: bool


class SlotChoice(NamedTuple):
    """The slots that a gang is to have.

    Parameters
    ----------
    slots : tuple of ChosenSlot
        All slots; the task itself runs in the first one.
    hosts : tuple of (str, int)
        Each host and its number of ranks, in the order of the ranks.
    """

    slots: tuple[ChosenSlot, ...]
    hosts: tuple[tuple[str, int], ...]


@dataclass(slots=True)
class _Host:
    """The workers of one host, with the number of ranks that each of them can lead."""

    name: str
    cores: int
    workers: list[tuple[OfferedSlots, int]] = field(default_factory=list)

    @property
    def ranks(self) -> int:
        """How many ranks fit on the host."""
        slots = sum(worker.slots for worker, _ in self.workers)
        return min(slots // self.cores, sum(leads for _, leads in self.workers))

    def choose(self, ranks: int) -> list[ChosenSlot]:
        """Return the slots of some ranks: first those that lead a rank."""
        chosen: list[ChosenSlot] = []
        taken: dict[str, int] = {}
        for worker, leads in self.workers:
            count = min(leads, ranks - len(chosen))
            taken[worker.address] = count
            chosen += [ChosenSlot(worker.address, True)] * count
        rest = ranks * (self.cores - 1)
        for worker, _ in self.workers:
            count = min(worker.slots - taken[worker.address], rest)
            rest -= count
            chosen += [ChosenSlot(worker.address, False)] * count
        return chosen


def choose_slots(
    gang: Gang, resources: Mapping[str, float], offered: Iterable[OfferedSlots]
) -> SlotChoice | None:
    """Choose slots for a gang; return None if it cannot have all of them.

    The ranks fill the host that takes most of them, then the next one; the last ranks go to the
    smallest host that takes them all. So the number of hosts is the least possible, and large
    hosts stay free for others. Of equal hosts, and of the workers of a host, the first is taken.

    Parameters
    ----------
    gang : Gang
        How many slots it needs.
    resources : mapping
        The abstract resources of each rank. A rank takes them all from one worker.
    offered : iterable of OfferedSlots
        The slots that it may take; the preferred ones first.

    Examples
    --------
    >>> offered = [OfferedSlots(f"tcp://h{i}:1", f"h{i}", i, {}) for i in (1, 2, 3)]
    >>> choose_slots(Gang(4), {}, offered).hosts
    (('h3', 3), ('h1', 1))
    >>> choose_slots(Gang(1, cores=4), {}, offered) is None
    True
    """
    free = [(host.ranks, host) for host in _hosts(gang, resources, offered) if host.ranks]
    slots: list[ChosenSlot] = []
    filled: list[tuple[str, int]] = []
    remaining = gang.ranks
    while remaining:
        if not free:
            return None
        enough = [entry for entry in free if entry[0] >= remaining]
        best = min(enough, key=_ranks_of) if enough else max(free, key=_ranks_of)
        free.remove(best)
        count = min(best[0], remaining)
        remaining -= count
        slots += best[1].choose(count)
        filled.append((best[1].name, count))
    return SlotChoice(tuple(slots), tuple(filled))


def usable_slots(
    gang: Gang, resources: Mapping[str, float], offered: Iterable[OfferedSlots]
) -> list[OfferedSlots]:
    """Return the offered slots of those hosts on which at least one rank of a gang fits."""
    hosts = _hosts(gang, resources, offered)
    return [worker for host in hosts if host.ranks for worker, _ in host.workers]


def most_ranks(
    cores: int, resources: Mapping[str, float], offered: Sequence[OfferedSlots]
) -> tuple[ChosenSlot, ...]:
    """Return the slots of as many ranks as fit on the offered slots."""
    slots: list[ChosenSlot] = []
    for host in _hosts(Gang(1, cores), resources, offered):
        slots += host.choose(host.ranks)
    return tuple(slots)


def _hosts(
    gang: Gang, resources: Mapping[str, float], offered: Iterable[OfferedSlots]
) -> list[_Host]:
    hosts: dict[str, _Host] = {}
    for worker in offered:
        if worker.slots > 0:
            host = hosts.setdefault(worker.host, _Host(worker.host, gang.cores))
            host.workers.append((worker, _leading_ranks(worker, resources)))
    return list(hosts.values())


def _ranks_of(entry: tuple[int, _Host]) -> int:
    return entry[0]


def _leading_ranks(worker: OfferedSlots, resources: Mapping[str, float]) -> int:
    """Return how many ranks can take their resources from a worker."""
    count = worker.slots
    for name, amount in resources.items():
        count = min(count, int(worker.resources.get(name, 0.0) // amount))
    return count


def describe_shortage(
    gang: Gang, resources: Mapping[str, float], offered: Sequence[OfferedSlots]
) -> str:
    """Return what a gang requires and what there is, for the message of an error."""
    each = "1 slot" if gang.cores == 1 else f"{gang.cores} slots of one host"
    wanted = f"{gang.ranks} ranks of {each} each" if gang.ranks > 1 else each
    if resources:
        wanted += f" with the resources {dict(resources)}" + (" each" if gang.ranks > 1 else "")
    slots: dict[str, int] = {}
    for worker in offered:
        slots[worker.host] = slots.get(worker.host, 0) + max(0, worker.slots)
    hosts = ", ".join(f"{host} has {count}" for host, count in list(slots.items())[:5])
    if len(slots) > 5:
        hosts += f", and {len(slots) - 5} other hosts"
    message = (
        f"asks for {wanted}, all at once; the workers that may run it have "
        f"{sum(slots.values())} slots in all ({hosts or 'there are none'})"
    )
    if resources:
        largest = {
            name: max((worker.resources.get(name, 0.0) for worker in offered), default=0.0)
            for name in resources
        }
        message += f"; the largest worker offers {largest}"
    return message
