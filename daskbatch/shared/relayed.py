"""The servers that this process does not reach, so that the scheduler relays requests to them.

A worker has one port for all of its servers, so that one attempt is enough for all of them, and one
in all processes of a worker (`worker.unreachable`). Any thread may call.
"""

from __future__ import annotations

from daskbatch.worker.handshake import ServerAddress
from daskbatch.worker.unreachable import add_unreachable, forget_unreachable, is_unreachable


def is_relayed(server: ServerAddress) -> bool:
    """Return whether the scheduler is to relay a request to a server."""
    return is_unreachable(server)


def start_relaying(server: ServerAddress) -> None:
    """Record that a server cannot be reached."""
    add_unreachable(server)


def stop_relaying(server: ServerAddress) -> None:
    """Have the next request try to connect."""
    forget_unreachable(server)
