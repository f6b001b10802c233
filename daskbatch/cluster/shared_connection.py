"""The connections of a process to schedulers where others have made a Batch: one for each.

Does not know tasks. A thousand tasks that each use a copy of a Batch share the connection of
their worker; what they do not share is who they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import weakref
from time import monotonic
from typing import Any, Protocol

from distributed import Client

from daskbatch import config
from daskbatch.cluster.connection import Connection, leave_to_parent, open_client
from daskbatch.cluster.membership import UNREACHABLE_ERRORS
from daskbatch.cluster.scheduler_plugin import BATCHES

#: How often in the time after which silence counts as a crash one says something.
_PER_SILENCE = 4

#: How often is looked whether the connection is still there. Seconds.
_LOOK_SECONDS = 0.5


class ConnectionUser(Protocol):
    """Who has a share in a connection."""

    batch: str

    def lose(self, why: str) -> None:
        """Take in that there is nothing any more to be connected to."""


class SharedConnection:
    """A connection, for all who connect to the same scheduler from this process.

    Parameters
    ----------
    address : str
        The scheduler's.
    """

    def __init__(self, address: str) -> None:
        ttl = config.get_seconds("client-ttl")
        self.client: Client = open_client(address, was_there=True)
        self._connection = Connection(self.client, owns_client=True)
        self._address = address
        self._members: weakref.WeakSet[ConnectionUser] = weakref.WeakSet()
        self._shares = 0
        #: The Batches whose tasks in this process are likely to connect again.
        self._kept: set[str] = set()
        self.client._event_handlers[BATCHES] = self._heard
        self.client.loop.add_callback(self._keep_alive, ttl)

    async def _keep_alive(self, ttl: float) -> None:
        """Have the scheduler know that this process goes on."""
        stream = self.client.scheduler_comm
        said = -ttl
        while self.client.scheduler_comm is stream and self.client.status == "running":
            if monotonic() - said > ttl / _PER_SILENCE:
                said = monotonic()
                with contextlib.suppress(*UNREACHABLE_ERRORS):
                    await self.client.scheduler.daskbatch_alive(client=self.client.id, ttl=ttl)
            await asyncio.sleep(min(_LOOK_SECONDS, ttl / _PER_SILENCE))
        for member in list(self._members):
            member.lose(
                f"the connection to {self._address} was lost; take another copy of the Batch"
            )

    def _heard(self, event: tuple[float, Any]) -> None:
        batch = event[1]["ended"]
        for member in list(self._members):
            if member.batch == batch:
                member.lose("this Batch has been joined or terminated by its creator")
        with _changing:
            self._kept.discard(batch)
            self._close_if_unused()

    def join(self, member: ConnectionUser, keep: bool) -> None:
        """Take a share.

        Parameters
        ----------
        member : Member
            Who takes it.
        keep : bool
            Whether others of its Batch are likely to come when it has gone.
        """
        self._members.add(member)
        self._shares += 1
        if keep:
            self._kept.add(member.batch)

    def leave(self, member: ConnectionUser) -> None:
        """Give a share up; the last one closes the connection, unless it is kept."""
        with _changing:
            self._members.discard(member)
            self._shares -= 1
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if not self._shares and not self._kept:
            if _shared.get(self._address) is self:
                del _shared[self._address]
            self._connection.close_in_background()


#: By the scheduler's address.
_shared: dict[str, SharedConnection] = {}

#: Taken from finalizers, too, in whatever a thread is doing.
_changing = threading.RLock()

#: What a forked process has from its parent, and must not touch, nor let go.
_inherited: list[Any] = []


def share_connection(address: str, member: ConnectionUser, keep: bool) -> SharedConnection:
    """Connect a member to a scheduler.

    Raises
    ------
    ServiceLost
        Nothing answers there.
    """
    with _changing:
        found = _shared.get(address)
        if found is None or found.client.status != "running":
            found = _shared[address] = SharedConnection(address)
        found.join(member, keep)
        return found


def _forget() -> None:
    global _changing
    for shared in _shared.values():
        leave_to_parent(shared.client)
    _inherited.extend(_shared.values())
    _shared.clear()
    _changing = threading.RLock()


os.register_at_fork(after_in_child=_forget)
