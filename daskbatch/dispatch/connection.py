"""Finds the cluster that a Batch is to use, and leaves it as it should be left.

Does not know tasks. What was given is used and never closed; what was made here is.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import dask
from dask.system import CPU_COUNT
from dask.utils import parse_timedelta
from distributed import Client
from distributed.core import rpc
from distributed.deploy import Cluster
from distributed.security import Security

from daskbatch import config
from daskbatch.dispatch.embedded import EmbeddedCluster
from daskbatch.errors import ServiceLost, SpecError

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
            return Connection(_client(embedded.address), True, embedded)
        except BaseException:
            embedded.close()
            raise
    if isinstance(cluster, Client):
        if cluster.asynchronous:
            raise SpecError("cluster= must not be an asynchronous Client")
        if cluster.status != "running":
            raise SpecError(f"cluster= is a Client that is {cluster.status}; connect another")
        return Connection(cluster, owns_client=False)
    if isinstance(cluster, (str, Cluster)):
        return Connection(_client(cluster), owns_client=True)
    raise SpecError(
        "cluster= must be a scheduler's address, a distributed.Client or a cluster object, "
        f"not {cluster!r}"
    )


def _client(cluster: str | Cluster) -> Client:
    seconds = float(parse_timedelta(dask.config.get("distributed.comm.timeouts.connect")))
    try:
        if isinstance(cluster, str):
            _await_scheduler(cluster, seconds)
        client = Client(cluster, set_as_default=False, timeout=seconds)
        # We hand over much at once anyway; what is handed over alone should not have to wait.
        client.scheduler_comm.interval = _SEND_SECONDS
        return client
    except Exception as error:
        # Whatever somebody else who listens there may have said, and Dask made of it.
        said = f"{type(error).__name__}: {error}"
        raise ServiceLost(f"no Dask scheduler answers at {cluster!r}: {said}") from error


def _await_scheduler(address: str, seconds: float) -> None:
    """Wait until a scheduler says who it is: a Dask client would wait for ever for that."""

    async def ask() -> None:
        connection = Security().get_connection_args("client")
        async with rpc(address, connection_args=connection, timeout=seconds) as scheduler:
            await scheduler.identity(n_workers=0)

    async def ask_in_time() -> None:
        await asyncio.wait_for(ask(), seconds)

    # In a thread of its own, since this one may have a loop that runs, as in a notebook.
    with ThreadPoolExecutor(1, "daskbatch-connect") as thread:
        thread.submit(asyncio.run, ask_in_time()).result()
