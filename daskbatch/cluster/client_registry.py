"""The clients of every Batch on a scheduler: who there is, who has left, who is silent.

Does not know tasks, nor how clients are told. A Batch is there from when its creator comes
until nobody is left; a client that comes later finds that it has ended.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field
from time import monotonic


@dataclass(slots=True, eq=False)
class RegisteredClient:
    """A client of a Batch.

    Parameters
    ----------
    topic : str
        Under which it hears of its tasks.
    batch : str
        The Batch.
    connection : str
        Dask's name of the connection that it has, perhaps with others.
    where : str
        What messages say of where it is.
    number : int
        Unique in its Batch: 0 for the creator.
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
    numbers: Iterator[int]
    topics: set[str] = field(default_factory=set)
    #: The connections that have, or had, clients of it, apart from its creator's.
    connections: set[str] = field(default_factory=set)
    left: asyncio.Event = field(default_factory=asyncio.Event)


class ClientRegistry:
    """The clients of all Batches."""

    def __init__(self) -> None:
        self._batches: dict[str, _Batch] = {}
        self._enrolled: dict[str, RegisteredClient] = {}
        #: When those connections were heard of last that have to say so: and how often.
        self._heard: dict[str, tuple[float, float]] = {}

    def __iter__(self) -> Iterator[RegisteredClient]:
        return iter(list(self._enrolled.values()))

    def find(self, topic: str) -> RegisteredClient | None:
        """Give the client of a topic, if it is there."""
        return self._enrolled.get(topic)

    def of_connection(self, connection: str) -> list[RegisteredClient]:
        """Give the clients that have a connection."""
        return [each for each in self if each.connection == connection]

    def of_batch(self, batch: str) -> list[RegisteredClient]:
        """Give the clients of a Batch, in order of their numbers."""
        found = self._batches.get(batch)
        some = [self._enrolled[topic] for topic in found.topics] if found is not None else []
        return sorted(some, key=lambda client: client.number)

    def enrol(
        self, topic: str, batch: str, connection: str, where: str, founds: bool
    ) -> RegisteredClient | None:
        """Take a client in; None if there is no such Batch, or none any more.

        Parameters
        ----------
        topic, batch, connection, where
            See `RegisteredClient`.
        founds : bool
            Whether it is the Batch's creator.
        """
        found = self._batches.get(batch)
        if founds and found is None:
            found = self._batches[batch] = _Batch(iter(range(1 << 62)))
        if found is None:
            return None
        client = RegisteredClient(topic, batch, connection, where, next(found.numbers))
        self._enrolled[topic] = client
        found.topics.add(topic)
        if not founds:
            found.connections.add(connection)
        return client

    def leave(self, topic: str) -> RegisteredClient | None:
        """Let a client go, and its Batch with the last one."""
        client = self._enrolled.pop(topic, None)
        found = None if client is None else self._batches.get(client.batch)
        if found is not None:
            found.topics.discard(topic)
            found.left.set()
            found.left = asyncio.Event()
        return client

    def end(self, batch: str) -> set[str]:
        """Drop a Batch, so that nobody can come any more; returns the connections to tell."""
        found = self._batches.pop(batch, None)
        if found is None:
            return set()
        found.left.set()
        return found.connections

    def is_empty(self, batch: str) -> bool:
        """Say whether a Batch is there, and nobody in it."""
        found = self._batches.get(batch)
        return found is not None and not found.topics

    async def others_left(self, topic: str, seconds: float) -> list[RegisteredClient]:
        """Wait for a time until a client is alone in its Batch; returns who else is there."""
        deadline = monotonic() + seconds
        batch = self._enrolled[topic].batch
        while True:
            others = [each for each in self.of_batch(batch) if each.topic != topic]
            left = deadline - monotonic()
            if not others or left <= 0:
                return others
            event = self._batches[batch].left
            try:
                await asyncio.wait_for(event.wait(), left)
            except TimeoutError:
                continue

    # -- silence --------------------------------------------------------------------------

    def heard(self, connection: str, ttl: float) -> None:
        """Note that a connection has been heard of, and how long it may be silent. Seconds."""
        self._heard[connection] = monotonic(), ttl

    def disconnected(self, connection: str) -> None:
        """Forget a connection."""
        self._heard.pop(connection, None)
        for found in self._batches.values():
            found.connections.discard(connection)

    def silent(self) -> list[str]:
        """Give the connections that have been silent for too long."""
        now = monotonic()
        return [each for each, (when, much) in self._heard.items() if now - when > much]

    def next_look(self) -> float | None:
        """Say in how many seconds one may have become silent; None if none has to speak."""
        now = monotonic()
        ends = [when + much - now for when, much in self._heard.values()]
        return max(0.01, min(ends)) if ends else None
