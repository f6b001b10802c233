"""Finds out whether workers of a cluster are on order: requested, and not there yet.

Any thread may call the function, and it never raises.
"""

from __future__ import annotations

from distributed import Client


def are_workers_on_order(client: Client) -> bool:
    """Return whether the cluster object of a client has asked for workers that have not joined.

    A job may wait in a queue for days. False if the client was connected by an address, so that
    nothing is known.
    """
    cluster = getattr(client, "cluster", None)
    try:
        return cluster is not None and len(cluster.plan) > len(cluster.observed)
    except Exception:  # any class may stand for a cluster
        return False
