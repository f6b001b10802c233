"""A client of each cluster on which this process has made what is to end with it.

Does not know what that is. What is made by way of an address alone has no other client to end
with; this one is there until the program ends, or the cluster.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import threading

from distributed import Client
from distributed.deploy import Cluster

from daskbatch.cluster.connection import Connection, connect, leave_to_parent

#: By the scheduler's address, and by whatever else it was called.
_kept: dict[str, Connection] = {}
_making = threading.Lock()

#: What a forked process has from its parent, and must not touch, nor let go.
_inherited: list[Connection] = []


def process_client(cluster: str | Cluster) -> Client:
    """Give this process's own client of a cluster, which is made if there is none yet.

    Parameters
    ----------
    cluster : str or Cluster
        Its address, or an object for it.

    Raises
    ------
    SpecError
        It is no cluster.
    ServiceLost
        Nothing answers there.
    """
    called = cluster.scheduler_address if isinstance(cluster, Cluster) else cluster
    with _making:
        found = _kept.get(called) if isinstance(called, str) else None
        if found is not None and _is_there(found.client):
            return found.client
        made = connect(cluster, None, "")
        # An object may have had no address yet.
        name = cluster if isinstance(cluster, str) else made.client.scheduler.address
        _keep(made, {made.client.scheduler.address, name})
    return made.client


def _is_there(client: Client) -> bool:
    return client.status == "running" and not client.scheduler_comm.closed()


def _keep(kept: Connection, names: set[str]) -> None:
    async def let_go() -> None:
        # Without the lock: who has it may wait for this loop.
        for name in names:
            if _kept.get(name) is kept:
                del _kept[name]
        with contextlib.suppress(RuntimeError):  # the interpreter ends, and all with it
            kept.close_in_background()

    # Dask would connect anew, as somebody whose objects have ended, and would complain if it
    # cannot: where a cluster ends before the program does, there is nothing wrong.
    kept.client._reconnect = let_go
    for name in names:
        _kept[name] = kept


@atexit.register
def _close_all() -> None:
    for kept in {*_kept.values()}:
        kept.close()


def _forget() -> None:
    global _making
    for kept in {*_kept.values()}:
        leave_to_parent(kept.client)
    _inherited.extend(_kept.values())
    _kept.clear()
    _making = threading.Lock()


os.register_at_fork(after_in_child=_forget)
