"""Has an actor be made on a worker that is busy with other things: the scheduler's part in it.

Does not know what the actor is for. Nobody waits here for a worker that has gone meanwhile.
"""

from __future__ import annotations

import asyncio
import pickle
from time import monotonic
from typing import Any

from distributed import Scheduler
from distributed.protocol.pickle import dumps
from distributed.protocol.serialize import Serialize, Serialized, deserialize
from distributed.worker_state_machine import UnpauseEvent

from daskbatch.shared.data.messages import ServerAddress

#: How often is looked whether it is there, and whether its worker is. Seconds.
_PAUSE = 0.005

#: States of a task of which a worker has yet to hear, or is about to do something.
_COMING = ("waiting", "released", "fetch", "flight")


class NotMade(Exception):
    """The actor cannot be made there."""


async def describe_actor(
    scheduler: Scheduler, worker: str, key: str, seconds: float
) -> ServerAddress:
    """Give where an actor is reached, once it is there.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        It may yet have to hear of the actor.
    worker, key : str
        Where the actor is to be, and Dask's key of it.
    seconds : float
        How long it may take.

    Raises
    ------
    NotMade
        Its worker has gone, could not make it, or takes too long.
    """
    end = monotonic() + seconds
    reached = scheduler.rpc(worker)
    admitted = reached.run(function=dumps(_admit), args=dumps((key, seconds)))
    await _finished(scheduler, worker, admitted, end)
    while True:
        task = scheduler.tasks.get(key)
        if task is not None and task.state == "memory":
            break
        if task is not None and task.state == "erred":
            raise NotMade(task.exception_text)
        _require(scheduler, worker, end)
        await asyncio.sleep(_PAUSE)
    described = reached.actor_execute(function="describe", actor=key, args=[], kwargs={})
    answer = await _finished(scheduler, worker, described, end)
    address: ServerAddress = pickle.loads(_unwrapped(answer["result"]))
    return address


async def _finished(scheduler: Scheduler, worker: str, work: Any, end: float) -> Any:
    """Wait for an answer of a worker, but not longer than it is there."""
    going = asyncio.ensure_future(work)
    try:
        pause = _PAUSE
        while not (await asyncio.wait([going], timeout=pause))[0]:
            _require(scheduler, worker, end)
            pause = min(2 * pause, 0.1)
    finally:
        going.cancel()
    answer = await going
    if answer["status"] != "OK":
        raise NotMade(str(_unwrapped(answer["exception"])))
    return answer


def _unwrapped(sent: Any) -> Any:
    """Load what Dask's scheduler hands on as it comes."""
    if isinstance(sent, Serialized):
        return deserialize(sent.header, sent.frames)
    return sent.data if isinstance(sent, Serialize) else sent


def _require(scheduler: Scheduler, worker: str, end: float) -> None:
    if worker not in scheduler.workers:
        raise NotMade("the worker has gone")
    if monotonic() > end:
        raise NotMade("it takes too long: the worker does not answer, or is too busy")


async def _admit(key: str, seconds: float, dask_worker: Any) -> None:
    """Have an actor begin though all slots of its worker are in use: it needs none later."""
    state = dask_worker.state
    end = monotonic() + seconds
    while monotonic() < end:
        task = state.tasks.get(key)
        if task is not None and task.state == "ready":
            # By its priority it is the first that is looked at.
            state.nthreads += 1
            try:
                dask_worker.handle_stimulus(UnpauseEvent(stimulus_id=f"daskbatch-admit-{key}"))
            finally:
                state.nthreads -= 1
        elif task is not None and task.state not in _COMING:
            return
        await asyncio.sleep(0.002)
