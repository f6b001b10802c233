"""Decides which waiting gang may collect slots now, and which slots.

Pure functions on records of the workers and of the gangs; `gang_allocator` carries out what they
decide.

The rules:

- A gang that waits collects slots only if the slots that no granted gang has are enough for it.
  Then nothing but ordinary tasks, which end, stands between it and its slots. Until then ordinary
  tasks run everywhere.
- Gangs are looked at in their order. A gang that cannot have its slots yet, but will, keeps the
  later gangs away from all slots that it could use. A gang that the present workers could never
  satisfy keeps nobody away.
- If enough slots are idle, it takes those that `slot_choice` prefers. If not, it asks for more
  slots than it needs, and takes the first ones that become free: nobody knows how long the
  running tasks take.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from daskbatch.describe.gang import Gang
from daskbatch.dispatch.requirements import is_allowed
from daskbatch.dispatch.slot_choice import (
    ChosenSlot,
    OfferedSlots,
    SlotChoice,
    choose_slots,
    most_ranks,
    usable_slots,
)

#: A gang asks for at most twice the slots that it needs, and this many more.
_SPARE_SLOTS = 16


class GangRequest(NamedTuple):
    """What a gang asks for.

    Parameters
    ----------
    gang : Gang
        The number of ranks, and the slots of each.
    resources : mapping
        The abstract resources of each rank.
    workers : tuple of str
        The workers that it may use, by addresses, hosts or names; any if empty.
    """

    gang: Gang
    resources: Mapping[str, float]
    workers: tuple[str, ...]


class WorkerState(NamedTuple):
    """A worker that runs tasks, as the plan sees it.

    Parameters
    ----------
    address, host, name : str
        The worker's address, its machine, and its name.
    slots : int
        How many tasks it runs at once.
    resources : mapping
        The abstract resources that no granted gang has.
    supply : mapping
        All abstract resources of the worker.
    granted : int
        How many of its slots granted gangs have.
    ordinary : int
        How many ordinary tasks run there, or wait there for a slot.
    """

    address: str
    host: str
    name: str
    slots: int
    resources: Mapping[str, float]
    supply: Mapping[str, float]
    granted: int
    ordinary: int


class WaitingGang(NamedTuple):
    """A gang that waits for its slots.

    Parameters
    ----------
    request : GangRequest
        What it asks for.
    fixed : sequence of ChosenSlot, optional
        The slots that it must have, because it had them before and its task still runs.
    held : mapping
        How many slots it holds already, by the worker's address.
    impatient : bool
        Whether slots that seemed idle were not: then it asks for more slots than it needs.
    """

    request: GangRequest
    fixed: Sequence[ChosenSlot] | None
    held: Mapping[str, int]
    impatient: bool


class Collection(NamedTuple):
    """What a waiting gang may collect.

    Parameters
    ----------
    targets : tuple of ChosenSlot, optional
        The slots that it may hold; None if it must wait.
    choice : SlotChoice, optional
        If `targets` are exactly the slots that it needs, and all of them seem to be idle.
    why : str
        What it waits for, for people.
    """

    targets: tuple[ChosenSlot, ...] | None
    choice: SlotChoice | None
    why: str


def plan_collections(
    gangs: Iterable[WaitingGang], workers: Sequence[WorkerState]
) -> list[Collection]:
    """Return for each waiting gang, in their order, which slots it may collect.

    Parameters
    ----------
    gangs : iterable of WaitingGang
        The gangs, the first one first.
    workers : sequence of WorkerState
        The workers, preferred ones first.
    """
    claimed: Counter[str] = Counter()
    return [_plan(gang, workers, claimed) for gang in gangs]


def _plan(
    waiting: WaitingGang, workers: Sequence[WorkerState], claimed: Counter[str]
) -> Collection:
    """Plan one gang, and add the slots that it keeps from later gangs to `claimed`."""
    gang, resources, names = waiting.request
    free = {each.address: each.slots - each.granted - claimed[each.address] for each in workers}
    if waiting.fixed is not None:
        return _plan_fixed(waiting.fixed, free, claimed)
    allowed = [each for each in workers if is_allowed(names, each.address, each.host, each.name)]
    offered = [
        OfferedSlots(each.address, each.host, free[each.address], each.resources)
        for each in allowed
    ]
    if choose_slots(gang, resources, offered) is None:
        return _wait_for_others(waiting.request, allowed, free, claimed)
    idle = [
        each._replace(
            slots=min(
                each.slots,
                max(each.slots - worker.ordinary, waiting.held.get(each.address, 0)),
            )
        )
        for each, worker in zip(offered, allowed, strict=True)
    ]
    choice = None if waiting.impatient else choose_slots(gang, resources, idle)
    if choice is not None:
        claimed.update(slot.address for slot in choice.slots)
        return Collection(choice.slots, choice, "its slots are about to be granted")
    targets = _spread(gang, resources, offered, idle)
    for each in usable_slots(gang, resources, offered):
        claimed[each.address] += max(0, each.slots)
    held = sum(waiting.held.values())
    why = f"it holds {min(held, gang.slots)} of {gang.slots} slots; running tasks have the others"
    return Collection(targets, None, why)


def _plan_fixed(
    fixed: Sequence[ChosenSlot], free: Mapping[str, int], claimed: Counter[str]
) -> Collection:
    """Plan a gang that wants back what it has lent."""
    # A worker that is paused or gone starts no task: its slots are neither used nor needed.
    needed = [slot for slot in fixed if slot.address in free]
    counts = Counter(slot.address for slot in needed)
    claimed.update(counts)
    if any(free[address] < count for address, count in counts.items()):
        return Collection(None, None, "it has lent its slots to other gangs, which run")
    return Collection(tuple(needed), None, "its slots, which it has lent, become free")


def _wait_for_others(
    request: GangRequest,
    allowed: Sequence[WorkerState],
    free: Mapping[str, int],
    claimed: Counter[str],
) -> Collection:
    """Plan a gang that cannot have its slots now."""
    gang, resources, _ = request
    whole = [OfferedSlots(each.address, each.host, each.slots, each.supply) for each in allowed]
    if choose_slots(gang, resources, whole) is None:
        return Collection(None, None, "the workers that may run it have too few slots")
    for each in usable_slots(gang, resources, whole):
        claimed[each.address] += max(0, free[each.address])
    return Collection(None, None, "other gangs have the slots")


def _spread(
    gang: Gang,
    resources: Mapping[str, float],
    offered: Sequence[OfferedSlots],
    idle: Sequence[OfferedSlots],
) -> tuple[ChosenSlot, ...]:
    """Return more slots than a gang needs, those of hosts with many idle slots first."""
    usable = usable_slots(gang, resources, offered)
    idle_slots: Counter[str] = Counter()
    for each in idle:
        idle_slots[each.host] += max(0, each.slots)
    hosts: dict[str, list[OfferedSlots]] = {}
    for each in usable:
        hosts.setdefault(each.host, []).append(each)
    targets: list[ChosenSlot] = []
    taken: list[OfferedSlots] = []
    for _, some in sorted(hosts.items(), key=lambda item: -idle_slots[item[0]]):
        taken += some
        targets += most_ranks(gang.cores, resources, some)
        if (
            len(targets) >= 2 * gang.slots + _SPARE_SLOTS
            and choose_slots(gang, resources, taken) is not None
        ):
            break
    return tuple(targets)
