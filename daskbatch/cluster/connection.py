"""Connects to the cluster that a Batch is to use, or starts one.

A client or cluster that the caller passes in is used and never closed; one that is made here is
closed with its `Connection`.
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
from typing import Any

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
from daskbatch.cluster.growth.worker_range import worker_range
from daskbatch.cluster.log_filters import omit_end_of_reconnecting, omit_lost_connection
from daskbatch.cluster.scheduler_file import is_file_name, read_scheduler_file
from daskbatch.cluster.versions.software import UnfitWorker, difference
from daskbatch.errors import BatchError, ServiceLost, SpecError
from daskbatch.forking import after_fork
from daskbatch.serialization.safe_text import safe_repr
from daskbatch.threads import start_unless_ending

#: The interval at which a client sends its messages to the scheduler. Dask's own 10 ms would be
#: twice as long as a whole call takes.
_SEND_INTERVAL_SECONDS = 0.001

#: How long the scheduler may take to confirm that a client closes.
_CLOSE_TIMEOUT_SECONDS = 2

#: The timeout of the first attempt to reach a scheduler that existed before; it is then doubled.
_FIRST_ATTEMPT_TIMEOUT_SECONDS = 1.0

#: How much longer than the attempt the answer may take.
_ANSWER_TIMEOUT_SECONDS = 5.0

#: The TLS settings that this process has connected to schedulers with, by their addresses. They
#: are never sent anywhere.
_security: dict[str, Security] = {}

#: The Dask clients that this module has made, and not the user.
_owned: weakref.WeakSet[Client] = weakref.WeakSet()


class Connection:
    """A connected Dask client, and the embedded cluster that is closed with it.

    Any thread may close it.

    Parameters
    ----------
    client : distributed.Client
        The connected client.
    owns_client : bool
        Whether the client was made here, so that it is closed with the connection.
    embedded : EmbeddedCluster, optional
        The cluster, if it was started here.
    """

    def __init__(
        self, client: Client, owns_client: bool, embedded: EmbeddedCluster | None = None
    ) -> None:
        self.client = client
        self.embedded = embedded
        self._owns_client = owns_client
        if owns_client:
            _owned.add(client)
            omit_lost_connection(client)
            _close_when_lost(client)
        self._lock = threading.Lock()
        self._closed = False

    def close(self) -> None:
        """Disconnect from the cluster, and end it if it is embedded."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
        if self._owns_client:
            # Its scheduler may be gone already.
            with omit_end_of_reconnecting(self.client), contextlib.suppress(Exception):
                self.client.close(timeout=_CLOSE_TIMEOUT_SECONDS)
        if self.embedded is not None:
            self.embedded.close()

    def close_in_background(self) -> None:
        """Close in another thread, without waiting."""
        start_unless_ending(self.close, name="daskbatch-close", daemon=False)


def connect(
    cluster: str | os.PathLike[str] | Client | Cluster | None,
    num_workers: int | tuple[int, int] | None,
    directory: str,
    environment: Mapping[str, str] | None = None,
) -> Connection:
    """Connect to a cluster, or start one.

    Parameters
    ----------
    cluster : str, path, Client, Cluster or None
        See `daskbatch.Batch`.
    num_workers : int or (int, int), optional
        The number of task slots of an embedded cluster, or the least and the most.
    directory : str
        The working directory of an embedded cluster's workers.
    environment : mapping, optional
        Variables that are added to their environment.

    Raises
    ------
    SpecError
        `cluster` is none of these, or `num_workers` is not a number from 1.
    ServiceLost
        No scheduler answers at this address.
    """
    if num_workers is not None:
        if cluster is not None:
            raise SpecError(
                "num_workers= is for the embedded cluster; it cannot change a given cluster"
            )
        wanted = worker_range(num_workers)
    else:
        wanted = worker_range(CPU_COUNT)
    if cluster is None:
        cluster = os.environ.get("DASKBATCH_CLUSTER") or config.get("cluster")
    if cluster is None:
        embedded = EmbeddedCluster(wanted, directory, environment or {})
        try:
            return Connection(open_client(embedded.address), True, embedded)
        except BaseException:
            embedded.close()
            raise
    if isinstance(cluster, Client):
        if cluster.asynchronous:
            raise SpecError(
                "cluster= must not be an asynchronous Client: give its scheduler's address, or "
                "make the Client without asynchronous=True"
            )
        if cluster.status != "running":
            raise SpecError(f"cluster= is a Client that is {cluster.status}; connect another")
        remember_security(cluster.scheduler.address, cluster.security)
        return Connection(cluster, owns_client=False)
    if isinstance(cluster, Cluster) and cluster.asynchronous:
        raise SpecError(
            "cluster= must not be an asynchronous cluster object: give its scheduler_address, or "
            "make the cluster without asynchronous=True"
        )
    if isinstance(cluster, (str, os.PathLike)) and is_file_name(cluster):
        return Connection(_open_by_file(cluster), owns_client=True)
    if isinstance(cluster, (str, Cluster)):
        return Connection(open_client(cluster), owns_client=True)
    raise SpecError(
        "cluster= must be a scheduler's address, a scheduler file, a distributed.Client or a "
        f"cluster object, not {safe_repr(cluster)}"
    )


