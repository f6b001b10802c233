"""Reaches the scheduler of a shared object from any process, and makes actors on its workers.

Does not know what for. It needs no Dask client but to make actors: a question takes a
connection of its own, which is rare.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from distributed import Client, get_client, get_worker
from distributed.comm.addressing import parse_host_port
from distributed.core import rpc
from distributed.security import Security

from daskbatch.cluster.connection import for_client, learn_security, open_client, security_of
from daskbatch.cluster.session import open_clients
from daskbatch.errors import LifecycleError, ServiceLost
from daskbatch.shared.data.messages import Replica, Request
from daskbatch.worker.execution.task_context import called_aside, current, in_thread

#: How long an answer of the scheduler may take, beyond what it was told to wait. Seconds.
_ANSWER_SECONDS = 30.0

#: After so long without an answer it is looked whether anybody listens; and how long that may
#: take. Seconds.
_DOUBT, _KNOCK_SECONDS = 0.3, 2.0


def ask(scheduler: str, operation: str, **arguments: Any) -> Any:
    """Ask a scheduler.

    Parameters
    ----------
    scheduler : str
        Its address.
    operation : str
        What is asked.
    **arguments
        What about; sent as a pickle.

    Raises
    ------
    ServiceLost
        It cannot be reached, or does not answer.
    """
    wait = float(arguments.get("seconds", 0.0))
    data = pickle.dumps(arguments, 5)

    async def go(reached: Any) -> Any:
        return await getattr(reached, operation)(data=data)

    return pickle.loads(_asked(scheduler, _security(scheduler), go, wait))


def _asked(
    scheduler: str, security: Security, go: Callable[[Any], Awaitable[Any]], wait: float
) -> Any:
    seconds = _ANSWER_SECONDS + wait

    async def connected() -> Any:
        connection = security.get_connection_args("client")
        async with rpc(scheduler, connection_args=connection, timeout=seconds) as reached:
            going = asyncio.ensure_future(go(reached))
            try:
                pause = _DOUBT + wait
                while not (await asyncio.wait([going], timeout=pause))[0]:
                    _require_listening(scheduler)
                    pause *= 2
                return await going
            finally:
                going.cancel()

    try:
        # This thread may have a loop that runs, as in a notebook.
        return in_thread(lambda: asyncio.run(asyncio.wait_for(connected(), seconds)))
    except OSError as error:
        raise ServiceLost(f"the scheduler at {scheduler} cannot be reached: {error}") from error


def _require_listening(address: str) -> None:
    """Find out that nobody listens any more: Dask would try again for long."""
    if address.startswith(("tcp://", "tls://")):
        host, port = parse_host_port(address.partition("://")[2])
        with contextlib.suppress(TimeoutError):
            socket.create_connection((host, port), _KNOCK_SECONDS).close()


def _security(scheduler: str) -> Security:
    host = current()
    if host is not None and host.security is not None and host.scheduler == scheduler:
        # A child process has it from its worker.
        learn_security(scheduler, for_client(pickle.loads(host.security)))
    return security_of(scheduler)


def relayed(scheduler: str, member: Replica, request: Request) -> tuple[int, Any]:
    """Have a request answered by an actor, by way of the scheduler."""
    security = _security(scheduler)
    # Their buffers would be written by Dask as they are, in a pickle they are part of it.
    data = pickle.dumps(request, 5)

    async def go(reached: Any) -> Any:
        message = {
            "op": "actor_execute",
            "function": "relay",
            "actor": member.key,
            "args": [data],
            "kwargs": {},
        }
        answer = await reached.proxy(worker=member.worker, msg=message)
        if answer["status"] != "OK":
            raise answer["exception"]
        return answer["result"]

    answered: tuple[int, Any] = pickle.loads(_asked(scheduler, security, go, 0.0))
    return answered


def tls_context(scheduler: str) -> ssl.SSLContext | None:
    """Give what it takes to speak TLS with the workers of a cluster; None if it does not."""
    if not scheduler.startswith(("tls://", "wss://")):
        return None
    context = _security(scheduler).get_connection_args("client").get("ssl_context")
    return context if isinstance(context, ssl.SSLContext) else None


def scheduler_here() -> str:
    """Give the scheduler that this process is connected to.

    Raises
    ------
    LifecycleError
        It is connected to none.
    """
    host = current()
    if host is not None:
        return host.scheduler
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
def client_of(scheduler: str) -> Iterator[Client]:
    """Have a Dask client of a scheduler for a while."""
    _security(scheduler)
    client = called_aside(lambda: open_client(scheduler, was_there=True))
    try:
        yield client
    finally:
        threading.Thread(target=client.close, args=[2], name="daskbatch-close").start()
