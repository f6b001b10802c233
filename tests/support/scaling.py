"""Gives a cluster of Dask another number of workers, whatever the cluster does at this moment."""

from __future__ import annotations

from distributed import SpecCluster


def scale(cluster: SpecCluster, workers: int) -> None:
    """Have the cluster get this number of workers; does not wait for them.

    Dask's own `SpecCluster.scale` takes names out of a dictionary that the event loop of the
    cluster goes through at the same time in its own thread. If both happen at once, a worker is
    created and not started, and the cluster cannot be closed any longer. So it is called there.
    """
    cluster.sync(_scale, cluster, workers)


async def _scale(cluster: SpecCluster, workers: int) -> None:
    cluster.scale(workers)
