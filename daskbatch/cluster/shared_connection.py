"""Shares one Dask client per scheduler among the copies of Batches that others created.

A thousand tasks that each use a copy of a Batch share the connection of their worker. Each of
them is still a client of the Batch by itself. Any thread may use this, and finalizers too.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from time import monotonic
from typing import Any, Protocol

from distributed import Client

from daskbatch import config
from daskbatch.cluster.connection import Connection, close_in_child, open_client
from daskbatch.cluster.membership import UNREACHABLE_ERRORS
from daskbatch.cluster.messages import BatchEnded, decode
from daskbatch.cluster.scheduler_plugin import BATCHES_TOPIC
from daskbatch.forking import after_fork, keep_inherited, make_rlock

#: How many heartbeats are sent in the time after which silence counts as a crash.
_HEARTBEATS_PER_TTL = 4

#: The longest interval between two checks whether the connection still exists.
_MAX_CHECK_INTERVAL_SECONDS = 0.5


class ConnectionUser(Protocol):
    """A client of a Batch that shares a connection: a `Session`."""

    batch: str

    def lose(self, why: str) -> None:
        """Record that the Batch or the connection has ended; called on Dask's event loop."""


class SharedConnection:
    """A connection of this process that several clients of Batches use. Any thread may use it.

    Parameters
    ----------
    address : str
        The scheduler's address.
    """

    def __init__(self, address: str) -> None:
        ttl = config.get_seconds("client-ttl")
        self.client: Client = open_client(address, existed_before=True)
        self._connection = Connection(self.client, owns_client=True)
        self._address = address
        #: The users that are notified of the end of their Batch or of the connection.
        self._users: weakref.WeakSet[ConnectionUser] = weakref.WeakSet()
        #: How many users have not released the connection.
        self._shares = 0
        #: The Batches whose tasks in this process are likely to connect again.
        self._expected: set[str] = set()
        self.client._event_handlers[BATCHES_TOPIC] = self._receive
        self.client.loop.add_callback(self._send_heartbeats, ttl)

    async def _send_heartbeats(self, ttl: float) -> None:
        """Send heartbeats until the connection is lost, and then notify its users."""
        stream = self.client.scheduler_comm
        sent = -ttl
        while self.client.scheduler_comm is stream and self.client.status == "running":
            if monotonic() - sent > ttl / _HEARTBEATS_PER_TTL:
                sent = monotonic()
                with contextlib.suppress(*UNREACHABLE_ERRORS):
                    await self.client.scheduler.daskbatch_alive(client=self.client.id, ttl=ttl)
            await asyncio.sleep(min(_MAX_CHECK_INTERVAL_SECONDS, ttl / _HEARTBEATS_PER_TTL))
        for user in list(self._users):
            user.lose(f"the connection to {self._address} was lost; take another copy of the Batch")

    def _receive(self, event: tuple[float, Any]) -> None:
        message = decode(event[1])
        if not isinstance(message, BatchEnded):
            return
        for user in list(self._users):
            if user.batch == message.batch:
                user.lose("this Batch has been joined or terminated by its creator")
        with _lock:
            self._expected.discard(message.batch)
            self._close_if_unused()

    def acquire(self, batch: str, expect_more: bool) -> None:
        """Take a share of the connection; the caller holds `_lock`.

        Parameters
        ----------
        batch : str
            The Batch that the user is a client of.
        expect_more : bool
            Whether other clients of this Batch are likely to follow after this one: then the
            connection stays open until the Batch ends.
        """
        self._shares += 1
        if expect_more:
            self._expected.add(batch)

    def subscribe(self, user: ConnectionUser) -> None:
        """Notify a user, from now on, when its Batch or the connection has ended."""
        with _lock:
            self._users.add(user)

    def release(self, user: ConnectionUser) -> None:
        """Return a user's share; with the last one, an unexpected connection is closed."""
        with _lock:
            self._users.discard(user)
            self._shares -= 1
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self._shares and not self._expected:
            if _shared.get(self._address) is self:
                del _shared[self._address]
            self._connection.close_in_background()


#: By the scheduler's address.
_shared: dict[str, SharedConnection] = {}

#: Held while shares change. Finalizers take it, too, and may run while their thread holds it:
#: so it is reentrant.
_lock = make_rlock()


def share_connection(address: str, batch: str, expect_more: bool) -> SharedConnection:
    """Return the connection to a scheduler, with a share that must be released.

    Parameters
    ----------
    address : str
        The scheduler's address.
    batch, expect_more
        See `SharedConnection.acquire`.

    Raises
    ------
    ServiceLost
        No scheduler answers at this address.
    """
    with _lock:
        found = _shared.get(address)
        if found is None or found.client.status != "running":
            found = _shared[address] = SharedConnection(address)
        found.acquire(batch, expect_more)
        return found


@after_fork
def _forget_connections() -> None:
    for shared in _shared.values():
        close_in_child(shared.client)
    keep_inherited(_shared.values())
    _shared.clear()
