"""Finds out why Dask has cancelled keys of blocks though the Batch goes on, and reports that.

All runs on Dask's event loop. The reasons, as Dask names them:

- "lost dependencies": the scheduler no longer has a key that a graph depends on. It creates no key
  of that graph, so nothing of it has run. Dask serves other messages while it prepares a graph: so
  a key that is released after the graph was sent may be gone before the graph exists.
- "scheduler-restart": somebody has called `Client.restart`.
- "scheduler-connection-lost": the registration is lost with the connection; see `Membership`.
- Any other one: a client has cancelled the key, with `force=True`. It may be running.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Any

from distributed import Client

from daskbatch.cluster.membership import UNREACHABLE_ERRORS, Membership
from daskbatch.dispatch.backend import Listener
from daskbatch.dispatch.task_record import BlockKey, SubmittedBlock
from daskbatch.errors import ServiceLost, WorkerLost

_REFUSED, _RESTARTED = "lost dependencies", "scheduler-restart"


class CancelledKeys:
    """The cancelled keys of one client that are not reported yet.

    Parameters
    ----------
    client : distributed.Client
        The connection.
    membership : Membership
        The registration of this client of the Batch.
    call : callable
        Calls a function with arguments; if that raises, all tasks receive the error.
    """

    def __init__(self, client: Client, membership: Membership, call: Callable[..., None]) -> None:
        self._client = client
        self._membership = membership
        self._call = call
        self._collected: list[tuple[SubmittedBlock, str]] = []

    async def report(self, block: SubmittedBlock, reason: str, listener: Listener) -> None:
        """Report that the key of a block was cancelled, together with the others of its graph.

        Parameters
        ----------
        block : SubmittedBlock
            The block.
        reason : str
            Why, as Dask says.
        listener : Listener
            Receives the report.
        """
        self._collected.append((block, reason))
        if len(self._collected) > 1:
            return
        # Dask cancels the keys of one graph in one step: those that watch them append theirs now.
        await asyncio.sleep(0)
        collected = sorted(self._collected, key=lambda each: each[0].number)
        self._collected = []
        self._call(self._membership.check)
        refused = []
        for each, why in collected:
            if self._membership.is_lost:
                lost = ServiceLost("its key was cancelled")
                self._call(listener.key_finished, each, None, lost)
            elif why == _REFUSED:
                refused.append(each)
            elif why == _RESTARTED:
                ended = WorkerLost("Client.restart has restarted the workers, and ended all tasks")
                self._call(listener.key_finished, each, None, ended)
            else:
                self._call(listener.key_cancelled, each, f"a Dask client has cancelled it ({why})")
        if refused:
            lost_keys = await self._find_lost(refused)
            self._call(listener.keys_refused, refused, lost_keys)

    async def _find_lost(self, refused: Sequence[SubmittedBlock]) -> list[BlockKey]:
        """Return the keys of finished blocks that refused ones need, and no worker has."""
        finished = {
            other.key
            for block in refused
            for other in block.waits
            if not other.unfinished and other.future is not None
        }
        scheduler = self._client.scheduler  # None once the client is closed
        if finished and scheduler is not None:
            with contextlib.suppress(*UNREACHABLE_ERRORS):
                found = await scheduler.who_has(keys=list(finished))
                return [key for key in finished if not found.get(key)]
        return []


def reason_of(future: Any) -> str:
    """Return why Dask has cancelled a future, as Dask says."""
    return str(getattr(future._state.exception, "reason", "unknown"))
