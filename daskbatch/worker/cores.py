"""Has a Dask worker offer its threads as a resource that calls can take several of.

Does not know calls.
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
        await worker.set_resources(**{CORES: float(worker.state.nthreads)})
