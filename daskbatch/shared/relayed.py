"""The servers that this process does not reach, so that the scheduler relays requests to them.

A worker has one port for all of its servers, so that one attempt is enough for all of them. Any
thread may call.
"""

from __future__ import annotations

from time import monotonic

from daskbatch.worker.handshake import ServerAddress

#: After this time, one request tries to connect again, and the others are still relayed.
_RELAY_SECONDS = 60.0

#: By host and port: until what time of `monotonic` requests are relayed. Each change is one step.
_until: dict[tuple[str, int], float] = {}


def is_relayed(server: ServerAddress) -> bool:
    """Return whether the scheduler is to relay a request to a server."""
    if not _until:
        return False
    where = server.host, server.port
    until = _until.get(where)
    if until is None:
        return False
    if until > monotonic():
        return True
    _until[where] = monotonic() + _RELAY_SECONDS
    return False


def start_relaying(server: ServerAddress) -> None:
    """Record that a server cannot be reached."""
    _until[server.host, server.port] = monotonic() + _RELAY_SECONDS


def stop_relaying(server: ServerAddress) -> None:
    """Have the next request try to connect."""
    _until.pop((server.host, server.port), None)
