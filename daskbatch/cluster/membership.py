"""A client's place in its Batch: taken, kept, given up, or lost.

Does not know tasks; whoever is told of the loss does.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from time import monotonic
from typing import Any

from distributed import Client
from distributed.comm import CommClosedError

from daskbatch.errors import ServiceLost

#: How long the scheduler is asked at once whether the others have left. Seconds.
_JOIN_SECONDS = 5.0

#: Until when messages may still come for a client that has left. Seconds.
_LATE_SECONDS = 10.0

#: What asking a scheduler raises that has gone away.
UNREACHABLE_ERRORS = (OSError, CommClosedError)


class Membership:
    """What makes a process a client of a Batch.

    Parameters
    ----------
    client : distributed.Client
        The connection.
    topic : str
        Under which it is told of its tasks.
    """

    def __init__(self, client: Client, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._address = client.scheduler.address
        self._stream: Any = None
        self._on_loss: Callable[[ServiceLost], None] = _ignore
        self._lost = ""

    def take(
        self,
        batch: str,
        founds: bool,
        hear: Callable[[tuple[float, Any]], None],
        on_loss: Callable[[ServiceLost], None],
    ) -> tuple[int, int]:
        """Become a client; returns its number, and how many tasks run at once.

        Parameters
        ----------
        batch : str
            Of which Batch.
        founds : bool
            Whether it is this client that makes it.
        hear : callable
            Told of events.
        on_loss : callable
            Told when the place is lost.

        Raises
        ------
        ServiceLost
            There is no such Batch any more, or nobody who could know.
        """
        self._on_loss = on_loss
        self._stream = self._client.scheduler_comm
        # Not by `subscribe_topic`: the scheduler would keep a record of each topic for ever.
        self._client._event_handlers[self._topic] = hear
        try:
            enrolled = self._client.sync(
                self._client.scheduler.daskbatch_register,
                client=self._client.id,
                topic=self._topic,
                batch=batch,
                where=f"process {os.getpid()} on {socket.gethostname()}",
                founds=founds,
            )
        except UNREACHABLE_ERRORS as error:
            raise ServiceLost(f"the cluster at {self._address} is gone: {error}") from error
        except BaseException:
            # Whoever was interrupted does not know that it has become a client, perhaps.
            loop = self._client.loop
            loop.add_callback(loop.call_later, 1.0, self._say, "daskbatch_unregister")
            raise
        if enrolled is None:
            self._unsubscribe()
            raise ServiceLost(
                f"there is no such Batch at {self._address}, or none any more: a copy works "
                "until the Batch that it is a copy of is joined or terminated"
            )
        number, slots = enrolled
        return int(number), int(slots)

    def require(self) -> None:
        """Make sure that there is still a place to speak of.

        Raises
        ------
        ServiceLost
            There is none.
        """
        self.look()
        if self._lost:
            raise ServiceLost(self._lost)

    def look(self) -> None:
        """Find out whether the place is lost."""
        if self._client.status != "running":
            self.lose(
                f"the cluster at {self._address} is gone, or this client was silent for so long "
                "that it was closed; make another Batch to go on"
            )
        elif self._client.scheduler_comm is not self._stream:
            # Dask has connected once more; but who loses the connection counts as closed.
            self.lose(f"the connection to {self._address} was lost; make another Batch to go on")

    def lose(self, why: str) -> None:
        """Take in that the place is lost."""
        if not self._lost:
            self._lost = why
            self._on_loss(ServiceLost(why))

    def say_closed(self) -> None:
        """Say that this client starts nothing more."""
        self._say("daskbatch_close")

    def say_idle(self) -> None:
        """Leave, with all tasks over; results can still be had."""
        self._say("daskbatch_unregister", idle=True)

    def _say(self, what: str, **more: Any) -> None:
        async def say() -> None:
            with contextlib.suppress(*UNREACHABLE_ERRORS):
                await getattr(self._client.scheduler, what)(topic=self._topic, **more)

        self._client.loop.add_callback(say)

    def others_left(self, seconds: float | None) -> list[str]:
        """Wait for a time until this client is alone in its Batch, which ends with that.

        Returns what there is to say of the others: nothing, if there is nobody who would know.
        """
        deadline = None if seconds is None else monotonic() + seconds
        while True:
            left = _JOIN_SECONDS if deadline is None else max(0.0, deadline - monotonic())
            self.look()
            if self._lost:
                return []
            others = None
            with contextlib.suppress(*UNREACHABLE_ERRORS):
                others = self._client.sync(
                    self._client.scheduler.daskbatch_join,
                    topic=self._topic,
                    seconds=min(left, _JOIN_SECONDS),
                )
            if not others or (deadline is not None and monotonic() >= deadline):
                return list(others or ())

    def give_up(self, idle: bool, wait: bool = True) -> None:
        """Leave; what of its tasks is not over ends.

        Parameters
        ----------
        idle : bool
            Whether none is left.
        wait : bool
            Whether to return only when that is known to all.
        """
        if self._client.status != "running" or self._lost:
            return
        self._unsubscribe()
        if not wait:
            self._say("daskbatch_unregister", idle=idle)
            return
        # It may go away at this very moment, and then has nothing to forget any more.
        with contextlib.suppress(*UNREACHABLE_ERRORS):
            self._client.sync(
                self._client.scheduler.daskbatch_unregister, topic=self._topic, idle=idle
            )

    def _unsubscribe(self) -> None:
        # Dask does not like messages for which there is no handler.
        handlers = self._client._event_handlers
        handlers[self._topic] = _ignore
        loop = self._client.loop
        loop.add_callback(loop.call_later, _LATE_SECONDS, handlers.pop, self._topic, None)


def _ignore(what: object) -> None:
    """Hear of nothing."""
