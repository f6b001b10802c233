"""Asks the shards of a shared object how much they hold, for the page /daskbatch.

Runs on the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from typing import Any

from distributed import Scheduler

from daskbatch.shared.actor_admission import load_received
from daskbatch.shared.data.messages import ObjectInfo, Replica


async def size_of(scheduler: Scheduler, obj: ObjectInfo, seconds: float) -> tuple[Any, ...]:
    """Return how much an object holds, as `dashboard.SharedSize` has it.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    obj : ObjectInfo
        The object.
    seconds : float
        How long its primaries may take; then the size is not known.
    """
    primaries = [layout.replicas[0] for layout in obj.layouts if layout.replicas]
    totals: tuple[int | None, ...] = (None, None, None)
    with contextlib.suppress(Exception):  # a worker does not answer: that is shown
        answers = await asyncio.wait_for(
            asyncio.gather(*(_ask(scheduler, each) for each in primaries)), seconds
        )
        totals = tuple(map(sum, zip((0, 0, 0), *answers, strict=True)))
    name = obj.name or obj.uid[:8]
    lost = len(obj.layouts) - len(primaries)
    return (obj.options.kind, name, *totals, len(obj.layouts), obj.options.replicas, lost)


async def _ask(scheduler: Scheduler, primary: Replica) -> tuple[int, int, int]:
    answer = await scheduler.rpc(primary.worker).actor_execute(
        function="size", actor=primary.key, args=[], kwargs={}
    )
    size: tuple[int, int, int] = pickle.loads(load_received(answer["result"]))
    return size
