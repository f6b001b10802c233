"""The worker's end of the connections to the supervisors of a job's ranks.

Used by the thread that runs the job. Nothing here blocks: the thread waits for all connections
at once, and calls a link when its socket is ready.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import time
import weakref
from collections import deque
from collections.abc import Iterator
from typing import IO, NamedTuple

from daskbatch.forking import after_fork
from daskbatch.worker.mpi.rank_supervisor import (
    DIGEST_BYTES,
    END,
    GRACE,
    GREETING,
    HEAD,
    HELLO,
    START,
    STDIN,
    STOP,
    proof,
)

#: How long a supervisor may take to prove that it knows the secret.
_HELLO_TIMEOUT_SECONDS = 60.0

#: How many connections may wait for their proof, besides those of the ranks.
_SPARE_CONNECTIONS = 16

_READ_BYTES = 1 << 18

#: A longer message is none of a supervisor.
_MAX_MESSAGE_BYTES = 1 << 20

#: A host that has died does not close its connections. So the system probes a connection that has
#: been silent for this time.
_KEEPALIVE_SECONDS = 15

#: The sockets that a forked child must close. Otherwise the supervisors would believe that this
#: process lives for as long as the child does.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


@after_fork
def _close_sockets() -> None:
    for each in list(_sockets):
        with contextlib.suppress(OSError):
            each.close()
    _sockets.clear()


class Message(NamedTuple):
    """A message of a supervisor: its kind, as in `rank_supervisor`, and its content."""

    kind: bytes
    content: bytes


class LinkClosed(Exception):
    """The other side has closed the connection, or does not know the secret."""


class RankLink:
    """The connection to the supervisor of one rank.

    Parameters
    ----------
    sock : socket.socket
        An accepted connection.
    secret : bytes
        The secret of the job.

    Attributes
    ----------
    rank : int
        The number of the rank; -1 until the other side has proved that it knows the secret.
    """

    def __init__(self, sock: socket.socket, secret: bytes) -> None:
        self.socket = sock
        self.rank = -1
        self.made = time.monotonic()
        self._secret = secret
        self._received = bytearray()
        self._outgoing: deque[memoryview] = deque()
        self._source: IO[bytes] | None = None
        self._start = b""
        sock.setblocking(False)
        _sockets.add(sock)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (("TCP_KEEPIDLE", _KEEPALIVE_SECONDS), ("TCP_KEEPINTVL", 5)):
            if hasattr(socket, name):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        """Close the connection: the supervisor ends its rank."""
        _sockets.discard(self.socket)
        self.socket.close()

    # -- receiving ------------------------------------------------------------------------

    def receive(self) -> Iterator[Message]:
        """Yield the messages that have arrived, and change `rank` on the way.

        Raises
        ------
        LinkClosed
            The connection is of no use any longer.
        """
        try:
            data = self.socket.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            raise LinkClosed(str(error)) from None
        self._received += data
        if self.rank < 0:
            self._authenticate()
        if self.rank >= 0:
            yield from self._messages()
        if not data:
            raise LinkClosed("the connection was closed")

    def _authenticate(self) -> None:
        if len(self._received) < HELLO.size + DIGEST_BYTES:
            return
        hello = bytes(self._received[: HELLO.size])
        found = bytes(self._received[HELLO.size : HELLO.size + DIGEST_BYTES])
        del self._received[: HELLO.size + DIGEST_BYTES]
        greeting, rank, nonce = HELLO.unpack(hello)
        if greeting != GREETING:
            raise LinkClosed("this is not a supervisor of this version of daskbatch")
        if not hmac.compare_digest(found, proof(self._secret, b"rank", hello)):
            raise LinkClosed("the other side does not know the secret of the job")
        self.rank = rank
        self._send(proof(self._secret, b"worker", nonce))

    def _messages(self) -> Iterator[Message]:
        while len(self._received) >= HEAD.size:
            kind, length = HEAD.unpack_from(self._received)
            if length > _MAX_MESSAGE_BYTES:
                raise LinkClosed("the other side does not follow the protocol")
            if len(self._received) < HEAD.size + length:
                return
            content = bytes(self._received[HEAD.size : HEAD.size + length])
            del self._received[: HEAD.size + length]
            yield Message(kind, content)

    # -- sending --------------------------------------------------------------------------

    def start(self, content: bytes, source: IO[bytes] | None) -> None:
        """Send a `START` message.

        Parameters
        ----------
        content : bytes
            What `pack_start` returned.
        source : binary file, optional
            The standard input of the rank, which is sent before.
        """
        self._source = source
        self._start = content
        if source is None:
            self._send(_packed(START, content))
        else:
            self.flush()

    def stop(self, grace: float) -> None:
        """Have the supervisor end its rank: SIGTERM, and SIGKILL after `grace` seconds."""
        self._send(_packed(STOP, GRACE.pack(grace)))

    def end(self) -> None:
        """Have the supervisor end."""
        self._send(_packed(END))

    def _send(self, data: bytes) -> None:
        self._outgoing.append(memoryview(data))
        self.flush()

    @property
    def has_output(self) -> bool:
        """Whether `flush` is to be called once the socket can be written to."""
        return bool(self._outgoing)

    def flush(self) -> None:
        """Send what the socket takes now."""
        while True:
            if not self._outgoing and self._source is not None:
                if data := self._source.read(_READ_BYTES):
                    self._outgoing.append(memoryview(_packed(STDIN, data)))
                else:
                    self._source = None
                    self._outgoing.append(memoryview(_packed(START, self._start)))
            if not self._outgoing:
                return
            try:
                sent = self.socket.send(self._outgoing[0])
            except (BlockingIOError, InterruptedError):
                return
            except OSError:
                self._outgoing.clear()  # `receive` finds out why
                self._source = None
                return
            rest = self._outgoing[0][sent:]
            if rest:
                self._outgoing[0] = rest
            else:
                self._outgoing.popleft()


def _packed(kind: bytes, content: bytes = b"") -> bytes:
    return HEAD.pack(kind, len(content)) + content


class LinkListener:
    """Accepts the connections of supervisors.

    Parameters
    ----------
    host : str
        The address at which the supervisors reach this host.
    ranks : int
        The number of ranks.
    """

    def __init__(self, host: str, ranks: int) -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._secret = os.urandom(DIGEST_BYTES)
        self._socket = socket.create_server((host, 0), family=family, backlog=max(128, ranks))
        self._socket.setblocking(False)
        _sockets.add(self._socket)
        self._host = host
        self._most = ranks + _SPARE_CONNECTIONS
        #: Those that have not yet proved that they know the secret.
        self.strangers: list[RankLink] = []

    @property
    def address(self) -> str:
        """What a supervisor needs, as the value of its variable `ADDRESS`."""
        return f"{self._host} {self._socket.getsockname()[1]} {self._secret.hex()}"

    def fileno(self) -> int:
        return self._socket.fileno()

    def accept(self) -> RankLink | None:
        """Return a new connection, if there is one and if there are not too many."""
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return None
        if len(self.strangers) >= self._most:
            sock.close()
            return None
        link = RankLink(sock, self._secret)
        self.strangers.append(link)
        return link

    def expired(self) -> list[RankLink]:
        """Return the connections that have not proved for too long that they know the secret."""
        now = time.monotonic()
        return [link for link in self.strangers if now - link.made > _HELLO_TIMEOUT_SECONDS]

    def close(self) -> None:
        """Accept no further connection, and close those that have not proved anything."""
        _sockets.discard(self._socket)
        self._socket.close()
        for link in self.strangers:
            link.close()
        self.strangers.clear()
