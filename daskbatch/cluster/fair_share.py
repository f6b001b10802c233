"""Has Dask serve the clients in turn: each gets an equal share of the slots while it has tasks.

Dask serves the graph that was submitted first, whole, before the next one. So a client with an
hour of work would keep all others waiting for an hour. Here each block has a *tag* on a common
scale of seconds, and the lowest tag is served first: start-time fair queueing (Goyal, Vin and
Cheng, SIGCOMM 1996). The blocks of a client follow each other on that scale, at the distance of
their expected durations. A client that comes later begins where the others are now. Clients with
equal tags are served in the order of arrival. All runs on the scheduler's event loop.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from distributed import Scheduler

from daskbatch.dispatch.lower import AGAIN, GANG, OPEN, SECONDS, TOPIC

#: States of a key that is over, or that nobody needs.
_ENDED = frozenset({"memory", "erred", "released", "forgotten"})


class QueuedKey(NamedTuple):
    """A key of a graph that is being submitted.

    Parameters
    ----------
    key : hashable
        The key.
    generation : int
        Its graph's number in Dask, which counts graphs.
    seconds : float
        How long it is expected to take.
    """

    key: Hashable
    generation: int
    seconds: float


class Rank(NamedTuple):
    """When a key is served: the lowest generation first, and of one generation the lowest tag."""

    generation: int
    tag: float


class _Generations:
    """The generations of the blocks of one client: the lowest one from each tag on.

    Steps in the order of their tags, of which each has a higher generation than the one before.
    """

    __slots__ = ("_generations", "_tags")

    def __init__(self) -> None:
        #: Up to which tag there are blocks of each step's generation.
        self._tags: list[float] = []
        self._generations: list[int] = []

    def add(self, tag: float, generation: int) -> None:
        """Record a block."""
        tags, generations = self._tags, self._generations
        if tags and tags[-1] >= tag and generations[-1] <= generation:
            return  # it changes no answer
        while tags and tags[-1] <= tag and generations[-1] >= generation:
            tags.pop()
            generations.pop()
        tags.append(tag)
        generations.append(generation)

    def drop(self, tag: float) -> None:
        """Forget the blocks before a tag."""
        count = bisect_left(self._tags, tag)
        del self._tags[:count], self._generations[:count]

    def lowest(self, tag: float) -> tuple[int, float] | None:
        """Return the lowest generation of blocks from a tag on, and up to where it is the lowest.

        None if there are no blocks.
        """
        step = bisect_left(self._tags, tag)
        return None if step == len(self._tags) else (self._generations[step], self._tags[step])


class _Flow:
    """The blocks of one client."""

    __slots__ = ("ends", "generations", "served")

    def __init__(self) -> None:
        #: The highest end of a block that has run.
        self.served = 0.0
        #: The negated ends of the others, the highest one first; some of these have ended.
        self.ends: list[tuple[float, int, Hashable]] = []
        self.generations = _Generations()


class FairQueue:
    """The tags of the blocks that have not ended. Not thread-safe.

    To add or end a block costs the logarithm of the number of blocks, and to add also the number
    of clients.

    Examples
    --------
    >>> queue = FairQueue()
    >>> first = queue.add("a", [QueuedKey(f"a{i}", 1, 0.1) for i in range(3)])
    >>> second = queue.add("b", [QueuedKey(f"b{i}", 2, 0.1) for i in range(3)])
    >>> sorted({**first, **second}, key={**first, **second}.get)
    ['a0', 'b0', 'a1', 'b1', 'a2', 'b2']
    """

    def __init__(self) -> None:
        #: The highest tag of a block that has run.
        self._now = 0.0
        #: The client, the tag and the end of each block.
        self._keys: dict[Hashable, tuple[Hashable, float, float]] = {}
        self._flows: dict[Hashable, _Flow] = {}
        self._numbers = itertools.count()

    def add(
        self, client: Hashable, keys: Iterable[QueuedKey], again: bool = False
    ) -> dict[Hashable, Rank]:
        """Add keys of a client, and return when each of them is served.

        Parameters
        ----------
        client : hashable
            The client.
        keys : iterable of QueuedKey
            In the order in which they are to be served.
        again : bool
            Whether the tasks were submitted before: then they do not come after what the client
            has submitted since.
        """
        flow = self._flows.setdefault(client, _Flow())
        tag = self._now if again else max(self._now, self._end_of(flow))
        others = []
        for name, other in self._flows.items():
            other.generations.drop(self._now)
            if name != client:
                others.append(other.generations)
        ranks: dict[Hashable, Rank] = {}
        lowest, until = math.inf, -math.inf
        for key, generation, seconds in keys:
            if tag > until:
                lowest, until = _lowest_of_all(others, tag)
            rank = ranks[key] = Rank(int(min(generation, lowest)), tag)
            flow.generations.add(tag, rank.generation)
            end = tag + seconds
            self._keys[key] = client, tag, end
            heapq.heappush(flow.ends, (-end, next(self._numbers), key))
            tag = end
        return ranks

    def _end_of(self, flow: _Flow) -> float:
        """Return where the last block of a client ends that has run or may run."""
        ends = flow.ends
        while ends and ends[0][2] not in self._keys:
            heapq.heappop(ends)
        return max(flow.served, -ends[0][0]) if ends else flow.served

    def client_of(self, key: Hashable) -> Hashable | None:
        """Return the client of a key; None if it was not added, or has ended."""
        found = self._keys.get(key)
        return None if found is None else found[0]

    def end(self, key: Hashable, ran: bool, seconds: float | None = None) -> None:
        """Record that a key has ended; no effect if it was not added.

        Parameters
        ----------
        key : hashable
            The key.
        ran : bool
            Whether it has run: else it does not count.
        seconds : float, optional
            How long it has run; as long as was expected if that is not known.
        """
        found = self._keys.pop(key, None)
        if found is None:
            return
        client, tag, end = found
        if ran:
            self._now = max(self._now, tag)
            if client in self._flows:
                flow = self._flows[client]
                flow.served = max(flow.served, end if seconds is None else tag + seconds)
        if not self._keys:
            self.clear()

    def remove(self, client: Hashable) -> None:
        """Forget what a client has had; its keys end by themselves."""
        self._flows.pop(client, None)

    def clear(self) -> None:
        """Forget all keys and clients."""
        self._keys.clear()
        self._flows.clear()


def _lowest_of_all(flows: Iterable[_Generations], tag: float) -> tuple[float, float]:
    """Return the lowest generation of blocks from a tag on, and up to where it is the lowest."""
    lowest, until = math.inf, math.inf
    for each in flows:
        found = each.lowest(tag)
        if found is not None:
            lowest, until = min(lowest, found[0]), min(until, found[1])
    return lowest, until


class FairShare:
    """Changes the priorities of the blocks of all clients as `FairQueue` says. Not thread-safe.

    Not changed are gangs, which are granted slots in another way, what tasks submit, which runs
    before all other tasks, and what is not of daskbatch.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._queue = FairQueue()
        #: How long the last open block of each client has run. These count as those of another
        #: client: the queue has clients as pairs of a topic, and whether blocks are open.
        self._open_seconds: dict[str, float] = {}

    def update_graph(
        self, annotations: Mapping[str, Mapping[Any, Any]], priority: Mapping[Any, tuple[Any, ...]]
    ) -> None:
        """Set the priorities of a graph; called before Dask does anything about its keys.

        Parameters
        ----------
        annotations : mapping
            By name: the values for those keys that are new.
        priority : mapping
            Dask's priorities of its keys: a level, a generation and a number.
        """
        topics = annotations.get(TOPIC)
        if not topics or any(each[1] % 1 for each in priority.values() if each):
            return
        topic = next(iter(topics.values()))
        keys = _queued_keys(topics, annotations, priority)
        again, is_open = bool(annotations.get(AGAIN)), bool(annotations.get(OPEN))
        if is_open:
            # They are submitted one by one, and each waits for all that others have. It may end
            # long before its time is up, since it waits for tasks.
            again = False
            usual = self._open_seconds.get(topic, math.inf)
            keys = (key._replace(seconds=min(key.seconds, usual)) for key in keys)
        for key, rank in self._queue.add((topic, is_open), keys, again).items():
            self._scheduler.tasks[key].priority = (priority[key][0], *rank)

    def transition(
        self, key: Any, start: str, finish: str, times: Iterable[Mapping[str, Any]]
    ) -> None:
        """Note that a key has ended; called with each transition of Dask.

        Parameters
        ----------
        key : object
            The key.
        start, finish : str
            Its states.
        times : iterable of mapping
            What its worker has done for it, and when; see Dask's `StartStop`.
        """
        if finish not in _ENDED:
            return
        client: Any = self._queue.client_of(key)
        if client is None:
            return
        spans = [each["stop"] - each["start"] for each in times if each["action"] == "compute"]
        seconds = max(0.0, sum(spans)) if spans else None
        self._queue.end(key, start == "processing", seconds)
        topic, is_open = client
        if is_open and seconds is not None:
            self._open_seconds[topic] = seconds

    def remove(self, topic: str) -> None:
        """Forget a client."""
        for is_open in (False, True):
            self._queue.remove((topic, is_open))
        self._open_seconds.pop(topic, None)

    def clear(self) -> None:
        """Forget all keys."""
        self._queue.clear()


def _queued_keys(
    topics: Iterable[Any],
    annotations: Mapping[str, Mapping[Any, Any]],
    priority: Mapping[Any, tuple[Any, ...]],
) -> Iterator[QueuedKey]:
    seconds, gangs = annotations.get(SECONDS, {}), annotations.get(GANG, {})
    for key in sorted(topics, key=priority.__getitem__):
        if key not in gangs:
            yield QueuedKey(key, priority[key][1], seconds.get(key, 0.0))
