"""Watches the ranks of a job through the supervisors that the launcher starts beside them.

The supervisors run on any host, under any launcher. The thread that runs the job uses the objects
of this module. Nothing blocks.
"""

from __future__ import annotations

import os
import selectors
import sys
from collections import deque
from collections.abc import Collection, Iterator

from daskbatch.worker.mpi import rank_supervisor
from daskbatch.worker.mpi.rank_events import Ended, Event, Lost, NotStarted, Output, StartOf
from daskbatch.worker.mpi.rank_link import LinkClosed, LinkListener, RankLink


class SupervisedRanks:
    """The ranks of a job with their supervisors. The thread that runs the job uses it.

    Parameters
    ----------
    size : int
        The number of ranks.
    host : str
        The address at which the supervisors reach this host.
    marker : str
        The value of `MARKER` in the environment of the launcher.
    start_of : callable
        Returns what a rank runs.
    """

    #: The supervisors are children of the launcher, and inherit what it passes to the ranks.
    needs_port = False

    def __init__(self, size: int, host: str, marker: str, start_of: StartOf) -> None:
        self._size = size
        self._start_of = start_of
        self._links: dict[int, RankLink] = {}
        self._ended: set[int] = set()
        self._events: deque[Event] = deque()
        self._listener = LinkListener(host, size)
        # One descriptor stands for all: it is readable when one of them is.
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        #: What the launcher starts in place of each rank.
        self.command = [sys.executable, "-I", "-S", "-c", rank_supervisor.PROGRAM]
        #: The value of the variable by which a supervisor finds this worker.
        self.address = f"{self._listener.address} {marker}"

    @property
    def numbers(self) -> Collection[int]:
        """The ranks whose supervisors have connected."""
        return self._links.keys()

    def fileno(self) -> int:
        """Return a descriptor that is readable when `take` has something to do."""
        return self._selector.fileno()

    def due(self) -> float | None:
        """Return when `take` is to be called even if nothing happens: never."""
        return None

    def take(self) -> Iterator[Event]:
        """Handle what has happened, and yield what the job must know of it."""
        for key, events in self._selector.select(0):
            if isinstance(key.fileobj, RankLink):
                self._on_link(key.fileobj, events)
            else:
                self._on_connection()
        while self._events:
            yield self._events.popleft()

    def stop(self, rank: int, grace: float) -> None:
        """End a rank: SIGTERM, and SIGKILL after `grace` seconds."""
        link = self._links.get(rank)
        if link is not None:
            link.stop(grace)
            self._watch(link)

    def release(self) -> None:
        """Have the supervisors end."""
        for link in self._links.values():
            link.end()
            self._watch(link)

    def close(self) -> None:
        """Close all connections."""
        for link in self._links.values():
            link.close()
        self._listener.close()
        self._selector.close()

    # -- connections ----------------------------------------------------------------------

    def _on_connection(self) -> None:
        link = self._listener.accept()
        if link is not None:
            self._selector.register(link, selectors.EVENT_READ)
            self._on_link(link, selectors.EVENT_READ)
        for expired in self._listener.expired():
            self._drop(expired)

    def _drop(self, link: RankLink) -> None:
        self._selector.unregister(link)
        link.close()
        if link in self._listener.strangers:
            self._listener.strangers.remove(link)

    def _watch(self, link: RankLink) -> None:
        """Wait for what a link needs next."""
        if link.fileno() < 0:
            return
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.has_output else 0)
        self._selector.modify(link, events)

    def _on_link(self, link: RankLink, events: int) -> None:
        if events & selectors.EVENT_WRITE:
            link.flush()
        try:
            if events & selectors.EVENT_READ:
                was_stranger = link.rank < 0
                for kind, content in link.receive():
                    self._on_message(link.rank, kind, content)
                if was_stranger and link.rank >= 0:
                    self._on_rank(link)
            self._watch(link)
        except LinkClosed:
            self._drop(link)
            rank = link.rank
            if self._links.get(rank) is link and rank not in self._ended:
                self._events.append(Lost(rank))

    def _on_rank(self, link: RankLink) -> None:
        """Tell a supervisor what to start."""
        self._listener.strangers.remove(link)
        if link.rank >= self._size or link.rank in self._links:
            raise LinkClosed("this job has no further rank of that number")
        self._links[link.rank] = link
        start = self._start_of(link.rank)
        if start is None:
            link.end()
            return
        content = rank_supervisor.pack_start(
            [os.fsencode(each) for each in start.command],
            os.fsencode(start.cwd),
            {os.fsencode(name): os.fsencode(text) for name, text in start.env.items()},
            self._size,
            start.is_remote,
        )
        link.start(content, start.stdin)

    def _on_message(self, rank: int, kind: bytes, content: bytes) -> None:
        if kind in (rank_supervisor.STDOUT, rank_supervisor.STDERR):
            self._events.append(Output(rank, kind == rank_supervisor.STDERR, content))
        elif kind == rank_supervisor.EXIT:
            code, was_signalled, *used = rank_supervisor.ENDED.unpack(content)
            self._ended.add(rank)
            self._events.append(Ended(rank, code, was_signalled, *used))
            if code == 0:
                self._links[rank].end()
        elif kind == rank_supervisor.FAILED:
            number, is_directory = rank_supervisor.FAILURE.unpack(content)
            self._ended.add(rank)
            self._events.append(NotStarted(rank, number, is_directory))
