"""Sets the options of the connections that daskbatch makes itself.

Any thread may call.
"""

from __future__ import annotations

import socket

#: A machine that has died does not close its connections. So the system probes a connection that
#: has been silent for this time.
_KEEPALIVE_SECONDS = 15


def tune(sock: socket.socket) -> None:
    """Have a TCP socket send at once, and notice that the other side's machine has died.

    A Unix socket does so anyway.
    """
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL"):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), _KEEPALIVE_SECONDS)
