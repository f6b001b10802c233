"""Registers a client with its Batch, notices when the registration is lost, and ends it.

Any thread may use it. But Dask's event loop must not call a method that waits for the scheduler:
`register`, `wait_until_alone`, and `unregister` unless `wait` is False.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable
from typing import Any

from distributed import Client
from distributed.comm import CommClosedError

from daskbatch.cluster.messages import Registration
from daskbatch.errors import ServiceLost
from daskbatch.timeouts import Deadline

#: How long one request of `wait_until_alone` may wait on the scheduler.
_JOIN_REQUEST_SECONDS = 5.0

#: How long messages may still arrive for a client that has left.
_LATE_MESSAGES_SECONDS = 10.0

#: How long after an interrupted registration the client is unregistered.
_UNREGISTER_DELAY_SECONDS = 1.0

#: What a request raises if the scheduler is gone.
UNREACHABLE_ERRORS = (OSError, CommClosedError)


class Membership:
    """The registration of one client of a Batch. Any thread may use it.

    Parameters
    ----------
    client : distributed.Client
        The connection.
    topic : str
        The topic of events for this client.
    """

    def __init__(self, client: Client, topic: str) -> None:
        self._client = client
        self._topic = topic
        self._address = client.scheduler.address
        self._stream: Any = None
        self._on_loss: Callable[[ServiceLost], None] = _ignore
        #: Why the registration was lost; empty while it is not.
        self._lost = ""

    def register(
        self,
        batch: str,
        is_creator: bool,
        on_event: Callable[[tuple[float, Any]], None],
        on_loss: Callable[[ServiceLost], None],
    ) -> Registration:
        """Register as a client of a Batch.

        Parameters
        ----------
        batch : str
            The Batch.
        is_creator : bool
            Whether this client creates the Batch.
        on_event : callable
            Called, on Dask's event loop, with each event of the topic.
        on_loss : callable
            Called once when the registration is lost.

        Raises
        ------
        ServiceLost
            The Batch does not exist or has ended, or the scheduler is gone.
        """
        self._on_loss = on_loss
        self._stream = self._client.scheduler_comm
        # Not by `subscribe_topic`: the scheduler would keep a record of each topic for ever.
        self._client._event_handlers[self._topic] = on_event
        try:
            answer = self._client.sync(
                self._client.scheduler.daskbatch_register,
                client=self._client.id,
                topic=self._topic,
                batch=batch,
                where=f"process {os.getpid()} on {socket.gethostname()}",
                founds=is_creator,
            )
        except UNREACHABLE_ERRORS as error:
            raise ServiceLost(f"the cluster at {self._address} is gone: {error}") from error
        except BaseException:
            # The call was interrupted, and the scheduler may have registered the client.
            loop = self._client.loop
            loop.add_callback(
                loop.call_later, _UNREGISTER_DELAY_SECONDS, self._request, "daskbatch_unregister"
            )
            raise
        if answer is None:
            self._unsubscribe()
            raise ServiceLost(
                f"there is no such Batch at {self._address}, or it has ended: a copy works until "
                "the Batch that it is a copy of is joined or terminated"
            )
        return Registration(*answer)

    def require_registered(self) -> None:
        """Check that this client is still registered.

        Raises
        ------
        ServiceLost
            The registration was lost.
        """
        self.check()
        if self._lost:
            raise ServiceLost(self._lost)

    @property
    def is_lost(self) -> bool:
        """Whether the registration is known to be lost; see `check`."""
        return bool(self._lost)

    def check(self) -> None:
        """Find out whether the registration is lost, and record it; does not raise."""
        if self._client.status != "running":
            self.lose(
                f"the cluster at {self._address} is gone, or it has closed this client, which was "
                "silent for too long; make another Batch to go on"
            )
        elif self._client.scheduler_comm is not self._stream:
            # Dask has connected again. But the scheduler removes a client with its connection.
            self.lose(f"the connection to {self._address} was lost; make another Batch to go on")

    def lose(self, why: str) -> None:
        """Record that the registration is lost, and why."""
        if not self._lost:
            self._lost = why
            self._on_loss(ServiceLost(why))

    def announce_closed(self) -> None:
        """Report to the scheduler, without waiting, that this client starts no more tasks."""
        self._request("daskbatch_close")

    def announce_idle(self) -> None:
        """Unregister without waiting, once all tasks are over; results can still be fetched."""
        self._request("daskbatch_unregister", idle=True)

    def _request(self, handler: str, **arguments: Any) -> None:
        async def request() -> None:
            scheduler = self._client.scheduler  # None once the client is closed
            if scheduler is not None:
                with contextlib.suppress(*UNREACHABLE_ERRORS):
                    await getattr(scheduler, handler)(topic=self._topic, **arguments)

        self._client.loop.add_callback(request)

    def wait_until_alone(self, seconds: float | None) -> list[str]:
        """Wait until this client is alone in its Batch, which ends then.

        Returns descriptions of the other clients at the end; none if the scheduler is gone.
        """
        deadline = Deadline(seconds)
        while True:
            self.check()
            if self._lost:
                return []
            others = None
            with contextlib.suppress(*UNREACHABLE_ERRORS):
                others = self._client.sync(
                    self._client.scheduler.daskbatch_join,
                    topic=self._topic,
                    seconds=deadline.remaining(at_most=_JOIN_REQUEST_SECONDS),
                )
            if not others or deadline.passed:
                return list(others or ())

    def unregister(self, idle: bool, wait: bool = True) -> None:
        """Leave the Batch; the unfinished tasks of this client end.

        Parameters
        ----------
        idle : bool
            Whether no task is unfinished.
        wait : bool
            Whether to return only when the scheduler and its workers know of it.
        """
        if self._client.status != "running" or self._lost:
            return
        self._unsubscribe()
        if not wait:
            self._request("daskbatch_unregister", idle=idle)
            return
        # If the scheduler ends at this moment, the registration ends with it.
        with contextlib.suppress(*UNREACHABLE_ERRORS):
            self._client.sync(
                self._client.scheduler.daskbatch_unregister, topic=self._topic, idle=idle
            )

    def _unsubscribe(self) -> None:
        # Dask logs an error for messages without a handler.
        handlers = self._client._event_handlers
        handlers[self._topic] = _ignore
        loop = self._client.loop
        loop.add_callback(loop.call_later, _LATE_MESSAGES_SECONDS, handlers.pop, self._topic, None)


def _ignore(event: object) -> None:
    """Do nothing with an event."""
