"""Unix sockets between processes of one host: a short message takes half as long as by TCP.

Each has a random name, and no file: nothing is left of it, however its process ends. Only Linux has
such names. They belong to a network namespace, like ports: a container that has its own network
does not reach the socket. Any thread may call.
"""

from __future__ import annotations

import contextlib
import errno
import secrets
import socket
import sys
from time import sleep

from daskbatch.timeouts import Deadline

#: Whether this system has Unix sockets without a file.
_ARE_THERE = sys.platform == "linux"

#: What ends, perhaps.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}

#: How often to try again while too many clients wait.
_POLL_INTERVAL_SECONDS = 0.01


def listen_locally(backlog: int) -> tuple[str, socket.socket] | None:
    """Return a name and a socket that listens at it; None where there are no such sockets.

    A system or a sandbox may refuse them.

    Parameters
    ----------
    backlog : int
        How many connections may wait to be accepted.

    Raises
    ------
    OSError
        There are too many open files, or there is no memory.
    """
    if not _ARE_THERE:
        return None
    name = f"daskbatch-{secrets.token_hex(16)}"
    with contextlib.ExitStack() as undo:
        try:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            sock.bind(f"\0{name}")
            sock.listen(backlog)
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise
            return None
        undo.pop_all()
        return name, sock


def connect_locally(name: str, seconds: float | None) -> socket.socket | None:
    """Connect to the socket with a name; return None if there is no way to it from here.

    That is known at once: the other process is on another host, or in another network namespace,
    or has ended; or this process cannot make a socket.

    Parameters
    ----------
    name : str
        What `listen_locally` has returned; an empty text for no socket.
    seconds : float, optional
        How long to wait while more clients than its backlog wait for it; None for no limit.
    """
    if not name or not _ARE_THERE:
        return None
    deadline = Deadline(seconds)
    with contextlib.ExitStack() as undo:
        try:
            sock = undo.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
            # Else the system would wait for as long as other clients wait to be accepted.
            sock.setblocking(False)
            while not _try_to_connect(sock, name):
                if deadline.passed:
                    return None
                sleep(_POLL_INTERVAL_SECONDS)
            sock.setblocking(True)
        except OSError:
            return None
        undo.pop_all()
        return sock


def _try_to_connect(sock: socket.socket, name: str) -> bool:
    """Connect; return False if more clients than the backlog of the other side wait for it."""
    try:
        sock.connect(f"\0{name}")
    except BlockingIOError:
        return False
    return True
