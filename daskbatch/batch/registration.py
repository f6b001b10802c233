"""Registers copies of a Batch that were unpickled, in the background.

A copy counts as a client from the moment that it is unpickled, and `loads` does not wait for that:
it may run on an event loop. Any thread may call `register_later`; it raises nothing.
"""

from __future__ import annotations

import logging
import socket
import sys
import weakref
from collections import deque
from typing import Protocol

from daskbatch.forking import after_fork, make_lock
from daskbatch.threads import start_unless_ending
from daskbatch.worker.execution.task_context import current_context

#: How long to try to reach a scheduler. A pickle may be older than the cluster that it names.
_PROBE_TIMEOUT_SECONDS = 5.0

_logger = logging.getLogger("daskbatch")


class Registrable(Protocol):
    """A copy that can be registered: an `Identity`."""

    @property
    def scheduler(self) -> str:
        """The address of the scheduler."""

    def register(self) -> None:
        """Register the copy as a client, unless it has been registered, closed or dropped."""


def is_unpickled_by_user() -> bool:
    """Return whether the program unpickles an object, outside of tasks.

    Dask unpickles arguments of its own tasks, and graphs, on schedulers, workers and event loops:
    these copies are passed on, and are clients only once they are used.
    """
    if current_context() is not None:
        return False
    frame = sys._getframe(1)
    while frame is not None:
        module = frame.f_globals.get("__name__")
        if isinstance(module, str) and module.startswith("distributed.protocol"):
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return True


def register_later(copy: Registrable) -> None:
    """Register a copy in another thread, if it still exists then."""
    global _registering
    with _lock:
        _pending.append(weakref.ref(copy))
        if not _registering:
            _registering = start_unless_ending(_register_all, name="daskbatch-register")


def _register_all() -> None:
    global _registering
    while True:
        with _lock:
            if not _pending:
                _registering = False
                return
            copy = _pending.popleft()()
        if copy is None:
            continue
        try:
            _probe(copy.scheduler)
            copy.register()
        except Exception as error:
            # Its first use raises the same, and says what to do.
            _logger.debug("a copy of a Batch could not be registered yet: %r", error)
        del copy


def _probe(address: str) -> None:
    """Raise OSError if nothing listens there: Dask would try for long, with locks held."""
    protocol, _, where = address.partition("://")
    host, _, port = where.rpartition(":")
    if protocol in ("tcp", "tls") and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), _PROBE_TIMEOUT_SECONDS).close()


_lock = make_lock()
#: The copies to register.
_pending: deque[weakref.ref[Registrable]] = deque()
#: Whether a thread registers them.
_registering = False


@after_fork
def _forget() -> None:
    global _registering
    _pending.clear()
    _registering = False
