"""Keeps one Dask client per cluster for this process, to own shared objects.

The client owns the objects that were created from an address or a cluster object. It is closed at
exit, and the objects end with it. Any thread may use this.
"""

from __future__ import annotations

import atexit
import os

from distributed import Client
from distributed.deploy import Cluster

from daskbatch.cluster.connection import Connection, close_in_child, connect
from daskbatch.forking import after_fork, keep_inherited, make_lock

#: By the scheduler's address, and by the address that the caller used for it.
_connections: dict[str, Connection] = {}
#: Held while a client is looked up or connected.
_lock = make_lock()


def process_client(cluster: str | os.PathLike[str] | Cluster) -> Client:
    """Return this process's client of a cluster, connected if it was not yet.

    Parameters
    ----------
    cluster : str, path or Cluster
        The scheduler's address, its scheduler file, or a cluster object.

    Raises
    ------
    SpecError
        `cluster` is none of these.
    ServiceLost
        No scheduler answers at this address.
    """
    address = cluster.scheduler_address if isinstance(cluster, Cluster) else cluster
    if isinstance(address, os.PathLike):
        address = os.fspath(address)
    with _lock:
        found = _connections.get(address) if isinstance(address, str) else None
        if found is not None and _is_connected(found.client):
            return found.client
        made = connect(cluster, None, "")
        # A cluster object may have had no address before.
        name = address if isinstance(address, str) else made.client.scheduler.address
        _keep(made, {made.client.scheduler.address, name})
    return made.client


def _is_connected(client: Client) -> bool:
    return client.status == "running" and not client.scheduler_comm.closed()


def _keep(connection: Connection, names: set[str]) -> None:
    """Keep a connection under its addresses, until it is lost."""

    async def drop() -> None:
        # Without the lock: a thread that holds it may wait for this loop.
        for name in names:
            if _connections.get(name) is connection:
                del _connections[name]
        connection.close_in_background()

    # Dask would connect again, as a client whose objects have ended, and would log an error if
    # it cannot. But if a cluster ends before the program does, nothing is wrong.
    connection.client._reconnect = drop
    for name in names:
        _connections[name] = connection


@atexit.register
def _close_all() -> None:
    for connection in {*_connections.values()}:
        connection.close()


@after_fork
def _forget_connections() -> None:
    for connection in {*_connections.values()}:
        close_in_child(connection.client)
    keep_inherited(_connections.values())
    _connections.clear()
