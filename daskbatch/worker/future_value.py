"""Fetches the value of a Dask key on a worker, for the tasks that take a Dask future.

It runs in the thread of a task. The value comes from this worker, or from the worker that has it,
and never goes by way of the client.
"""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

from distributed import Worker, get_worker
from distributed.core import clean_exception
from distributed.utils import sync
from distributed.utils_comm import gather_from_workers

from daskbatch.errors import TaskCancelled, WorkerLost
from daskbatch.worker.execution.task_context import call_releasing_slot
from daskbatch.worker.relayed_values import direct_or_relayed, fetch_by_scheduler

#: The handler of the scheduler that says where the value of a key is.
STATE_ROUTE = "daskbatch_future_state"

#: How often the scheduler is asked while no worker has the value: Dask computes it again.
_POLL_INTERVAL_SECONDS = 0.05

#: How often in a row the workers that have the value may fail to send it.
_MAX_FAILURES = 20


def future_value(packed_key: bytes) -> Any:
    """Return the result of a Dask future.

    Parameters
    ----------
    packed_key : bytes
        The pickled key.

    Raises
    ------
    TaskCancelled
        The future was cancelled.
    WorkerLost
        The workers that have the value do not send it.
    TypeError
        The future is an actor.
    Exception
        What the future's own task raised.
    """
    worker = get_worker()
    key = pickle.loads(packed_key)
    fetch = _Fetch(worker, key)
    sync(worker.loop, fetch.attempt)
    if not fetch.is_done:
        # Dask may have to compute the value again, in this slot.
        call_releasing_slot(lambda: sync(worker.loop, fetch.run))
    return fetch.value


class _Fetch:
    """One fetch of a value. All coroutines run on the event loop of the worker.

    Parameters
    ----------
    worker : Worker
        The worker that needs the value.
    key : object
        The Dask key.
    """

    def __init__(self, worker: Worker, key: Any) -> None:
        self._worker = worker
        self._key = key
        self._failures = 0
        self.is_done = False
        self.value: Any = None

    async def run(self) -> None:
        """Try until the value is here, or it is clear that it cannot be fetched."""
        while not self.is_done:
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
            await self.attempt()

    async def attempt(self) -> None:
        """Fetch the value, if it is somewhere at the moment."""
        worker, key = self._worker, self._key
        if key in worker.data:
            self._done(worker.data[key])
            return
        state, found = await getattr(worker.scheduler, STATE_ROUTE)(key=pickle.dumps(key))
        if state == "memory":
            values = await direct_or_relayed(
                found,
                lambda: self._fetch_from(found),
                lambda: fetch_by_scheduler(worker, [key]),
                lambda values: key in values,
            )
            if key in values:
                self._done(values[key])
                return
            self._failures += 1
            if self._failures > _MAX_FAILURES:
                raise WorkerLost(
                    f"the value of the Dask future {key!r} cannot be fetched from "
                    f"{', '.join(found)}"
                )
        elif state == "erred":
            _, error, _ = clean_exception(*found)
            assert error is not None
            raise error
        elif state == "actor":
            raise TypeError(f"the Dask future {key!r} is an actor: give the result of its method")
        elif state == "unknown":
            raise TaskCancelled(f"the Dask future {key!r} was cancelled")

    async def _fetch_from(self, addresses: list[str]) -> dict[Any, Any]:
        worker = self._worker
        values, *_ = await gather_from_workers(
            {self._key: addresses}, worker.rpc, who=worker.address
        )
        return dict(values)

    def _done(self, value: Any) -> None:
        self.value = value
        self.is_done = True
