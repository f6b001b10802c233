"""How both sides prove that they know the secret."""

from __future__ import annotations

import contextlib
import hmac
import os
import socket
import ssl
import weakref
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import TypeVar

from daskbatch.shared.data.messages import ServerAddress
from daskbatch.shared.rpc.socket_transport import Idle
from daskbatch.worker.execution.task_context import PACE

T = TypeVar("T")

#: Says which protocol is spoken, and is followed by a number that is used once.
_GREETING = b"daskbatch-1"
_NONCE = 32
_DIGEST = 32

#: How long it may take to come in. Seconds.
GIVE_UP_SECONDS = 10.0

#: Dead machines do not close connections: after so long one that says nothing is asked. Seconds.
_KEEPALIVE = 15


def tune(sock: socket.socket) -> None:
    """Have a socket send at once, and find out that the other side's machine is gone."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), _KEEPALIVE)


def authenticate_server(sock: socket.socket, secret: bytes, end: float) -> bool:
    """Find out whether the other side knows the secret, and prove that this one does."""
    nonce = os.urandom(_NONCE)
    sock.sendall(_GREETING + nonce)
    said = _exactly(sock, _DIGEST + _NONCE, end)
    if not hmac.compare_digest(said[:_DIGEST], _proof(secret, b"client", nonce)):
        return False
    sock.sendall(_proof(secret, b"server", said[_DIGEST:]))
    return True


def enter(
    address: ServerAddress,
    context: ssl.SSLContext | None,
    seconds: float,
    idle: Idle | None = None,
) -> socket.socket:
    """Go through a door.

    Parameters
    ----------
    address : ServerAddress
        Where it is.
    context : ssl.SSLContext, optional
        What it takes, if it is one with TLS.
    seconds : float
        How long is tried.
    idle : callable, optional
        Is called now and then meanwhile, and may raise.

    Raises
    ------
    OSError
        Nobody opens, or it is another door.
    """
    end = monotonic() + seconds
    sock = socket.create_connection((address.host, address.port), timeout=seconds)
    try:
        sock.settimeout(PACE)
        tune(sock)
        sockets.add(sock)
        if address.tls:
            if context is None:
                raise ConnectionError("the door wants TLS, and there is none in this process")
            sock = context.wrap_socket(
                sock, server_hostname=address.host, do_handshake_on_connect=False
            )
            sockets.add(sock)
            in_time(sock.do_handshake, end, idle)
        said = _exactly(sock, len(_GREETING) + _NONCE, end, idle)
        if not said.startswith(_GREETING):
            raise ConnectionError("something else listens there")
        nonce = os.urandom(_NONCE)
        sock.sendall(_proof(address.secret, b"client", said[len(_GREETING) :]) + nonce)
        proof = _exactly(sock, _DIGEST, end, idle)
        if not hmac.compare_digest(proof, _proof(address.secret, b"server", nonce)):
            raise ConnectionError("it does not know the secret")
    except BaseException:
        sock.close()
        raise
    return sock


def _proof(secret: bytes, side: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, side + nonce, "sha256")


def in_time(step: Callable[[], T], end: float, idle: Idle | None = None) -> T:
    """Do what a socket may take longer for than it waits, but not beyond a time."""
    while monotonic() < end:
        try:
            return step()
        except TimeoutError:
            if idle is not None:
                idle()
    raise TimeoutError("the other side says nothing")


def _exactly(sock: socket.socket, size: int, end: float, idle: Idle | None = None) -> bytes:
    data = b""
    while len(data) < size:
        more = in_time(partial(sock.recv, size - len(data)), end, idle)
        if not more:
            raise ConnectionError("the other side has closed the connection")
        data += more
    return data


#: What a process that was forked from this one must let go of, or the other side would take
#: this one for alive.
sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _forget() -> None:
    for sock in list(sockets):
        with contextlib.suppress(OSError):
            os.close(sock.detach())
    sockets.clear()


os.register_at_fork(after_in_child=_forget)