def _open_by_file(name: str | os.PathLike[str]) -> Client:
    """Return a new client of the scheduler that has written a file."""
    address = read_scheduler_file(name, _connect_timeout())
    try:
        return open_client(address)
    except ServiceLost as error:
        file = safe_repr(os.fspath(name))
        raise ServiceLost(f"{error} (the scheduler file {file} has this address)") from error


def _connect_timeout() -> float:
    """Return how long it may take to reach a scheduler."""
    return float(parse_timedelta(dask.config.get("distributed.comm.timeouts.connect")))


def register(client: Client, *plugins: object) -> None:
    """Register plugins with the scheduler, nannies or workers, unless they have them already.

    Raises
    ------
    BatchError
        The scheduler has another Python or daskbatch than this process, or none.
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
        raise BatchError(difference(address, [error])) from error


def require_same_software(client: Client) -> None:
    """Check that all workers have the Python and the daskbatch of this process.

    Raises
    ------
    BatchError
        Some have not; it names them.
    """
    found = client.sync(client.scheduler.daskbatch_unfit)
    if found:
        workers = [UnfitWorker(*each) for each in found]
        raise BatchError(difference(client.scheduler.address, workers))


def remember_security(address: str, security: Security) -> None:
    """Remember the TLS settings for connections to a scheduler."""
    _security[address] = security


def security_of(address: str) -> Security:
    """Return the TLS settings for connections to a scheduler, as far as this process has them."""
    found = _security.get(address) or _security_of_worker(address)
    return found or _maybe_call_security_loader(address) or Security()


def open_client(cluster: str | Cluster, existed_before: bool = False) -> Client:
    """Return a new client of a cluster.

    For an address, the client uses the keys and certificates with which this process, or its
    worker, has connected to that address before; otherwise those of Dask's configuration.

    Parameters
    ----------
    cluster : str or Cluster
        The scheduler's address, or a cluster object.
    existed_before : bool
        Whether the scheduler existed before. Then a refused attempt means that the scheduler is
        gone, and is not repeated; otherwise the scheduler may be just starting.

    Raises
    ------
    SpecError
        A worker or a nanny has this address.
    ServiceLost
        No scheduler answers at this address.
    """
    began = monotonic()
    seconds = _connect_timeout()
    security: Security | None = None
    try:
        if isinstance(cluster, str):
            security = security_of(cluster)
            _await_scheduler(cluster, security, seconds, existed_before)
        client = Client(cluster, set_as_default=False, timeout=seconds, security=security)
        # Many tasks are submitted at once anyway; a task that is submitted alone should not wait.
        client.scheduler_comm.interval = _SEND_INTERVAL_SECONDS
    except SpecError:
        raise
    except Exception as error:
        # Any exception: another program may listen there, and Dask may not understand it.
        reason = f"{type(error).__name__}: {error}"
        if isinstance(error, TimeoutError) and not str(error):
            reason = f"there was no answer within {monotonic() - began:.1f} s"
        if isinstance(error, OSError):
            reason += "; is the address right, does the scheduler run, is a firewall in between?"
        if "ssl_context" in reason:
            reason = (
                "it needs TLS: set distributed.comm.tls in Dask's configuration in this process"
            )
        raise ServiceLost(f"no Dask scheduler answers at {safe_repr(cluster)}: {reason}") from error
    remember_security(client.scheduler.address, client.security)
    return client


def _close_when_lost(client: Client) -> None:
    """Have a client close when it has lost its scheduler, and not connect again.

    Its Batches are lost then. As the same client of Dask it would only keep the scheduler from
    releasing what it has wanted before, if the scheduler has not noticed the end of the connection.
    """
    reconnect = client._reconnect

    async def end() -> None:
        client._timeout = 0  # for how long Dask would try
        with omit_end_of_reconnecting(client):
            await reconnect()

    client._reconnect = end


def close_in_child(client: Client) -> None:
    """Close the parent's connection in a forked child.

    As long as any process has it open, the scheduler considers the parent alive.
    """
    if client not in _owned or client.scheduler_comm is None:
        return
    pool = client.rpc
    for comms in (*pool.available.values(), *pool.occupied.values(), {client.scheduler_comm.comm}):
        for comm in comms:
            # Its socket directly: the event loop that it belongs to does not run here.
            stream = getattr(comm, "stream", None)
            if stream is not None and stream.socket is not None:
                with contextlib.suppress(OSError):
                    stream.socket.close()


@after_fork
def _renew_offload_executor() -> None:
    # Dask's executor has a thread, which the child does not have: a call of it would never end.
    distributed.utils._offload_executor = ThreadPoolExecutor(1, "Dask-Offload")


def _security_of_worker(address: str) -> Security | None:
    """Return the TLS settings of this process's worker, if the scheduler is the worker's."""
    try:
        worker = get_worker()
    except ValueError:
        return None
    return as_client_security(worker.security) if worker.scheduler.address == address else None


def as_client_security(security: Security) -> Security:
    """Return TLS settings that use a worker's certificate where there is none for clients."""
    if security.tls_client_cert is None and security.tls_worker_cert is not None:
        security = copy.copy(security)
        security.tls_client_cert = security.tls_worker_cert
        security.tls_client_key = security.tls_worker_key
    return security


