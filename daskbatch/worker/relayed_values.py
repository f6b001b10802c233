"""Fetches values by way of the scheduler where the network does not lead from worker to worker.

Dask has each worker fetch the values that its tasks take from the workers that have them. If the
link between two workers is cut, and both reach the scheduler, Dask repeats the attempt for ever,
each time until `distributed.comm.timeouts.connect` has passed, and the task never begins. Here the
worker finds out after about two seconds that it does not reach the other one, and has the scheduler
fetch the value. The next attempt begins with the scheduler for a minute (`worker.unreachable`).

All runs on the worker's event loop, except for the probes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Collection, Coroutine
from time import time
from typing import Any, TypeVar

from distributed import Worker
from distributed.comm.addressing import parse_host_port
from distributed.worker_state_machine import GatherDepNetworkFailureEvent, GatherDepSuccessEvent

from daskbatch.worker.handshake import ServerAddress
from daskbatch.worker.unreachable import add_unreachable, is_unreachable

#: After how long without a value the other worker is probed, and after how long at most again; and
#: how long a probe may take: the first packet that was lost is sent again after a second.
_PROBE_AFTER_SECONDS, _MAX_PROBE_INTERVAL_SECONDS, _PROBE_TIMEOUT_SECONDS = 0.7, 5.0, 1.3

_logger = logging.getLogger("daskbatch")

_Found = TypeVar("_Found")


def relay_values(worker: Worker) -> None:
    """Have a worker fetch values by way of the scheduler from workers that it does not reach.

    Parameters
    ----------
    worker : Worker
        The worker, whose `gather_dep` is replaced.
    """
    gather = worker.gather_dep

    async def gather_dep(
        address: str, to_gather: Collection[Any], total_nbytes: int, *, stimulus_id: str
    ) -> Any:
        async def relay() -> Any:
            values = await fetch_by_scheduler(worker, to_gather)
            return GatherDepSuccessEvent(
                worker=address,
                total_nbytes=total_nbytes,
                data=values,
                stimulus_id=f"daskbatch-relayed-{time()}",
            )

        return await direct_or_relayed(
            [address],
            lambda: gather(address, to_gather, total_nbytes, stimulus_id=stimulus_id),
            relay,
            lambda event: not isinstance(event, GatherDepNetworkFailureEvent),
        )

    worker.gather_dep = gather_dep


async def fetch_by_scheduler(worker: Worker, keys: Collection[Any]) -> dict[Any, Any]:
    """Have the scheduler fetch the values of some keys.

    Raises
    ------
    OSError
        The scheduler does not get all of them.
    """
    answer = await worker.scheduler.gather(keys=list(keys))
    if answer["status"] != "OK":
        raise OSError("the scheduler cannot fetch it either")
    values: dict[Any, Any] = answer["data"]
    return values


async def direct_or_relayed(
    addresses: Collection[str],
    fetch: Callable[[], Coroutine[Any, Any, _Found]],
    relay: Callable[[], Coroutine[Any, Any, _Found]],
    succeeded: Callable[[_Found], bool],
) -> _Found:
    """Return what a worker sends, or what the scheduler sends if the worker cannot be reached.

    Parameters
    ----------
    addresses : collection of str
        The workers that have it.
    fetch, relay : callable
        Fetch it from these workers, and by way of the scheduler. `relay` may raise any error; then
        the result of `fetch` counts.
    succeeded : callable
        Says whether `fetch` has succeeded.
    """
    servers = [found for each in addresses if (found := _server_of(each)) is not None]
    if not servers:
        return await fetch()
    if all(map(is_unreachable, servers)):
        with contextlib.suppress(Exception):
            return await relay()
    direct = asyncio.ensure_future(fetch())
    relaying: asyncio.Future[_Found] | None = None
    try:
        pause = _PROBE_AFTER_SECONDS
        while not (await asyncio.wait([direct], timeout=pause))[0]:
            pause = min(2 * pause, _MAX_PROBE_INTERVAL_SECONDS)
            probes = (asyncio.to_thread(_is_reachable, each) for each in servers)
            if any(await asyncio.gather(*probes)):
                continue  # the worker is busy, or the value is large
            _logger.info("values of %s come by way of the scheduler", ", ".join(addresses))
            for server in servers:
                add_unreachable(server)
            relaying = asyncio.ensure_future(relay())
            await asyncio.wait([direct, relaying], return_when=asyncio.FIRST_COMPLETED)
            if not direct.done() or direct.exception() or not succeeded(direct.result()):
                with contextlib.suppress(Exception):
                    return await relaying
            break
        return await direct
    finally:
        for each in (direct, relaying):
            if each is not None:
                each.cancel()


def _server_of(address: str) -> ServerAddress | None:
    """Return where a worker listens; None if that is not in a network."""
    if not address.startswith(("tcp://", "tls://")):
        return None
    host, port = parse_host_port(address.partition("://")[2])
    return ServerAddress(host, port, b"", False)


def _is_reachable(server: ServerAddress) -> bool:
    """Return whether the network leads to a worker, also to one that is busy, frozen or dead.

    Called in a thread: the event loop of a busy worker may be late, so that it would find the time
    to be over though the system has connected.
    """
    try:
        socket.create_connection((server.host, server.port), _PROBE_TIMEOUT_SECONDS).close()
    except (ConnectionRefusedError, ConnectionResetError):
        return True
    except OSError:  # `TimeoutError` as well
        return False
    return True
