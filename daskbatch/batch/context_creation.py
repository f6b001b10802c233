"""Creates a Batch on a cluster: its session, and the context of what is made by it.

The thread that makes the Batch calls it.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from distributed import Client
from distributed.deploy import Cluster

from daskbatch.batch.context import BatchContext
from daskbatch.batch.factory import require_name
from daskbatch.batch.identity import Address, Identity
from daskbatch.batch.log_directory import prepare, record_events
from daskbatch.cluster.session import make_session
from daskbatch.describe.initializer import Initializer
from daskbatch.serialization.exceptions import reworded
from daskbatch.worker.execution.client_names import make_topic


def create_context(
    cluster: str | os.PathLike[str] | Client | Cluster | None,
    num_workers: int | tuple[int, int] | None,
    name: str | None,
    background_batching: bool,
    environment: Mapping[str, str] | None,
    strict: bool = False,
    initializer: tuple[Callable[..., Any], tuple[Any, ...]] | None = None,
    log_dir: str | Path | None = None,
) -> BatchContext:
    """Create a Batch on the cluster, as its first client.

    Parameters
    ----------
    cluster, num_workers, name, background_batching, strict, log_dir
        See `Batch`.
    environment : mapping, optional
        Added to the environment of the workers, if the Batch starts the cluster.
    initializer : (callable, tuple), optional
        The initializer and its arguments.
    """
    name = require_name(name or None)
    batch = uuid.uuid4().hex[:12]
    try:
        directory = os.getcwd()
    except FileNotFoundError as error:
        what = "the current directory of this process has been deleted: change to another one"
        raise reworded(error, what) from None
    logged = prepare(log_dir)
    session = make_session(
        batch, cluster, num_workers, directory, environment, streams=logged is not None
    )
    session.background.name = name or "batch"
    if logged is not None:
        try:
            record_events(session, logged, name or "batch")
        except BaseException:
            session.end()
            raise
    scheduler = session.client.scheduler.address
    address = Address(scheduler, batch, session.grows, session.directory)
    return BatchContext(
        Identity(address, session),
        name,
        directory,
        bool(background_batching),
        strict,
        session.background.lend(),
        make_initializer(batch, initializer),
    )


def make_initializer(
    batch: str, call: tuple[Callable[..., Any], tuple[Any, ...]] | None
) -> Initializer | None:
    """Return the initializer of a Batch; None for None."""
    return None if call is None else Initializer(make_topic(batch), *call)
