"""Describes the workers to `gang_plan`: their slots, and who has them.

It reads the state of Dask's scheduler, and changes nothing. To be called on the scheduler's event
loop.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from distributed import Scheduler

from daskbatch.cluster.gang_plan import WorkerState
from daskbatch.cluster.gang_run import GangRun, GangState
from daskbatch.cluster.slot_holders import Holder
from daskbatch.cluster.versions.unfit_workers import usable


@dataclass(slots=True)
class SlotCounts:
    """How many slots of one worker are used, and by what.

    Attributes
    ----------
    granted : int
        Those of granted gangs, and of holders that are ending.
    idle : int
        Those of holders that no gang owns.
    occupied : int
        The Dask tasks of gangs and holders that occupy a slot, or wait for one, there.
    resources : Counter
        The abstract resources that granted gangs have.
    """

    granted: int = 0
    idle: int = 0
    occupied: int = 0
    resources: Counter[str] = field(default_factory=Counter)


def count_slots(
    scheduler: Scheduler, gangs: Iterable[GangRun], holders: Iterable[Holder]
) -> dict[str, SlotCounts]:
    """Count the slots that gangs have, for each worker that runs tasks."""
    counts = {each.address: SlotCounts() for each in usable(scheduler, scheduler.running)}
    for gang in gangs:
        if gang.state in (GangState.RUNNING, GangState.ENDING) and gang.head in counts:
            count = counts[gang.head]
            count.granted += 1
            count.resources.update(gang.request.resources)
            worker = scheduler.workers[gang.head]
            task = scheduler.tasks.get(gang.key)
            count.occupied += task in worker.processing and task not in worker.long_running
    for holder in holders:
        if holder.address not in counts:
            continue
        count, owner = counts[holder.address], holder.owner
        count.occupied += 1
        if owner is None and not holder.ending:
            count.idle += 1
        elif holder.ending or (isinstance(owner, GangRun) and not owner.wants_slots):
            count.granted += 1
            count.resources.update(holder.resources)
    return counts


def describe_workers(
    scheduler: Scheduler, counts: Mapping[str, SlotCounts], first: Any
) -> list[WorkerState]:
    """Return the workers that run tasks; first those that suit a gang best.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    counts : mapping
        The slots that gangs have, by the worker's address.
    first : object
        The Dask key of the gang.
    """
    inputs = _input_bytes(scheduler, first)
    workers = []
    warm_hosts = set()
    for each in usable(scheduler, scheduler.running):
        count = counts[each.address]
        if count.idle:
            warm_hosts.add(each.host)
        supply = dict(each.resources)
        workers.append(
            WorkerState(
                address=each.address,
                host=each.host,
                name=str(each.name),
                slots=each.nthreads,
                resources={name: supply[name] - count.resources[name] for name in supply},
                supply=supply,
                granted=count.granted,
                ordinary=ordinary_tasks(each, count),
            )
        )
    # The slots that the last gang has left behind are taken over at once, apart from the slot of
    # its task, which was not held. The task of the next gang is to have that one.
    return sorted(
        workers,
        key=lambda each: (
            each.host not in warm_hosts,
            counts[each.address].idle > 0,
            -inputs.get(each.address, 0),
            each.address,
        ),
    )


def ordinary_tasks(worker: Any, count: SlotCounts) -> int:
    """Return how many ordinary tasks a worker runs, or is to run."""
    return max(0, len(worker.processing) - len(worker.long_running) - count.occupied)


def _input_bytes(scheduler: Scheduler, key: Any) -> dict[str, int]:
    """Return how many bytes of a task's inputs each worker has."""
    found: Counter[str] = Counter()
    state = scheduler.tasks.get(key)
    for before in () if state is None else state.dependencies:
        for worker in before.who_has or ():
            found[worker.address] += before.get_nbytes()
    return found
