"""Keeps which clients each Batch on a scheduler has, and which connections have gone silent.

A Batch exists from when its creator registers until its last client is removed; a client that
registers later is refused. Not thread-safe: the scheduler's event loop makes all calls.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic

from daskbatch.timeouts import Deadline

#: The least interval between two checks for silent connections.
_MIN_CHECK_INTERVAL_SECONDS = 0.01


@dataclass(slots=True, eq=False)
class RegisteredClient:
    """A client of a Batch.

    Parameters
    ----------
    topic : str
        The topic of the messages about its tasks.
    batch : str
        The Batch.
    connection : str
        Dask's name of its connection, which it may share with other clients.
    where : str
        Its process and machine, for messages.
    number : int
        Unique in its Batch: 0 for the creator.
    closed : bool
        Whether it starts no more tasks.
    """

    topic: str
    batch: str
    connection: str
    where: str
    number: int
    closed: bool = False

    def __str__(self) -> str:
        has = "has closed, and has tasks left" if self.closed else "has not closed"
        return f"client {self.number} ({self.where}) {has}"


@dataclass(slots=True, eq=False)
class _Batch:
    """A Batch that has not ended."""

    #: The numbers of its clients, from 0.
    numbers: Iterator[int]
    #: The topics of its clients.
    topics: set[str] = field(default_factory=set)
    #: The connections that have, or had, clients of it, apart from its creator's.
    connections: set[str] = field(default_factory=set)
    #: Set, and replaced by another one, when a client is removed.
    client_removed: asyncio.Event = field(default_factory=asyncio.Event)


class ClientRegistry:
    """The clients of all Batches. Not thread-safe."""

    def __init__(self) -> None:
        self._batches: dict[str, _Batch] = {}
        self._clients: dict[str, RegisteredClient] = {}
        #: For each connection that has to send heartbeats: when it last sent one, and for how
        #: many seconds it may be silent.
        self._heartbeats: dict[str, tuple[float, float]] = {}

    def __iter__(self) -> Iterator[RegisteredClient]:
        return iter(list(self._clients.values()))

    def find(self, topic: str) -> RegisteredClient | None:
        """Return the client of a topic, if it is registered."""
        return self._clients.get(topic)

    def of_connection(self, connection: str) -> list[RegisteredClient]:
        """Return the clients that use a connection."""
        return [each for each in self if each.connection == connection]

    def of_batch(self, batch: str) -> list[RegisteredClient]:
        """Return the clients of a Batch, in order of their numbers."""
        found = self._batches.get(batch)
        clients = [self._clients[topic] for topic in found.topics] if found is not None else []
        return sorted(clients, key=lambda client: client.number)

    def register(
        self, topic: str, batch: str, connection: str, where: str, is_creator: bool
    ) -> RegisteredClient | None:
        """Register a client; returns None if its Batch does not exist or has ended.

        Parameters
        ----------
        topic, batch, connection, where
            See `RegisteredClient`.
        is_creator : bool
            Whether it is the creator of the Batch.
        """
        found = self._batches.get(batch)
        if is_creator and found is None:
            found = self._batches[batch] = _Batch(iter(range(1 << 62)))
        if found is None:
            return None
        client = RegisteredClient(topic, batch, connection, where, next(found.numbers))
        self._clients[topic] = client
        found.topics.add(topic)
        if not is_creator:
            found.connections.add(connection)
        return client

    def remove(self, topic: str) -> RegisteredClient | None:
        """Remove a client and return it; None if it is not registered."""
        client = self._clients.pop(topic, None)
        found = None if client is None else self._batches.get(client.batch)
        if found is not None:
            found.topics.discard(topic)
            found.client_removed.set()
            found.client_removed = asyncio.Event()
        return client

    def end_batch(self, batch: str) -> set[str]:
        """Remove a Batch, so that no client can register; returns the connections to notify."""
        found = self._batches.pop(batch, None)
        if found is None:
            return set()
        found.client_removed.set()
        return found.connections

    def is_empty(self, batch: str) -> bool:
        """Return whether a Batch exists and has no clients."""
        found = self._batches.get(batch)
        return found is not None and not found.topics

    async def wait_until_alone(self, topic: str, seconds: float) -> list[RegisteredClient]:
        """Wait until a client is alone in its Batch; returns the other clients at the end."""
        deadline = Deadline(seconds)
        batch = self._clients[topic].batch
        while True:
            others = [each for each in self.of_batch(batch) if each.topic != topic]
            if not others or deadline.passed:
                return others
            removed = self._batches[batch].client_removed
            try:
                await asyncio.wait_for(removed.wait(), deadline.remaining())
            except TimeoutError:
                continue

    # -- silence --------------------------------------------------------------------------

    def record_heartbeat(self, connection: str, ttl: float) -> None:
        """Record that a connection is alive, and for how many seconds it may be silent."""
        self._heartbeats[connection] = monotonic(), ttl

    def disconnected(self, connection: str) -> None:
        """Forget a connection."""
        self._heartbeats.pop(connection, None)
        for found in self._batches.values():
            found.connections.discard(connection)

    def silent_connections(self) -> list[str]:
        """Return the connections that have been silent for too long."""
        now = monotonic()
        return [each for each, (when, ttl) in self._heartbeats.items() if now - when > ttl]

    def seconds_to_next_silence(self) -> float | None:
        """Return when a connection may next be silent for too long; None without heartbeats."""
        now = monotonic()
        ends = [when + ttl - now for when, ttl in self._heartbeats.values()]
        return max(_MIN_CHECK_INTERVAL_SECONDS, min(ends)) if ends else None
