"""Connects and authenticates both sides of a connection, before anything else is sent.

Both sides prove that they know the server's secret, by HMAC-SHA256 of the other side's nonce
(challenge and response: RFC 2104, ISO/IEC 9798-4, as in `multiprocessing.connection`)::

    server -> client   greeting, nonce S
    client -> server   HMAC(secret, "client" + S), nonce C
    server -> client   HMAC(secret, "server" + C)

Neither side unpickles anything before the other one's proof. With TLS, all of this is encrypted,
and both sides present certificates of the cluster.

`multiprocessing.connection` is not used: it has no TLS; its HMAC is of MD5 up to Python 3.11; its
listener authenticates in the thread that accepts, so that one silent client blocks all others; and
it joins the pieces that it receives, which makes one more copy of each large value.
"""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import ssl
import weakref
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from daskbatch.forking import after_fork
from daskbatch.shared.data.messages import ServerAddress
from daskbatch.shared.rpc.socket_transport import IdleCheck
from daskbatch.timeouts import Deadline
from daskbatch.worker.execution.task_context import STOP_POLL_SECONDS

T = TypeVar("T")

#: The protocol and its version.
_GREETING = b"daskbatch-1"

#: The sizes of a nonce, and of a proof: that of SHA-256.
_NONCE_BYTES = 32
_DIGEST_BYTES = 32

#: How long a client may take to prove to the server that it knows the secret.
_ACCEPT_TIMEOUT_SECONDS = 10.0

#: How often the server checks whether that time is over.
_ACCEPT_POLL_SECONDS = 1.0

#: A machine that has died does not close its connections. So the system probes a connection that
#: has been silent for this time.
_KEEPALIVE_SECONDS = 15

#: The sockets that a forked child must close. Otherwise the other side would believe that this
#: process lives for as long as the child does.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_in_children(sock: socket.socket) -> None:
    """Have the processes that this one forks close their copy of a socket."""
    _sockets.add(sock)


@after_fork
def _close_inherited() -> None:
    for sock in list(_sockets):
        with contextlib.suppress(OSError):
            os.close(sock.detach())
    _sockets.clear()


def connect_to_server(
    address: ServerAddress,
    tls_context: ssl.SSLContext | None,
    seconds: float,
    idle_check: IdleCheck | None = None,
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
    OSError
        No server answers there in time, or it does not know the secret.
    """
    deadline = Deadline(seconds)
    sock = socket.create_connection((address.host, address.port), timeout=seconds)
    try:
        sock.settimeout(STOP_POLL_SECONDS)
        _tune(sock)
        close_in_children(sock)
        if address.tls:
            if tls_context is None:
                raise ConnectionError("the server wants TLS, and this process has no certificates")
            sock = tls_context.wrap_socket(
                sock, server_hostname=address.host, do_handshake_on_connect=False
            )
            close_in_children(sock)
            _repeat_until(deadline, sock.do_handshake, idle_check)
        authenticate_as_client(sock, address.secret, deadline, idle_check)
    except BaseException:
        sock.close()
        raise
    return sock


def accept_client(
    sock: socket.socket, secret: bytes, tls_context: ssl.SSLContext | None
) -> socket.socket | None:
    """Authenticate a client that has connected; return the socket for its requests.

    Returns None, and closes the socket, if the client is refused. Raises nothing.

    Parameters
    ----------
    sock : socket.socket
        The socket that `accept` returned.
    secret : bytes
        The server's secret.
    tls_context : ssl.SSLContext, optional
        The server's certificates; None without TLS.
    """
    close_in_children(sock)
    try:
        deadline = Deadline(_ACCEPT_TIMEOUT_SECONDS)
        sock.settimeout(_ACCEPT_POLL_SECONDS)
        _tune(sock)
        if tls_context is not None:
            sock = tls_context.wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            close_in_children(sock)
            _repeat_until(deadline, sock.do_handshake)
        if authenticate_as_server(sock, secret, deadline):
            sock.settimeout(None)
            return sock
    except (OSError, ValueError):
        pass
    sock.close()
    return None


def authenticate_as_client(
    sock: socket.socket, secret: bytes, deadline: Deadline, idle_check: IdleCheck | None = None
) -> None:
    """Prove to the server that this side knows the secret, and have it prove the same.

    Raises
    ------
    OSError
        Something else listens there, it does not know the secret, or the deadline has passed.
    """
    greeting = _receive_exactly(sock, len(_GREETING) + _NONCE_BYTES, deadline, idle_check)
    if not greeting.startswith(_GREETING):
        raise ConnectionError("something else listens there")
    nonce = os.urandom(_NONCE_BYTES)
    sock.sendall(_proof(secret, b"client", greeting[len(_GREETING) :]) + nonce)
    proof = _receive_exactly(sock, _DIGEST_BYTES, deadline, idle_check)
    if not hmac.compare_digest(proof, _proof(secret, b"server", nonce)):
        raise ConnectionError("the server does not know the secret")


def authenticate_as_server(sock: socket.socket, secret: bytes, deadline: Deadline) -> bool:
    """Have the client prove that it knows the secret, and prove the same to it.

    Returns False if the client does not know the secret. Raises OSError for a broken connection.
    """
    nonce = os.urandom(_NONCE_BYTES)
    sock.sendall(_GREETING + nonce)
    received = _receive_exactly(sock, _DIGEST_BYTES + _NONCE_BYTES, deadline)
    if not hmac.compare_digest(received[:_DIGEST_BYTES], _proof(secret, b"client", nonce)):
        return False
    sock.sendall(_proof(secret, b"server", received[_DIGEST_BYTES:]))
    return True


def _proof(secret: bytes, side: bytes, nonce: bytes) -> bytes:
    """Return what only a side that knows the secret can compute from the other side's nonce."""
    return hmac.digest(secret, side + nonce, "sha256")


def _tune(sock: socket.socket) -> None:
    """Have a socket send at once, and notice that the other side's machine has died."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), _KEEPALIVE_SECONDS)


def _repeat_until(
    deadline: Deadline, step: Callable[[], T], idle_check: IdleCheck | None = None
) -> T:
    """Repeat a step that the socket's own timeout cuts short, until the deadline has passed."""
    while not deadline.passed:
        try:
            return step()
        except TimeoutError:
            if idle_check is not None:
                idle_check()
    raise TimeoutError("the other side has not answered in time")


def _receive_exactly(
    sock: socket.socket, size: int, deadline: Deadline, idle_check: IdleCheck | None = None
) -> bytes:
    data = b""
    while len(data) < size:
        received = _repeat_until(deadline, partial(sock.recv, size - len(data)), idle_check)
        if not received:
            raise ConnectionError("the other side has closed the connection")
        data += received
    return data
