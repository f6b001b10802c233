"""A connection within a process: two ends, of which each hears what the other says.

Does not know what is said. Each speaks as a `Wire` does, and has copies of what is large: whoever
serves at one end does not notice when the other is stopped in the middle of something.
"""

from __future__ import annotations

from queue import Empty, SimpleQueue
from typing import Any

from daskbatch.shared.data.codec import copied
from daskbatch.shared.rpc.socket_transport import ConnectionCut, Idle
from daskbatch.worker.execution.task_context import STOP_POLL_SECONDS

#: What is said as long as there is something to say; nothing is the end.
_Said = SimpleQueue[tuple[Any, ...]]


class LocalTransport:
    """One end; it takes turns with the other.

    Parameters
    ----------
    heard, said : SimpleQueue
        From the other end, and to it. They are in C: a thread that is stopped leaves them whole.
    """

    def __init__(self, heard: _Said, said: _Said) -> None:
        self._heard = heard
        self._said = said

    def send(self, message: object, idle: Idle | None = None) -> None:
        """Send a message."""
        self._said.put((copied(message),))

    def receive(self, idle: Idle | None = None) -> Any:
        """Wait for a message.

        Raises
        ------
        Cut
            The other end is gone.
        """
        while True:
            try:
                said = self._heard.get(timeout=None if idle is None else STOP_POLL_SECONDS)
            except Empty:
                if idle is not None:
                    idle()
                continue
            if not said:
                self._heard.put(())  # so it is from here on
                raise ConnectionCut("the other side has closed the connection")
            return said[0]

    def is_cut(self) -> bool:
        """Say whether the other end is gone, at a moment when it has nothing to say."""
        return not self._heard.empty()

    def close(self) -> None:
        """End the connection, also for one who waits in `receive`."""
        self._said.put(())
        self._heard.put(())

    def __del__(self) -> None:
        self.close()


def connected() -> tuple[LocalTransport, LocalTransport]:
    """Make the two ends of a connection."""
    one, other = _Said(), _Said()
    return LocalTransport(one, other), LocalTransport(other, one)
