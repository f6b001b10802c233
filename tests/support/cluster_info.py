"""Asks a scheduler which workers it has."""

from __future__ import annotations

from typing import Any

from distributed import Client


def workers_of(client: Client) -> dict[str, Any]:
    """Return what the scheduler says of each worker, by address.

    `Client.scheduler_info` may return the answer to another question, without workers: the client
    asks by itself every few seconds.
    """
    identity: dict[str, Any] = client.sync(client.scheduler.identity, n_workers=-1)
    workers: dict[str, Any] = identity["workers"]
    return workers
