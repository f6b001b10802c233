"""Remembers which servers a worker cannot reach: the worker and its children know the same.

An attempt to connect takes about a second, and no process has to repeat what another one has
found out: a child receives with each block what its worker knows, and reports what it finds itself.
The times are of the system's monotonic clock, which all processes of a host share. Any thread may
call.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a child starts faster without what that imports
    from daskbatch.worker.handshake import ServerAddress

#: For how long a server counts as unreachable.
_LIFETIME_SECONDS = 60.0

#: The kind of the notice in which a child reports what it has found.
NOTICE_KIND = "unreachable"

#: By host and port: until what time of `monotonic` the server counts as unreachable. Each change
#: is one step.
_until: dict[tuple[str, int], float] = {}
#: What was found in this process since `take_found`.
_found: dict[tuple[str, int], float] = {}


def is_unreachable(server: ServerAddress) -> bool:
    """Return whether a server counts as unreachable; after a minute, one caller gets a no."""
    if not _until:
        return False
    where = server.host, server.port
    until = _until.get(where)
    if until is None:
        return False
    if until > monotonic():
        return True
    _until[where] = monotonic() + _LIFETIME_SECONDS
    return False


def add_unreachable(server: ServerAddress) -> None:
    """Record that a server cannot be reached."""
    where = server.host, server.port
    _until[where] = _found[where] = monotonic() + _LIFETIME_SECONDS


def forget_unreachable(server: ServerAddress) -> None:
    """Have the next caller try to connect."""
    _until.pop((server.host, server.port), None)
    _found.pop((server.host, server.port), None)


def all_unreachable() -> dict[tuple[str, int], float]:
    """Return what this process knows, for another process of the host."""
    return dict(_until)


def adopt(known: Mapping[tuple[str, int], float]) -> None:
    """Record what another process of the host knows."""
    if known:
        _until.update(known)


def take_found() -> dict[tuple[str, int], float]:
    """Return what this process has found since the last call."""
    if not _found:
        return {}
    found = dict(_found)
    _found.clear()
    return found
