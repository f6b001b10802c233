"""Finds the cluster that a Batch is to use, and leaves it as it should be left.

Does not know tasks. What was given is used and never closed; what was made here is.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import os
import threading
import weakref
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import dask
import distributed.utils
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta
from distributed import Client, get_worker
from distributed.client import _maybe_call_security_loader
from distributed.core import rpc
from distributed.deploy import Cluster
from distributed.security import Security

from daskbatch import config
from daskbatch.cluster.embedded import EmbeddedCluster
from daskbatch.errors import BatchError, ServiceLost, SpecError

#: How long a client lets pass between two messages to the scheduler. Dask's own 10 ms would be
#: twice as long as a call takes in all.
_SEND_SECONDS = 0.001


class Connection:
    """A client of a cluster, and what else has to be closed with it.

    Parameters
    ----------
    client : distributed.Client
        Connected.
    owns_client : bool
        Whether it was made here.
    embedded : EmbeddedCluster, optional
        The cluster, if it was made here.
    """

    def __init__(
        self, client: Client, owns_client: bool, embedded: EmbeddedCluster | None = None
    ) -> None:
        self.client = client
        self.embedded = embedded
        self._owns_client = owns_client
        if owns_client:
            _owned.add(client)
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Leave the cluster, and end it if it is embedded."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._owns_client:
            # Its scheduler may be gone already.
            with contextlib.suppress(Exception):
                self.client.close(timeout=2)
        if self.embedded is not None:
            self.embedded.close()

    def close_in_background(self) -> None:
        """Close without waiting for it."""
        threading.Thread(target=self.close, name="daskbatch-close").start()


def connect(
    cluster: str | Client | Cluster | None,
    num_workers: int | None,
    directory: str,
    environment: Mapping[str, str] | None = None,
) -> Connection:
    """Connect to a cluster, or start one.

    Parameters
    ----------
    cluster : str, Client, Cluster or None
        See `Batch`.
    num_workers : int, optional
        Task slots of an embedded cluster.
    directory : str
        Where the workers of an embedded cluster work.
    environment : mapping, optional
        What is added to their environment.

    Raises
    ------
    SpecError
        It is none of these, or `num_workers` is wrong.
    ServiceLost
        Nothing answers there.
    """
    if num_workers is not None:
        if cluster is not None:
            raise SpecError(
                "num_workers= is for the embedded cluster; a given one has the workers that it has"
            )
        if not isinstance(num_workers, int) or isinstance(num_workers, bool) or num_workers < 1:
            raise SpecError(f"num_workers= must be a whole number from 1, not {num_workers!r}")
    if cluster is None:
        cluster = os.environ.get("DASKBATCH_CLUSTER") or config.get("cluster")
    if cluster is None:
        embedded = EmbeddedCluster(num_workers or CPU_COUNT, directory, environment or {})
        try:
            return Connection(open_client(embedded.address), True, embedded)
        except BaseException:
            embedded.close()
            raise
    if isinstance(cluster, Client):
        if cluster.asynchronous:
            raise SpecError("cluster= must not be an asynchronous Client")
        if cluster.status != "running":
            raise SpecError(f"cluster= is a Client that is {cluster.status}; connect another")
        _known[cluster.scheduler.address] = cluster.security
        return Connection(cluster, owns_client=False)
    if isinstance(cluster, (str, Cluster)):
        return Connection(open_client(cluster), owns_client=True)
    raise SpecError(
        "cluster= must be a scheduler's address, a distributed.Client or a cluster object, "
        f"not {cluster!r}"
    )


def register(client: Client, *plugins: object) -> None:
    """Have the scheduler, nannies and workers do their part, as plugins that they may have already.

    Raises
    ------
    BatchError
        The scheduler or a worker cannot import daskbatch.
    ServiceLost
        The client is closed, or the cluster is gone.
    """
    address = client.scheduler.address if client.scheduler is not None else "its address"
    try:
        if client.status != "running":
            raise OSError(f"the client is {client.status}")
        for plugin in plugins:
            client.register_plugin(plugin)
    except OSError as error:
        raise ServiceLost(f"the cluster at {address} is gone: {error}") from error
    except ImportError as error:
        raise BatchError(
            f"the cluster at {address} cannot import daskbatch ({error}); "
            "install the same version there, for its scheduler and its workers"
        ) from error


#: How long is tried, at first, to reach a scheduler that has been there. Seconds.
_ATTEMPT = 1.0

#: How much longer an answer may take. Seconds.
_SLACK = 5.0

#: What this process has connected to schedulers with, by their addresses. It is never sent.
_known: dict[str, Security] = {}


def learn_security(address: str, security: Security) -> None:
    """Keep what it takes to connect to a scheduler."""
    _known[address] = security


def security_of(address: str) -> Security:
    """Give what it takes to connect to a scheduler, as far as this process knows."""
    known = _known.get(address) or _of_worker(address)
    return known or _maybe_call_security_loader(address) or Security()


def open_client(cluster: str | Cluster, was_there: bool = False) -> Client:
    """Make a client of a cluster.

    An address says nothing of keys and certificates: they are those that this process has
    connected there with before, or its worker has; else they are for Dask's configuration to say.

    Parameters
    ----------
    cluster : str or Cluster
        Its address, or an object for it.
    was_there : bool
        Whether there surely was one before: then it is not about to start.

    Raises
    ------
    ServiceLost
        Nothing answers there.
    """
    began = monotonic()
    seconds = float(parse_timedelta(dask.config.get("distributed.comm.timeouts.connect")))
    security: Security | None = None
    try:
        if isinstance(cluster, str):
            security = security_of(cluster)
            _await_scheduler(cluster, security, seconds, was_there)
        client = Client(cluster, set_as_default=False, timeout=seconds, security=security)
        # We hand over much at once anyway; what is handed over alone should not have to wait.
        client.scheduler_comm.interval = _SEND_SECONDS
    except Exception as error:
        # Whatever somebody else who listens there may have said, and Dask made of it.
        said = f"{type(error).__name__}: {error}"
        if isinstance(error, TimeoutError) and not str(error):
            said = f"there was no answer within {monotonic() - began:.1f} s"
        if isinstance(error, OSError):
            said += "; is the address right, does the scheduler run, is a firewall in between?"
        if "ssl_context" in said:
            said = "it wants TLS: set distributed.comm.tls in Dask's configuration in this process"
        raise ServiceLost(f"no Dask scheduler answers at {cluster!r}: {said}") from error
    _known[client.scheduler.address] = client.security
    return client


#: The clients that were made here.
_owned: weakref.WeakSet[Client] = weakref.WeakSet()


def leave_to_parent(client: Client) -> None:
    """Let go of a connection in a process that was forked.

    As long as anybody has it open, the scheduler takes the parent for alive.
    """
    if client not in _owned or client.scheduler_comm is None:
        return
    pool = client.rpc
    for comms in (*pool.available.values(), *pool.occupied.values(), {client.scheduler_comm.comm}):
        for comm in comms:
            # What it is on; the loop that it belongs to does not run here.
            stream = getattr(comm, "stream", None)
            if stream is not None and stream.socket is not None:
                with contextlib.suppress(OSError):
                    stream.socket.close()


def _renew_offload() -> None:
    # Its thread is the parent's: here it would be waited for in vain.
    distributed.utils._offload_executor = ThreadPoolExecutor(1, "Dask-Offload")


os.register_at_fork(after_in_child=_renew_offload)


def _of_worker(address: str) -> Security | None:
    """Give what this process's own worker has, if it is one of that scheduler's."""
    try:
        worker = get_worker()
    except ValueError:
        return None
    return for_client(worker.security) if worker.scheduler.address == address else None


def for_client(security: Security) -> Security:
    """Have a worker's certificate serve its tasks, where there is none for clients."""
    if security.tls_client_cert is None and security.tls_worker_cert is not None:
        security = copy.copy(security)
        security.tls_client_cert = security.tls_worker_cert
        security.tls_client_key = security.tls_worker_key
    return security


def _await_scheduler(address: str, security: Security, seconds: float, was_there: bool) -> None:
    """Wait until a scheduler says who it is: a Dask client would wait for ever for that."""

    async def ask(seconds: float) -> None:
        connection = security.get_connection_args("client")
        async with rpc(address, connection_args=connection, timeout=seconds) as scheduler:
            await scheduler.identity(n_workers=0)

    async def ask_in_time() -> None:
        # Dask tries again and again, also where nobody listens any more: so it may for a short
        # time only at first, then for longer and longer, if nobody says so.
        attempt = _ATTEMPT
        while was_there and attempt < seconds:
            try:
                return await asyncio.wait_for(ask(attempt), attempt + _SLACK)
            except Exception as error:
                if _was_refused(error):
                    raise
            attempt *= 2
        return await asyncio.wait_for(ask(seconds), seconds)

    # In a thread of its own, since this one may have a loop that runs, as in a notebook.
    with ThreadPoolExecutor(1, "daskbatch-connect") as thread:
        thread.submit(asyncio.run, ask_in_time()).result()


def _was_refused(error: BaseException | None) -> bool:
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None
