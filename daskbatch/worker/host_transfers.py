"""Records which large values a worker sends to which other hosts: each travels to a host once.

If a second worker of a host asks for a value, it receives a reference to the memory of the first
one: `references_for` asks that worker. The event loop of the worker that sends the values calls
everything here.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from distributed import Worker
from distributed.worker import get_data_from_worker

from daskbatch.serialization import stored_value
from daskbatch.worker.execution.outcome import BlockResult

#: A value with less in shared memory is sent again: to ask another worker takes as long.
_MIN_SHARED_BYTES = 1 << 20

#: How many transfers are remembered. If one was forgotten, the value is sent once more.
_MAX_TRANSFERS = 10_000

#: How long the worker that has a value may take to answer.
_ANSWER_TIMEOUT_SECONDS = 5.0


class _Transfer:
    """One value on its way to a host, or there."""

    def __init__(self, receiver: str) -> None:
        self.receiver = receiver
        #: Set once the transfer is over.
        self.over = asyncio.Event()


class HostTransfers:
    """What one worker has sent to other hosts.

    Parameters
    ----------
    worker : Worker
        The worker.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        #: By host and key; the oldest come first.
        self._transfers: OrderedDict[tuple[str, Any], _Transfer] = OrderedDict()

    @contextmanager
    def sending(
        self, host: str, keys: Collection[Any], receiver: str
    ) -> Iterator[Mapping[str, list[Any]]]:
        """Record, while they are sent, values that no other worker of a host has received.

        Parameters
        ----------
        host : str
            The host.
        keys : collection
            The Dask keys of the values.
        receiver : str
            The address of the worker that asks for them.

        Yields
        ------
        mapping
            By the address of another worker of the host: the keys that are sent, or were sent, to
            it. The caller awaits `references_for` for them.
        """
        others: dict[str, list[Any]] = {}
        begun: list[_Transfer] = []
        on_disk: list[Any] = []
        # No other request is served meanwhile. So a request waits for earlier ones alone, and no
        # two wait for each other.
        for key in keys:
            transfer = self._transfers.get((host, key))
            if transfer is not None and transfer.receiver != receiver:
                others.setdefault(transfer.receiver, []).append(key)
            elif self._shared_bytes(key) >= _MIN_SHARED_BYTES:
                self._transfers[host, key] = made = _Transfer(receiver)
                begun.append(made)
            elif key not in self._in_memory():
                on_disk.append(key)
        try:
            yield others
        finally:
            for key in on_disk:  # sending a value has brought it back
                if self._shared_bytes(key) >= _MIN_SHARED_BYTES:
                    self._transfers[host, key] = made = _Transfer(receiver)
                    begun.append(made)
            for made in begun:
                made.over.set()
            while len(self._transfers) > _MAX_TRANSFERS:
                self._transfers.popitem(last=False)

    async def references_for(
        self, receiver: str, host: str, others: Mapping[str, Iterable[Any]]
    ) -> dict[Any, Any]:
        """Return values that refer to the memory of other workers of a host, if those answer.

        Parameters
        ----------
        receiver : str
            The worker that is to receive them.
        host : str
            Its host.
        others : mapping
            See `sending`.

        Returns
        -------
        dict
            By key, the values; without those that the other workers do not have any longer.
        """
        found: dict[Any, Any] = {}
        for address, keys in others.items():
            for key in keys:
                transfer = self._transfers.get((host, key))
                if transfer is not None:
                    await transfer.over.wait()
            try:
                answer = await asyncio.wait_for(
                    get_data_from_worker(self._worker.rpc, keys, address, who=receiver),
                    _ANSWER_TIMEOUT_SECONDS,
                )
            except Exception:  # it has ended, or is about to: then the values are sent
                answer = {"status": "error"}
            if answer["status"] == "OK":
                found.update(answer["data"])
            for key in keys:
                if key not in found:
                    self._transfers.pop((host, key), None)
        return found

    def _shared_bytes(self, key: Any) -> int:
        """Return how much memory a value takes that other processes of its host can map."""
        value = self._in_memory().get(key)
        values = value.values if type(value) is BlockResult else (value,)
        return sum(map(stored_value.held_bytes, values))

    def _in_memory(self) -> Mapping[Any, Any]:
        """Return the values that are not on disk: looking one of those up would bring it back."""
        data = self._worker.data
        memory: Mapping[Any, Any] = getattr(data, "memory", data)
        return memory
