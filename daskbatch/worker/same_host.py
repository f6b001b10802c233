"""Has a worker send references to stored values, and not the values, to workers of its host.

Dask's scheduler decides which worker has which value, and workers get values from each other. The
handler that serves them is replaced by one that first finds out whether the other worker can map
this one's memory. The worker's event loop calls everything here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Any

from distributed import Worker

from daskbatch.memory.host import host_id
from daskbatch.memory.shared_buffer import by_reference

#: How long the other worker may take to answer.
_ANSWER_TIMEOUT_SECONDS = 5.0

#: The name of the handler that says which host a worker is on.
_HOST_HANDLER = "daskbatch_host"


def send_references(worker: Worker) -> None:
    """Replace the handler of a worker that sends values to other workers.

    Parameters
    ----------
    worker : Worker
        The worker.
    """
    send_values = worker.handlers["get_data"]
    #: By address, whether a worker can map this one's memory.
    reachable: dict[str, bool] = {}

    async def is_reachable(address: str) -> bool:
        found = reachable.get(address)
        if found is None:
            try:
                answer = asyncio.wait_for(
                    worker.rpc(address).daskbatch_host(), _ANSWER_TIMEOUT_SECONDS
                )
                found = reachable[address] = await answer == host_id()
            except Exception:  # it has no such handler, or does not answer: it gets the values
                found = False
        return found

    async def get_data(
        comm: Any,
        keys: Collection[Any],
        who: str | None = None,
        serializers: list[str] | None = None,
    ) -> Any:
        if who is None or not host_id() or not await is_reachable(who):
            return await send_values(comm, keys=keys, who=who, serializers=serializers)
        with by_reference():
            return await send_values(comm, keys=keys, who=who, serializers=serializers)

    worker.handlers["get_data"] = get_data
    worker.handlers[_HOST_HANDLER] = host_id
