"""Has both sides of a connection prove to each other that they know the same secret.

Both sides prove this by HMAC-SHA256 of the other side's nonce (challenge and response: RFC 2104,
ISO/IEC 9798-4, as in `multiprocessing.connection`)::

    server -> client   greeting, nonce S
    client -> server   HMAC(secret, "client" + S), nonce C
    server -> client   HMAC(secret, "server" + C)

Neither side may unpickle anything before the other one's proof. Any number of threads may call the
functions, each for its own connection.
"""

from __future__ import annotations

import hmac
import os
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import TypeVar

from daskbatch.timeouts import Deadline

T = TypeVar("T")

#: The protocol and its version.
_GREETING = b"daskbatch-1"

#: The sizes of a nonce, and of a proof: that of SHA-256.
_NONCE_BYTES = 32
_DIGEST_BYTES = 32


def authenticate_as_client(
    sock: socket.socket,
    secret: bytes,
    deadline: Deadline,
    idle_check: Callable[[], None] | None = None,
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
    return authenticate_by_one_of(sock, lambda: (secret,), deadline) is not None


def authenticate_by_one_of(
    sock: socket.socket, secrets: Callable[[], Iterable[bytes]], deadline: Deadline
) -> bytes | None:
    """Have the client prove that it knows one of some secrets, and prove the same to it.

    Returns that secret; None if the client knows none. Raises OSError for a broken connection.
    """
    nonce = os.urandom(_NONCE_BYTES)
    sock.sendall(_GREETING + nonce)
    received = _receive_exactly(sock, _DIGEST_BYTES + _NONCE_BYTES, deadline)
    for secret in secrets():
        # About a microsecond for each.
        if hmac.compare_digest(received[:_DIGEST_BYTES], _proof(secret, b"client", nonce)):
            sock.sendall(_proof(secret, b"server", received[_DIGEST_BYTES:]))
            return secret
    return None


def _proof(secret: bytes, side: bytes, nonce: bytes) -> bytes:
    """Return what only a side that knows the secret can compute from the other side's nonce."""
    return hmac.digest(secret, side + nonce, "sha256")


def repeat_until(
    deadline: Deadline, step: Callable[[], T], idle_check: Callable[[], None] | None = None
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
    sock: socket.socket, size: int, deadline: Deadline, idle_check: Callable[[], None] | None = None
) -> bytes:
    data = b""
    while len(data) < size:
        received = repeat_until(deadline, partial(sock.recv, size - len(data)), idle_check)
        if not received:
            raise ConnectionError("the other side has closed the connection")
        data += received
    return data
