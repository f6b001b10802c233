"""Connects and authenticates both sides of a connection, before anything else is sent.

Both sides prove that they know the server's secret; see `worker.authentication`. Neither side
unpickles anything before the other one's proof. With TLS, all of this is encrypted, and both sides
present certificates of the cluster.

`multiprocessing.connection` is not used: it has no TLS; its HMAC is of MD5 up to Python 3.11; its
listener authenticates in the thread that accepts, so that one silent client blocks all others; and
it joins the pieces that it receives, which makes one more copy of each large value.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterable
from typing import NamedTuple

from daskbatch.forking import close_in_children
from daskbatch.timeouts import Deadline
from daskbatch.worker.authentication import (
    authenticate_as_client,
    authenticate_by_one_of,
    repeat_until,
)
from daskbatch.worker.execution.task_context import STOP_POLL_SECONDS
from daskbatch.worker.local_sockets import connect_locally
from daskbatch.worker.socket_options import tune

#: How long it may take until the system has connected. The first packet that was lost is sent again
#: after a second.
_REACH_TIMEOUT_SECONDS = 1.3

#: How long a client may take to prove to the server that it knows the secret.
_ACCEPT_TIMEOUT_SECONDS = 10.0

#: How often the server checks whether that time is over.
_ACCEPT_POLL_SECONDS = 1.0


class ServerAddress(NamedTuple):
    """Where a server listens, and what a client needs to connect to it.

    Parameters
    ----------
    host : str
        The address that it listens at.
    port : int
        The port.
    secret : bytes
        The secret that both sides must know.
    tls : bool
        Whether the connection is encrypted.
    memory : str
        The host of the server: clients with the same `host_id` can map its memory.
    local : str
        The name of the Unix socket at which the server listens, too, for clients of its host; see
        `worker.local_sockets`.
    """

    host: str
    port: int
    secret: bytes
    tls: bool
    memory: str = ""
    local: str = ""

    def __repr__(self) -> str:
        return f"ServerAddress({self.host}:{self.port})"


class NotReachable(ConnectionError):
    """No connection to a server can be made: a firewall or a broken link is in between."""


def connect_to_server(
    address: ServerAddress,
    tls_context: ssl.SSLContext | None,
    seconds: float,
    idle_check: Callable[[], None] | None = None,
) -> socket.socket:
    """Connect to a server, and prove to it, and have it prove, that both know the secret.

    Parameters
    ----------
    address : ServerAddress
        The server.
    tls_context : ssl.SSLContext, optional
        The client's certificates, for a server with TLS.
    seconds : float
        How long it may take.
    idle_check : callable, optional
        Called every `STOP_POLL_SECONDS` meanwhile; it may raise, to end the wait.

    Raises
    ------
    NotReachable
        The network does not lead there.
    OSError
        No server answers there in time, or it does not know the secret.
    """
    deadline = Deadline(seconds)
    sock = _reach(address, min(seconds, _REACH_TIMEOUT_SECONDS))
    try:
        sock.settimeout(STOP_POLL_SECONDS)
        tune(sock)
        close_in_children(sock)
        if address.tls:
            if tls_context is None:
                raise ConnectionError("the server wants TLS, and this process has no certificates")
            sock = tls_context.wrap_socket(
                sock, server_hostname=address.host, do_handshake_on_connect=False
            )
            close_in_children(sock)
            repeat_until(deadline, sock.do_handshake, idle_check)
        authenticate_as_client(sock, address.secret, deadline, idle_check)
    except BaseException:
        sock.close()
        raise
    return sock


def check_reachable(address: ServerAddress) -> None:
    """Raise `NotReachable` if the network does not lead to a server at the moment.

    A connection does not notice that for minutes while it waits for an answer.
    """
    _reach(address, _REACH_TIMEOUT_SECONDS).close()


def _reach(address: ServerAddress, seconds: float) -> socket.socket:
    """Connect to a server, and send nothing: its system accepts even if the server is busy."""
    sock = connect_locally(address.local, 0.0)  # if too many clients wait there, by TCP
    if sock is not None:
        return sock
    try:
        return socket.create_connection((address.host, address.port), timeout=seconds)
    except OSError as error:
        raise NotReachable(f"{address.host}:{address.port} cannot be reached: {error}") from error


def accept_client(
    sock: socket.socket,
    secrets: Callable[[], Iterable[bytes]],
    tls_context: ssl.SSLContext | None,
) -> tuple[socket.socket, bytes] | None:
    """Authenticate a client that has connected; return the socket, and the secret it knows.

    Returns None, and closes the socket, if the client is refused. Raises nothing.

    Parameters
    ----------
    sock : socket.socket
        The socket that `accept` returned.
    secrets : callable
        Returns the secrets of those that a client may connect to.
    tls_context : ssl.SSLContext, optional
        The server's certificates; None without TLS.
    """
    close_in_children(sock)
    try:
        deadline = Deadline(_ACCEPT_TIMEOUT_SECONDS)
        sock.settimeout(_ACCEPT_POLL_SECONDS)
        tune(sock)
        if tls_context is not None:
            sock = tls_context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            close_in_children(sock)
            repeat_until(deadline, sock.do_handshake)
        secret = authenticate_by_one_of(sock, secrets, deadline)
        if secret is not None:
            sock.settimeout(None)
            return sock, secret
    except (OSError, ValueError):
        pass
    sock.close()
    return None
