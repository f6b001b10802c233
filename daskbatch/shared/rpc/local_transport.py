"""A connection within a process, with the interface of `SocketTransport`.

Buffers are copied, so that neither end sees later changes that the other end makes to its objects:
the user's thread may change them, or be interrupted at any point.
"""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import Any

from daskbatch.shared.data.codec import copy_buffers
from daskbatch.shared.rpc.socket_transport import ConnectionClosed, IdleCheck
from daskbatch.worker.execution.task_context import STOP_POLL_SECONDS

#: Each item is a tuple with one message; an empty tuple means that an end was closed.
_Messages = SimpleQueue[tuple[Any, ...]]


class LocalTransport:
    """One end of the connection; the two ends take turns, as those of a `SocketTransport` do.

    `close` may be called by any thread, the other methods by one at a time.

    Parameters
    ----------
    incoming, outgoing : SimpleQueue
        The messages from the other end, and to it. They are implemented in C: a thread that is
        interrupted leaves them intact.
    """

    #: Buffers in shared memory stay where they are, and both ends hold them.
    shares_memory = False

    def __init__(self, incoming: _Messages, outgoing: _Messages) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def send(self, message: object, idle_check: IdleCheck | None = None) -> None:
        """Send a message."""
        self._outgoing.put((copy_buffers(message),))

    def receive(self, idle_check: IdleCheck | None = None) -> Any:
        """Wait for a message, and return it.

        Raises
        ------
        ConnectionClosed
            An end was closed.
        """
        while True:
            try:
                message = self._incoming.get(
                    timeout=None if idle_check is None else STOP_POLL_SECONDS
                )
            except Empty:
                if idle_check is not None:
                    idle_check()
                continue
            if not message:
                self._incoming.put(())  # for the next call of `receive`
                raise ConnectionClosed("the other side has closed the connection")
            return message[0]

    def peer_has_closed(self) -> bool:
        """Return whether an end was closed; to be called when it is not the other end's turn."""
        return not self._incoming.empty()

    def close(self) -> None:
        """Close the connection, and wake a thread that waits in `receive` at either end."""
        self._outgoing.put(())
        self._incoming.put(())

    def __del__(self) -> None:
        self.close()


def make_pair() -> tuple[LocalTransport, LocalTransport]:
    """Return the two ends of a new connection."""
    one, other = _Messages(), _Messages()
    return LocalTransport(one, other), LocalTransport(other, one)
