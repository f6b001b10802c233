"""Runs a block in a thread or in a child: the function that the Dask task of a block calls.

Does not know Dask: `plugin.run_on_worker` and the in-process backend of the tests call it, from
any thread.
"""

from __future__ import annotations

from typing import Any, Protocol

from daskbatch.serialization import pickling
from daskbatch.worker.execution import surroundings
from daskbatch.worker.execution.outcome import BlockResult
from daskbatch.worker.execution.progress import Progress
from daskbatch.worker.execution.thread_run import ThreadRun
from daskbatch.worker.isolation.isolated_run import IsolatedRun
from daskbatch.worker.open_blocks.isolated_open_run import IsolatedOpenRun
from daskbatch.worker.open_blocks.open_run import OpenRun


class Reporter(Protocol):
    """Is notified of the start and the end of each block; in between it may ask for reports.

    Several threads, one for each block, may call it.
    """

    def begin(self, run: Progress) -> None:
        """Called by the thread of the block before it runs the block."""

    def end(self, run: Progress) -> None:
        """Called by the thread of the block after it has run the block."""


def run_block(payload: bytes, *inputs: Any, reporter: Reporter | None = None) -> BlockResult:
    """Run a block in this thread; exceptions of its members are outcomes.

    Parameters
    ----------
    payload : bytes
        A pickled `BlockSpec`.
    *inputs : BlockResult or bytes
        The results of the blocks that this one depends on, and large buffers.
    reporter : Reporter, optional
        Is notified of the start and the end.
    """
    spec = pickling.loads(payload)
    surroundings.apply(spec.surroundings)
    run: Progress
    if spec.open:
        run = IsolatedOpenRun(spec, inputs) if spec.isolated else OpenRun(spec, inputs)
    else:
        run = IsolatedRun(spec, inputs, payload) if spec.isolated else ThreadRun(spec, inputs)
    if reporter is None:
        return run()
    reporter.begin(run)
    try:
        result = run()
        # An interrupted member has no outcome. The scheduler's part reports which one it was.
        return result if run.interrupted is None else BlockResult(b"")
    finally:
        reporter.end(run)
