"""A cluster of one worker with little memory, to reach its limits with small values."""

from __future__ import annotations

from pathlib import Path

from distributed import LocalCluster


def limited_cluster(memory_limit: int, directory: Path) -> LocalCluster:
    """Start a cluster of one worker of one thread.

    Parameters
    ----------
    memory_limit : int
        The memory limit of the worker. Bytes.
    directory : Path
        Where the worker writes values that exceed it.
    """
    return LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=1,
        threads_per_worker=1,
        memory_limit=memory_limit,
        dashboard_address=":0",
        local_directory=str(directory),
    )
