"""Has a worker send references to stored values, and not the values, to workers of its host.

Dask's scheduler decides which worker has which value, and workers get values from each other. The
handler that serves them is replaced by one that first finds out whether the other worker can map
this one's memory. A large value that it cannot map is sent to its host once (`host_transfers`). The
worker's event loop calls everything here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from distributed import Worker
from distributed.protocol import to_serialize

from daskbatch.memory.host import host_id
from daskbatch.memory.shared_buffer import by_reference
from daskbatch.worker.host_transfers import HostTransfers

#: How long the other worker may take to answer.
_ANSWER_TIMEOUT_SECONDS = 5.0

#: How long a value that has been sent to this worker may take until the worker has it; less than
#: the time that the worker which asks for a reference waits.
_ARRIVAL_SECONDS = 3.0

#: The pause between two looks for such a value.
_ARRIVAL_POLL_SECONDS = 0.002

#: The name of the handler that says which host a worker is on.
_HOST_HANDLER = "daskbatch_host"


class _Joined:
    """A connection that adds values to the answer that Dask writes to it."""

    def __init__(self, comm: Any, values: Mapping[Any, Any]) -> None:
        self._comm = comm
        self._values = values

    def __getattr__(self, name: str) -> Any:
        return getattr(self._comm, name)

    async def write(self, message: Any, **kwargs: Any) -> Any:
        added = {key: to_serialize(value) for key, value in self._values.items()}
        return await self._comm.write({**message, "data": {**message["data"], **added}}, **kwargs)


def send_references(worker: Worker) -> None:
    """Replace the handler of a worker that sends values to other workers.

    Parameters
    ----------
    worker : Worker
        The worker.
    """
    send_values = worker.handlers["get_data"]
    transfers = HostTransfers(worker)
    #: By address, the hosts of other workers; see `host_id`.
    hosts: dict[str, str] = {}

    async def host_of(address: str) -> str:
        found = hosts.get(address)
        if found is None:
            try:
                answer = asyncio.wait_for(
                    worker.rpc(address).daskbatch_host(), _ANSWER_TIMEOUT_SECONDS
                )
                found = hosts[address] = str(await answer)
            except Exception:  # it has no such handler, or does not answer: it gets the values
                found = ""
        return found

    async def send_once(
        comm: Any, keys: Collection[Any], who: str, host: str, **kwargs: Any
    ) -> Any:
        with transfers.sending(host, keys, who) as others:
            references = await transfers.references_for(who, host, others) if others else {}
            if not references:
                return await send_values(comm, keys=keys, who=who, **kwargs)
            remaining = [key for key in keys if key not in references]
            return await send_values(_Joined(comm, references), keys=remaining, who=who, **kwargs)

    async def arrival(keys: Collection[Any]) -> None:
        # A worker confirms that it has received values a moment before it has them. If another
        # worker of the host asked for references in this moment, they would be sent once more.
        clock = asyncio.get_running_loop().time
        end = clock() + _ARRIVAL_SECONDS
        while any(_is_on_its_way(worker, key) for key in keys) and clock() < end:
            await asyncio.sleep(_ARRIVAL_POLL_SECONDS)

    async def get_data(
        comm: Any,
        keys: Collection[Any],
        who: str | None = None,
        serializers: list[str] | None = None,
    ) -> Any:
        host = await host_of(who) if who is not None and host_id() else ""
        if who is None or not host:
            return await send_values(comm, keys=keys, who=who, serializers=serializers)
        if host != host_id():
            return await send_once(comm, keys, who, host, serializers=serializers)
        await arrival(keys)
        with by_reference():
            return await send_values(comm, keys=keys, who=who, serializers=serializers)

    worker.handlers["get_data"] = get_data
    worker.handlers[_HOST_HANDLER] = host_id


def _is_on_its_way(worker: Worker, key: Any) -> bool:
    """Return whether a worker is receiving the value of a key from another worker."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state == "flight" and key not in worker.data
