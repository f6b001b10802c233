"""What a Dask task of a block calls: it runs the block where it is to be run.

Does not know Dask, nor what the block does.
"""

from __future__ import annotations

from typing import Any, Protocol

from daskbatch.serialization import pickling
from daskbatch.worker.execution.outcome import BlockResult
from daskbatch.worker.execution.progress import Progress
from daskbatch.worker.execution.thread_run import ThreadRun
from daskbatch.worker.isolation.isolated_run import IsolatedRun


class Reporter(Protocol):
    """Told when a block begins and ends; it asks for the reports when it likes."""

    def begin(self, run: Progress) -> None: ...

    def end(self, run: Progress) -> None: ...


def run_block(payload: bytes, *inputs: Any, reporter: Reporter | None = None) -> BlockResult:
    """Run a block; never raises.

    Parameters
    ----------
    payload : bytes
        A pickled `BlockSpec`.
    *inputs : BlockResult or bytes
        The results of the blocks that this one depends on, and large buffers.
    reporter : Reporter, optional
        Who is told of the progress.
    """
    spec = pickling.loads(payload)
    run = IsolatedRun(spec, inputs, payload) if spec.isolated else ThreadRun(spec, inputs)
    if reporter is None:
        return run()
    reporter.begin(run)
    try:
        return run()
    finally:
        reporter.end(run)
