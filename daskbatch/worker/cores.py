"""Offers the threads of a Dask worker as a resource: a call can take several of them.

The client registers the plugin with all workers. The event loop of a worker calls `setup`.
"""

from __future__ import annotations

from distributed import Worker, WorkerPlugin

#: The resource's name.
CORES = "daskbatch-cores"


class CoresPlugin(WorkerPlugin):  # type: ignore[misc]
    """Adds the resource `CORES` to a worker."""

    name = "daskbatch-cores"
    idempotent = True

    async def setup(self, worker: Worker) -> None:
        """Set the resource to the number of the worker's threads; called by Dask."""
        await worker.set_resources(**{CORES: float(worker.state.nthreads)})
