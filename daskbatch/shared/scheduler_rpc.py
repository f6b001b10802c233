"""Calls the scheduler's plugin for shared objects from any process, and finds the scheduler.

Calls need no Dask client: each opens a connection, since they are rare. All functions may be called
by any thread, also by one whose event loop is running, as in a notebook.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import dask
from dask.utils import parse_timedelta
from distributed import Client, get_client, get_worker
from distributed.comm.addressing import parse_host_port
from distributed.core import rpc
from distributed.security import Security

from daskbatch.cluster.connection import (
    as_client_security,
    open_client,
    remember_security,
    security_of,
)
from daskbatch.cluster.session import open_clients
from daskbatch.errors import LifecycleError, ServiceLost
from daskbatch.shared.data.messages import Replica, Request
from daskbatch.threads import start_unless_ending
from daskbatch.worker.execution.task_context import (
    call_in_thread,
    call_releasing_slot,
    current_context,
)

#: The default of `daskbatch.link-timeout`.
_LINK_TIMEOUT = "30s"

#: After how long without an answer the port is probed, and how long the probe may take.
_PROBE_AFTER_SECONDS, _PROBE_TIMEOUT_SECONDS = 0.3, 2.0


def call_scheduler(scheduler: str, route: str, **arguments: Any) -> Any:
    """Call a handler of the scheduler's plugin, and return its answer.

    Parameters
    ----------
    scheduler : str
        The scheduler's address.
    route : str
        One of `shared.data.routes`.
    **arguments
        The handler's arguments. With `seconds`, the answer may take that much longer.

    Raises
    ------
    ServiceLost
        The scheduler cannot be reached, or does not answer.
    """
    wait = float(arguments.get("seconds", 0.0))
    data = pickle.dumps(arguments, 5)

    async def call(connection: Any) -> Any:
        return await getattr(connection, route)(data=data)

    return pickle.loads(_call(scheduler, _security(scheduler), call, wait))


def link_timeout() -> float:
    """Return how long a link may be broken until what needs it fails. Seconds."""
    setting = dask.config.get("daskbatch.link-timeout", default=_LINK_TIMEOUT)
    return float(parse_timedelta(setting))


def _call(
    scheduler: str,
    security: Security,
    call: Callable[[Any], Awaitable[Any]],
    wait: float,
    limit: float | None = None,
) -> Any:
    seconds = (link_timeout() if limit is None else limit) + wait

    async def connect_and_call() -> Any:
        arguments = security.get_connection_args("client")
        async with rpc(scheduler, connection_args=arguments, timeout=seconds) as connection:
            calling = asyncio.ensure_future(call(connection))
            try:
                pause = _PROBE_AFTER_SECONDS + wait
                while not (await asyncio.wait([calling], timeout=pause))[0]:
                    _probe(scheduler)
                    pause *= 2
                return await calling
            finally:
                calling.cancel()

    try:
        # In another thread: this one may have a running event loop, as in a notebook.
        return call_in_thread(lambda: asyncio.run(asyncio.wait_for(connect_and_call(), seconds)))
    except OSError as error:
        reason = str(error) or f"no answer within {seconds:g} s"
        raise ServiceLost(f"the scheduler at {scheduler} cannot be reached: {reason}") from error
    except ValueError as error:
        if not scheduler.startswith("inproc://"):
            raise
        reason = "it is in the memory of another process"
        raise ServiceLost(f"the scheduler at {scheduler} cannot be reached: {reason}") from error


def _probe(address: str) -> None:
    """Raise OSError if nothing listens at an address: Dask would try to connect for long.

    Any other error may be one of the network, which may be mended.
    """
    if address.startswith(("tcp://", "tls://")):
        host, port = parse_host_port(address.partition("://")[2])
        try:
            socket.create_connection((host, port), _PROBE_TIMEOUT_SECONDS).close()
        except ConnectionRefusedError:
            raise
        except OSError:
            pass


def _security(scheduler: str) -> Security:
    context = current_context()
    if context is not None and context.security is not None and context.scheduler == scheduler:
        # In a child process, the context has the certificates of its worker.
        remember_security(scheduler, as_client_security(pickle.loads(context.security)))
    return security_of(scheduler)


def relay_request(
    scheduler: str, replica: Replica, request: Request, limit: float | None = None
) -> tuple[int, Any]:
    """Have an actor answer a request that the scheduler passes on; returns status and result.

    Parameters
    ----------
    scheduler : str
        The scheduler's address.
    replica : Replica
        The actor.
    request : Request
        The request.
    limit : float, optional
        How many seconds it may take; by default `link_timeout`.
    """
    security = _security(scheduler)
    # As one pickle: Dask would write the buffers of values apart, and could not read them again.
    data = pickle.dumps(tuple(request), 5)

    async def call(connection: Any) -> Any:
        message = {
            "op": "actor_execute",
            "function": "relay",
            "actor": replica.key,
            "args": [data],
            "kwargs": {},
        }
        answer = await connection.proxy(worker=replica.worker, msg=message)
        if answer["status"] != "OK":
            raise answer["exception"]
        return answer["result"]

    answer: tuple[int, Any] = pickle.loads(_call(scheduler, security, call, 0.0, limit))
    return answer


def tls_context(scheduler: str) -> ssl.SSLContext | None:
    """Return the client certificates for the workers of a cluster; None if it has no TLS."""
    if not scheduler.startswith(("tls://", "wss://")):
        return None
    context = _security(scheduler).get_connection_args("client").get("ssl_context")
    return context if isinstance(context, ssl.SSLContext) else None


def current_scheduler() -> str:
    """Return the address of the scheduler that this process is connected to.

    Raises
    ------
    LifecycleError
        It is connected to none, or to several.
    """
    context = current_context()
    if context is not None:
        return context.scheduler
    with contextlib.suppress(ValueError):
        return str(get_worker().scheduler.address)
    with contextlib.suppress(ValueError):
        return str(get_client().scheduler.address)
    found = {str(client.scheduler.address) for client in open_clients()}
    if len(found) == 1:
        return found.pop()
    if found:
        raise LifecycleError(
            f"this process is connected to {len(found)} clusters: say which by cluster=, or use "
            "batch.ddict() or batch.queue()"
        )
    raise LifecycleError(
        "this process is connected to no cluster: give cluster=, make a dask.distributed.Client "
        "or a Batch first, or use batch.ddict() or batch.queue()"
    )


@contextlib.contextmanager
def temporary_client(scheduler: str) -> Iterator[Client]:
    """Yield a new Dask client of a scheduler, which is closed in the background afterwards."""
    _security(scheduler)
    client = call_releasing_slot(lambda: open_client(scheduler, existed_before=True))
    try:
        yield client
    finally:
        start_unless_ending(client.close, 2, name="daskbatch-close", daemon=False)
