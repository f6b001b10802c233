"""Lets child processes reach a scheduler that listens in memory alone (`inproc://`).

`LocalCluster(processes=False)` has its scheduler, its workers and its clients in one process. A
child process of a worker, or a rank, cannot use their address. So the scheduler listens at a port
of this machine, too, as soon as the first child needs it. Any thread but that of the scheduler's
event loop may call.
"""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from typing import Any

from daskbatch.forking import make_lock

#: How long the scheduler may take to listen.
_TIMEOUT_SECONDS = 10.0

_INPROC = "inproc://"

#: The schedulers of this process by their addresses, and what children use instead.
_schedulers: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
_addresses: dict[str, str] = {}
_lock = make_lock()


def record_scheduler(scheduler: Any) -> None:
    """Record a scheduler of this process; called by its event loop."""
    if scheduler.address.startswith(_INPROC):
        _schedulers[scheduler.address] = scheduler


def address_for_children(address: str) -> str:
    """Return the address by which child processes reach a scheduler, if that is another one."""
    if not address.startswith(_INPROC):
        return address
    with _lock:
        scheduler = _schedulers.get(address)
        if scheduler is None:
            return address
        if address not in _addresses:
            # The child says what does not work without it.
            with contextlib.suppress(Exception):
                _addresses[address] = asyncio.run_coroutine_threadsafe(
                    _listen(scheduler), scheduler.loop.asyncio_loop
                ).result(_TIMEOUT_SECONDS)
        return _addresses.get(address, address)


async def _listen(scheduler: Any) -> str:
    before = list(scheduler.listeners)
    await scheduler.listen("tcp://127.0.0.1:0", **scheduler.security.get_listen_args("scheduler"))
    (listener,) = [each for each in scheduler.listeners if each not in before]
    return str(listener.contact_address)
