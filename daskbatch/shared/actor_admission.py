"""Has a worker make an actor even if all its slots are in use: the scheduler's part.

`describe_actor` is a coroutine of the scheduler's event loop. It never waits for a worker that has
gone meanwhile. `SharedRegistry` registers it as the handler of `routes.DESCRIBE_ACTOR`.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

from distributed import Scheduler
from distributed.core import Status
from distributed.protocol.pickle import dumps
from distributed.protocol.serialize import Serialize, Serialized, deserialize
from distributed.worker_state_machine import UnpauseEvent

from daskbatch.timeouts import Deadline
from daskbatch.worker.handshake import ServerAddress

#: How often the scheduler looks whether the actor and its worker are there. While it waits for the
#: worker's answer, the interval grows from the first to the second value.
_POLL_INTERVAL_SECONDS, _MAX_POLL_INTERVAL_SECONDS = 0.005, 0.1

#: How often the worker looks whether the actor can be admitted.
_ADMISSION_POLL_INTERVAL_SECONDS = 0.002

#: States of a task that the worker does not know of yet, or prepares.
_PREPARING_STATES = ("waiting", "released", "fetch", "flight")


class ActorNotMade(Exception):
    """The worker cannot make the actor; the argument says why."""


async def describe_actor(
    scheduler: Scheduler, worker: str, key: str, seconds: float
) -> ServerAddress:
    """Return the address of an actor's server, once the actor is there.

    Parameters
    ----------
    scheduler : distributed.Scheduler
        The scheduler. The client's request for the actor may arrive after this one.
    worker, key : str
        The worker's address, and Dask's key of the actor.
    seconds : float
        How long it may take.

    Raises
    ------
    ActorNotMade
        Its worker has gone, could not make it, or takes too long.
    """
    deadline = Deadline(seconds)
    connection = scheduler.rpc(worker)
    admitting = connection.run(function=dumps(_admit), args=dumps((key, seconds)))
    await _await_worker(scheduler, worker, admitting, deadline)
    while True:
        task = scheduler.tasks.get(key)
        if task is not None and task.state == "memory":
            break
        if task is not None and task.state == "erred":
            raise ActorNotMade(task.exception_text)
        _require_worker(scheduler, worker, deadline)
        await asyncio.sleep(_POLL_INTERVAL_SECONDS)
    describing = connection.actor_execute(function="describe", actor=key, args=[], kwargs={})
    answer = await _await_worker(scheduler, worker, describing, deadline)
    address: ServerAddress = pickle.loads(load_received(answer["result"]))
    return address


async def _await_worker(scheduler: Scheduler, worker: str, call: Any, deadline: Deadline) -> Any:
    """Wait for a worker's answer, as long as the worker is there."""
    calling = asyncio.ensure_future(call)
    try:
        pause = _POLL_INTERVAL_SECONDS
        while not (await asyncio.wait([calling], timeout=pause))[0]:
            _require_worker(scheduler, worker, deadline)
            pause = min(2 * pause, _MAX_POLL_INTERVAL_SECONDS)
    finally:
        calling.cancel()
    answer = await calling
    if answer["status"] != "OK":
        raise ActorNotMade(str(load_received(answer["exception"])))
    return answer


def load_received(received: Any) -> Any:
    """Load a value that Dask's scheduler leaves serialized, to pass it on."""
    if isinstance(received, Serialized):
        return deserialize(received.header, received.frames)
    return received.data if isinstance(received, Serialize) else received


def _require_worker(scheduler: Scheduler, worker: str, deadline: Deadline) -> None:
    state = scheduler.workers.get(worker)
    if state is None or state.status == Status.closing_gracefully:
        raise ActorNotMade("the worker has gone, or leaves")
    if deadline.passed:
        raise ActorNotMade("it takes too long: the worker does not answer, or is too busy")


async def _admit(key: str, seconds: float, dask_worker: Any) -> None:
    """Have the worker begin to make the actor, though all its slots are in use.

    Runs on the worker, for at most `seconds`. The actor needs no slot afterwards.
    """
    state = dask_worker.state
    deadline = Deadline(seconds)
    # A worker that leaves must not go on because of an actor.
    while not deadline.passed and dask_worker.status != Status.closing_gracefully:
        task = state.tasks.get(key)
        if task is not None and task.state == "ready":
            # By its priority, the actor is the first task that the worker looks at.
            state.nthreads += 1
            try:
                dask_worker.handle_stimulus(UnpauseEvent(stimulus_id=f"daskbatch-admit-{key}"))
            finally:
                state.nthreads -= 1
        elif task is not None and task.state not in _PREPARING_STATES:
            return
        await asyncio.sleep(_ADMISSION_POLL_INTERVAL_SECONDS)
