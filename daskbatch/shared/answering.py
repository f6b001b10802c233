"""Finds out which workers answer at the moment: others may be frozen, or cut off.

Dask notices a frozen worker only when `worker-ttl` has passed. The function is a coroutine of the
scheduler's event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any


async def answering(scheduler: Any, workers: Sequence[str], seconds: float) -> set[str]:
    """Return those workers that answer within some seconds; returns as soon as all have.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        The scheduler.
    workers : sequence of str
        The addresses of the workers.
    seconds : float
        How long they may take.
    """
    asked = {asyncio.ensure_future(_ask(scheduler, worker)): worker for worker in workers}
    if not asked:
        return set()
    done, silent = await asyncio.wait(asked, timeout=seconds)
    for each in silent:
        each.cancel()
    return {asked[each] for each in done if each.exception() is None}


async def _ask(scheduler: Any, worker: str) -> None:
    await scheduler.rpc(worker).echo(data=None)
