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
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from math import inf
from time import monotonic
from typing import Any, TypeVar

import dask
from distributed import Client, get_client, get_worker, rejoin, secede
from distributed.comm.addressing import parse_host_port
from distributed.core import rpc
from distributed.security import Security
from distributed.threadpoolexecutor import thread_state as pool_state

from daskbatch.cluster.connection import for_client, learn_security, open_client, security_of
from daskbatch.cluster.session import open_clients
from daskbatch.errors import LifecycleError, ServiceLost
from daskbatch.shared.data.messages import ObjectSpec, Replica, Request, ServerAddress
from daskbatch.worker.execution.task_context import called_aside, current, in_thread, waiting

T = TypeVar("T")

#: How long an answer of the scheduler may take, beyond what it was told to wait. Seconds.
_ANSWER_SECONDS = 30.0

#: After so long without an answer it is looked whether anybody listens; and how long that may
#: take. Seconds.
_DOUBT, _KNOCK_SECONDS = 0.3, 2.0

#: How long an actor may take to be there: its worker may be busy with other things. Seconds.
_ACTOR_SECONDS = 60.0

#: How long may be waited at a shard before it says that there is nothing yet. Seconds.
_SLICE = 5.0

#: For so short a wait nobody else is given the slot: it takes as long to have it again. Seconds.
_BRIEF = 0.02

#: In so long a thread of Dask's pool makes way that has nothing to do. Seconds.
_MAKING_WAY = 0.05

#: Served before all else.
_PRIORITY = 1_000_000_000


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
def without_slot(deadline: float | None) -> Iterator[None]:
    """Let another task have the slot while this one waits, be it a task of a Batch or of Dask.

    Parameters
    ----------
    deadline : float, optional
        When it no longer waits for a slot to be free, but goes on without. Of `monotonic`.
    """
    host = current()
    if host is None and getattr(pool_state, "proceed", False) and _is_task():
        secede()
        try:
            yield
        finally:
            _rejoin(deadline)
        return
    with waiting(host, deadline):
        yield


def _rejoin(deadline: float | None) -> None:
    """Do what Dask's `rejoin` does, but not beyond a time.

    Then this thread stays outside the pool, where another one has its place by now, and ends with
    its task.
    """
    if deadline is None:
        rejoin()
        return
    pool, this, has_place = pool_state.executor, threading.current_thread(), threading.Event()
    with pool._rejoin_lock:
        pool._rejoin_list.append((this, has_place))
    with contextlib.suppress(RuntimeError):  # the worker closes
        pool.submit(_nothing)
    if not has_place.wait(max(deadline - monotonic(), _MAKING_WAY)):
        with pool._rejoin_lock:
            if not has_place.is_set():
                pool._rejoin_list.remove((this, has_place))
                return
    pool_state.proceed = True


def _nothing() -> None:
    pass


def awaited(ask: Callable[[float], T], deadline: float | None, miss: object = None) -> T:
    """Ask for what may not be there yet, until it is; another task has the slot meanwhile.

    Not where there is nothing to wait for, or hardly: who looks again and again keeps the slot.

    Parameters
    ----------
    ask : callable
        Asks for it; is given how long may be waited there. Seconds.
    deadline : float, optional
        When it is no longer asked for. Of `monotonic`.
    miss : object
        Is answered if it is not there; and given back if the time is up.
    """
    found = ask(0.0)
    left = inf if deadline is None else deadline - monotonic()
    if found is not miss or left <= 0:
        return found
    with without_slot(deadline) if left > _BRIEF else contextlib.nullcontext():
        while found is miss:
            left = _SLICE if deadline is None else deadline - monotonic()
            if left <= 0:
                break
            found = ask(min(left, _SLICE))
    return found


def _is_task() -> bool:
    try:
        get_worker()
    except ValueError:
        return False
    return True


@contextlib.contextmanager
def client_of(scheduler: str) -> Iterator[Client]:
    """Have a Dask client of a scheduler for a while."""
    _security(scheduler)
    client = called_aside(lambda: open_client(scheduler, was_there=True))
    try:
        yield client
    finally:
        threading.Thread(target=client.close, args=[2], name="daskbatch-close").start()


def make_actors(
    client: Client, kind: type, specs: Sequence[tuple[ObjectSpec, str]]
) -> list[tuple[Replica, Any]]:
    """Make actors on workers, whatever these are busy with.

    Parameters
    ----------
    client : distributed.Client
        Connected there.
    kind : type
        The actors' class: made with a `ObjectSpec`, and has `describe`.
    specs : sequence of (Spec, str)
        What they are to be, and on which workers.

    Returns
    -------
    list of (Member, future)
        Each with what keeps it.

    Raises
    ------
    ServiceLost
        A worker has gone, or has no time for it.
    """
    futures = []
    for spec, worker in specs:
        key = f"daskbatch-{spec.options.kind}-{spec.uid}-{spec.shard}-{uuid.uuid4().hex[:8]}"
        # Not in the threads for tasks: they may all be in use.
        with dask.annotate(executor="actor"):
            future = client.submit(
                kind,
                spec,
                key=key,
                workers=[worker],
                allow_other_workers=False,
                actor=True,
                pure=False,
                priority=_PRIORITY,
            )
        futures.append(future)
    made = []
    for (spec, worker), future in zip(specs, futures, strict=True):
        answer = ask(
            spec.scheduler,
            "daskbatch_shared_describe",
            worker=worker,
            key=future.key,
            seconds=_ACTOR_SECONDS,
        )
        if not isinstance(answer, ServerAddress):
            raise ServiceLost(f"worker {worker} cannot take a part of {spec}: {answer}")
        made.append((Replica(worker, future.key, answer), future))
    return made
