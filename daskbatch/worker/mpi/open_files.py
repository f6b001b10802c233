"""Closes, in processes that this one forks, the connections to ranks.

Otherwise the ranks would believe that this process lives for as long as the forked one does. Any
thread may call the functions.
"""

from __future__ import annotations

import contextlib
import os
import socket
import weakref

from daskbatch.forking import after_fork

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
