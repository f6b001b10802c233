"""Finds out which of a task's requirements no worker meets.

The caller decides when to check: workers that meet them may still join the cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from daskbatch.describe.spec import Options


class Capacity(NamedTuple):
    """What a worker offers.

    Parameters
    ----------
    address, host, name : str
        The worker's address, its machine, and its name.
    resources : dict
        Its abstract resources.
    """

    address: str
    host: str
    name: str
    resources: dict[str, float]


def unmet(options: Options, workers: Sequence[Capacity]) -> str | None:
    """Return what is required and what the workers offer, if no worker meets it; else None.

    Examples
    --------
    >>> worker = Capacity("tcp://10.0.0.1:1", "10.0.0.1", "w", {"GPU": 1})
    >>> unmet(Options(resources=(("GPU", 2.0),)), [worker])
    "asks for the resources {'GPU': 2.0}; the largest worker has {'GPU': 1}"
    """
    allowed = [
        worker
        for worker in workers
        if not options.workers or any(_is_named(worker, name) for name in options.workers)
    ]
    if options.workers and not allowed:
        existing = ", ".join(sorted({worker.address for worker in workers})[:5]) or "none"
        return f"may run only at {', '.join(options.workers)}; the workers are: {existing}"
    required = dict(options.resources)
    if any(
        all(worker.resources.get(name, 0) >= amount for name, amount in required.items())
        for worker in allowed
    ):
        return None
    if not required:
        return None
    largest = {
        name: max((worker.resources.get(name, 0) for worker in allowed), default=0)
        for name in required
    }
    return f"asks for the resources {required}; the largest worker has {largest}"


def _is_named(worker: Capacity, name: str) -> bool:
    """Return whether a name is one of a worker: its address, its machine, or its own name."""
    return name in (worker.address, worker.host, worker.name, worker.address.partition("://")[2])
