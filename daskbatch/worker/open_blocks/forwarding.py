"""Sends outcomes of members of an open block to other open blocks, where members wait for them.

So a task that waits for a task of another slot need not wait for the client as well. The client
says which outcomes go where; it still receives all reports itself.
"""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Callable, Iterable

from daskbatch.serialization.stored_value import StoredValue
from daskbatch.worker.execution.outcome import Status
from daskbatch.worker.execution.outcome_log import OutcomeLog
from daskbatch.worker.handshake import ServerAddress
from daskbatch.worker.open_blocks.frame_link import FrameLink
from daskbatch.worker.open_blocks.messages import PeerBlock

#: Connects to the server of another worker's open blocks.
Connect = Callable[[ServerAddress], socket.socket]


class _Peer:
    """The connection with one other block, made in the background. Any thread may use it.

    What is sent before there is a connection is kept. If it cannot be made, or is cut, all is
    dropped: the other block waits for a limited time only.
    """

    def __init__(self, connect: Connect, peer: PeerBlock, topic: str, block: int) -> None:
        self._lock = threading.Lock()
        self._link: FrameLink | None = None
        self._kept: list[bytes] = []
        self._closed = False
        hello = pickle.dumps((topic, peer.block, block), 5)
        threading.Thread(
            target=self._connect,
            args=[connect, peer.address, hello],
            name="daskbatch-open-peer",
            daemon=True,
        ).start()

    def _connect(self, connect: Connect, address: ServerAddress, hello: bytes) -> None:
        try:
            link = FrameLink(connect(address))
        except Exception:  # no network leads there, or the worker has ended
            self.close()
            return
        with self._lock:
            if self._closed:
                link.close()
                return
            self._link = link
            kept, self._kept = self._kept, []
            link.send(hello, *kept)

    def send(self, frame: bytes) -> None:
        """Send a frame, or keep it until there is a connection."""
        with self._lock:
            if self._closed:
                return
            if self._link is None:
                self._kept.append(frame)
            else:
                self._link.send(frame)

    def flush(self) -> None:
        """Send what the system has not taken yet."""
        link = self._link
        if link is not None and link.has_unsent:
            link.flush()

    def close(self) -> None:
        """Close the connection; what has been sent arrives."""
        with self._lock:
            self._closed = True
            self._kept.clear()
            link = self._link
        if link is not None:
            link.close()


class Forwarding:
    """Which outcomes of one block other blocks receive. Any thread may use it.

    Parameters
    ----------
    log : OutcomeLog
        The outcomes.
    topic, block : str, int
        The client, and the number of this block.
    limit : int
        Larger values are not sent. Bytes.
    """

    def __init__(self, log: OutcomeLog, topic: str, block: int, limit: int) -> None:
        self._log = log
        self._topic = topic
        self._block = block
        self._limit = limit
        self._lock = threading.Lock()
        self._peers: list[_Peer] = []
        #: For members that are not over: the peers that receive their outcomes.
        self._targets: dict[int, list[int]] = {}

    def __bool__(self) -> bool:
        """Return whether the outcome of any member that is not over is to be sent."""
        return bool(self._targets)

    def connect(self, peers: Iterable[PeerBlock], connect: Connect) -> None:
        """Connect to other blocks; their positions follow those of earlier ones."""
        for each in peers:
            self._peers.append(_Peer(connect, each, self._topic, self._block))

    def add(self, forwards: Iterable[tuple[int, int]]) -> None:
        """Have the outcomes of members sent, at once if they are over.

        Parameters
        ----------
        forwards : iterable of (int, int)
            Members, and the positions of the blocks that receive their outcomes.
        """
        for member, peer in forwards:
            with self._lock:
                self._targets.setdefault(member, []).append(peer)
            # Afterwards: the thread that runs the block records first, and then calls `send`.
            if member < len(self._log.statuses):
                self.send(member)

    def send(self, member: int) -> None:
        """Send the outcome of a member that is over to those that wait for it."""
        with self._lock:
            targets = self._targets.pop(member, None)
        if targets:
            for peer in dict.fromkeys(targets):
                self._peers[peer].send(self._outcome(member, targets.count(peer)))

    def _outcome(self, member: int, count: int) -> bytes:
        """Return the frame with an outcome that some members of one block wait for."""
        log = self._log
        status, value = log.statuses[member], log.values[member]
        if (
            status != Status.DONE  # the client must know of it before others conclude from it
            or value is None
            or type(value) is StoredValue
            or len(value) > self._limit
        ):
            return pickle.dumps((member, int(Status.DEFERRED), None, None, count), 5)
        output = log.outputs.get(member) if log.outputs else None
        return pickle.dumps((member, status, value, output, count), 5)

    def flush(self) -> None:
        """Send what the system has not taken yet."""
        for each in self._peers:
            each.flush()

    def close(self) -> None:
        """Close the connections; what has been sent arrives."""
        for each in self._peers:
            each.close()
