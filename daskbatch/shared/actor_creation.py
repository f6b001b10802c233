"""Makes actors on workers of a cluster, whatever these are busy with."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import dask
from distributed import Client

from daskbatch.errors import ServiceLost
from daskbatch.shared.data.messages import ObjectSpec, Replica, ServerAddress
from daskbatch.shared.scheduler_rpc import ask

#: How long an actor may take to be there: its worker may be busy with other things. Seconds.
_ACTOR_SECONDS = 60.0

#: Served before all else.
_PRIORITY = 1_000_000_000


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