def _await_scheduler(
    address: str, security: Security, seconds: float, existed_before: bool
) -> None:
    """Wait until a scheduler identifies itself; a Dask client would wait without a limit."""

    async def ask(seconds: float) -> None:
        connection = security.get_connection_args("client")
        async with rpc(address, connection_args=connection, timeout=seconds) as scheduler:
            try:
                await scheduler.identity(n_workers=0)
            except TypeError:
                # Servers of another kind have no such parameter.
                raise _not_a_scheduler(address, await scheduler.identity()) from None

    async def ask_in_time() -> None:
        # Dask repeats an attempt even if it is refused, because no program listens any longer.
        # So the first attempt is short, and each next one longer, unless one was refused.
        attempt = _FIRST_ATTEMPT_TIMEOUT_SECONDS
        while existed_before and attempt < seconds:
            try:
                return await asyncio.wait_for(ask(attempt), attempt + _ANSWER_TIMEOUT_SECONDS)
            except Exception as error:
                if isinstance(error, SpecError) or _was_refused(error):
                    raise
            attempt *= 2
        return await asyncio.wait_for(ask(seconds), seconds)

    # In another thread, because this one may have a running event loop, as in a notebook.
    with ThreadPoolExecutor(1, "daskbatch-connect") as thread:
        thread.submit(asyncio.run, ask_in_time()).result()


def _not_a_scheduler(address: str, found: Mapping[str, Any]) -> SpecError:
    """Return the error for the address of another server of a cluster, which says what it is."""
    kind = str(found.get("type", "server")).lower()
    scheduler = found.get("scheduler")
    advice = f" Its scheduler has the address {scheduler!r}: give that." if scheduler else ""
    return SpecError(
        f"{safe_repr(address)} is the address of a {kind}, and not of a scheduler.{advice}"
    )


def _was_refused(error: BaseException | None) -> bool:
    """Return whether an error, or one of its causes, is a refused connection."""
    while error is not None and not isinstance(error, ConnectionRefusedError):
        error = error.__cause__ or error.__context__
    return error is not None
