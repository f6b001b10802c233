"""Finds out which of a task's requirements no worker meets.

The caller decides when to check: workers that meet them may still join the cluster.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from daskbatch.describe.spec import Options
from daskbatch.dispatch.slot_choice import OfferedSlots, choose_slots, describe_shortage
from daskbatch.dispatch.task_record import TaskRecord


class Capacity(NamedTuple):
    """What a worker offers.

    Parameters
    ----------
    address, host, name : str
        The worker's address, its machine, and its name.
    resources : dict
        Its abstract resources.
    slots : int
        How many tasks it runs at once.
    is_here : bool
        False for a worker that has died, and that its nanny is about to replace.
    seconds : float
        How long it stays; infinite if no end is announced.
    """

    address: str
    host: str
    name: str
    resources: dict[str, float]
    slots: int = 1
    is_here: bool = True
    seconds: float = math.inf


def requires_something(options: Options) -> bool:
    """Return whether options require something that a cluster may not have."""
    return bool(options.resources or options.workers or options.gang or options.walltime)


def refusals(records: Iterable[TaskRecord], workers: Sequence[Capacity]) -> dict[TaskRecord, str]:
    """Return the tasks that no worker can run, and why."""
    reasons: dict[Options, str | None] = {}
    for record in records:
        if record.options not in reasons:
            reasons[record.options] = unmet(record.options, workers)
    return {record: why for record in records if (why := reasons[record.options]) is not None}


def unmet(options: Options, workers: Sequence[Capacity]) -> str | None:
    """Return what is required and what the workers offer, if no worker meets it; else None.

    Examples
    --------
    >>> worker = Capacity("tcp://10.0.0.1:1", "10.0.0.1", "w", {"GPU": 1})
    >>> unmet(Options(resources=(("GPU", 2.0),)), [worker])
    "asks for the resources {'GPU': 2.0}; the largest worker has {'GPU': 1}"
    """
    returning = [worker for worker in workers if not worker.is_here]
    workers = [worker for worker in workers if worker.is_here]
    allowed = [
        worker
        for worker in workers
        if is_allowed(options.workers, worker.address, worker.host, worker.name)
    ]
    if options.workers and not allowed:
        existing = ", ".join(sorted({worker.address for worker in workers})[:5]) or "none"
        return f"may run only at {', '.join(options.workers)}; the workers are: {existing}"
    longest = max((worker.seconds for worker in allowed), default=math.inf)
    if options.walltime is not None and longest < options.walltime:
        return (
            f"has a walltime of {options.walltime:g} s; the worker that stays longest ends in "
            f"{max(0.0, longest):.0f} s"
        )
    required = dict(options.resources)
    if options.gang is not None and not workers:
        return None  # with no worker at all, tasks wait
    if any(
        all(worker.resources.get(name, 0) >= amount for name, amount in required.items())
        for worker in allowed
    ):
        return _unmet_gang(options, [*allowed, *returning])
    if not required:
        return None
    largest = {
        name: max((worker.resources.get(name, 0) for worker in allowed), default=0)
        for name in required
    }
    return f"asks for the resources {required}; the largest worker has {largest}"


def _unmet_gang(options: Options, allowed: Sequence[Capacity]) -> str | None:
    """Return what a gang requires, if even all slots of the workers are too few; else None."""
    if options.gang is None:
        return None
    offered = [
        OfferedSlots(worker.address, worker.host, worker.slots, worker.resources)
        for worker in allowed
    ]
    required = dict(options.resources)
    if choose_slots(options.gang, required, offered) is not None:
        return None
    shortage = describe_shortage(options.gang, required, offered)
    return f"{shortage}: ask for fewer ranks or cores, or add workers"


def is_allowed(workers: Sequence[str], address: str, host: str, name: str) -> bool:
    """Return whether a worker is one of those that are named, if any are.

    Parameters
    ----------
    workers : sequence of str
        Addresses, with or without the protocol, machines, or workers' names; empty for any.
    address, host, name : str
        The worker's address, its machine, and its name.
    """
    return not workers or any(
        each in (address, host, name, address.partition("://")[2]) for each in workers
    )
