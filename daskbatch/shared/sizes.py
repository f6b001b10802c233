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
    items: int | None = None
    nbytes: int | None = None
    with contextlib.suppress(Exception):  # a worker does not answer: that is shown
        answers = await asyncio.wait_for(
            asyncio.gather(*(_ask(scheduler, each) for each in primaries)), seconds
        )
        items = sum(count for count, _ in answers)
        if all(size is not None for _, size in answers):
            nbytes = sum(size or 0 for _, size in answers)
    name = obj.name or obj.uid[:8]
    lost = len(obj.layouts) - len(primaries)
    return (obj.options.kind, name, items, nbytes, len(obj.layouts), obj.options.replicas, lost)


async def _ask(scheduler: Scheduler, primary: Replica) -> tuple[int, int | None]:
    answer = await scheduler.rpc(primary.worker).actor_execute(
        function="size", actor=primary.key, args=[], kwargs={}
    )
    size: tuple[int, int | None] = pickle.loads(load_received(answer["result"]))
    return size
