"""Says what no worker can ever meet of what a task asks for.

Does not know when to ask: a cluster may grow until it can.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from daskbatch.describe.spec import Options


class Capacity(NamedTuple):
    """What a worker has.

    Parameters
    ----------
    address, host, name : str
        Where it is, and how it is called.
    resources : dict
        Its abstract resources.
    """

    address: str
    host: str
    name: str
    resources: dict[str, float]


def unmet(options: Options, workers: Sequence[Capacity]) -> str | None:
    """Say what is asked for and what there is, if no worker has it; else None.

    Examples
    --------
    >>> worker = Capacity("tcp://10.0.0.1:1", "10.0.0.1", "w", {"GPU": 1})
    >>> unmet(Options(resources=(("GPU", 2.0),)), [worker])
    "asks for the resources {'GPU': 2.0}; the largest worker has {'GPU': 1}"
    """
    allowed = [
        worker
        for worker in workers
        if not options.workers or any(_is_at(worker, place) for place in options.workers)
    ]
    if options.workers and not allowed:
        there = ", ".join(sorted({worker.address for worker in workers})[:5]) or "none"
        return f"may run only at {', '.join(options.workers)}; the workers are: {there}"
    wanted = dict(options.resources)
    if any(all(w.resources.get(n, 0) >= a for n, a in wanted.items()) for w in allowed):
        return None
    if not wanted:
        return None
    largest = {
        name: max((worker.resources.get(name, 0) for worker in allowed), default=0)
        for name in wanted
    }
    return f"asks for the resources {wanted}; the largest worker has {largest}"


def _is_at(worker: Capacity, place: str) -> bool:
    return place in (worker.address, worker.host, worker.name, worker.address.partition("://")[2])
