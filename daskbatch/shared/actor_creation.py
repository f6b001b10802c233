"""Makes actors on workers of a cluster, even if all slots of these workers are in use.

Dask makes an actor only when a slot is free, which may take hours. Here the task that makes it has
the highest priority and runs in the worker's thread for actors, and `actor_admission` has the
worker begin it. Any thread may call `make_actors`.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import dask
from distributed import Client

from daskbatch.errors import ServiceLost
from daskbatch.shared.data import routes
from daskbatch.shared.data.messages import ObjectSpec, Replica
from daskbatch.shared.scheduler_rpc import call_scheduler
from daskbatch.worker.handshake import ServerAddress

#: How long an actor may take to be made: its worker may be busy.
_CREATION_TIMEOUT_SECONDS = 60.0

#: Dask serves these tasks before all others.
_PRIORITY = 1_000_000_000


class ActorLost(ServiceLost):
    """A worker has not made an actor."""


def make_actors(
    client: Client, kind: type, specs: Sequence[tuple[ObjectSpec, str]]
) -> list[tuple[Replica, Any]]:
    """Make actors on workers, and wait until they are there.

    Parameters
    ----------
    client : distributed.Client
        A client of the cluster.
    kind : type
        The actors' class. It is called with an `ObjectSpec`, and has a method `describe`.
    specs : sequence of (ObjectSpec, str)
        For each actor: what it is made from, and the address of its worker.

    Returns
    -------
    list of (Replica, future)
        The actors, each with a future that keeps it.

    Raises
    ------
    ActorLost
        A worker has gone, or has not made its actor within 60 s.
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
        answer = call_scheduler(
            spec.scheduler,
            routes.DESCRIBE_ACTOR,
            worker=worker,
            key=future.key,
            seconds=_CREATION_TIMEOUT_SECONDS,
        )
        if not isinstance(answer, ServerAddress):
            raise ActorLost(f"worker {worker} cannot take a part of {spec}: {answer}")
        made.append((Replica(worker, future.key, answer), future))
    return made
