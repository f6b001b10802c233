"""Ends what a worker does before it leaves: begins nothing more, and reports what it had begun.

A worker that leaves in good order does this at the request of the scheduler's part
(`cluster.leaving.departures`), which waits for its answers. A worker that closes without one does
it in `finish`. All runs on the worker's event loop, except for `note_begin`.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from typing import Any

from distributed import Worker

from daskbatch.timeouts import Deadline
from daskbatch.worker.execution.journal import JournaledBlock
from daskbatch.worker.execution.progress import Progress
from daskbatch.worker.late_messages import ignore_late_messages

#: The interval at which the worker looks whether what runs has ended.
_POLL_INTERVAL_SECONDS = 0.02

#: How long a member that was told to stop may take until the worker leaves without it.
_STOP_TIMEOUT_SECONDS = 2.0


class WorkerDeparture:
    """The worker's end of a departure.

    Messages that the worker receives on the stream from its scheduler:

    - ``daskbatch-leave(request, seconds)``: begin nothing more; after `seconds` stop what runs.
      None for no limit.
    - ``daskbatch-stay(request)``: go on after all.

    Messages that it sends:

    - ``daskbatch-leaving(request, executing, traces)``: nothing begins from here on. `executing`
      has the Dask keys that run, and `traces` has, by topic, the pickled `JournaledBlock` of each
      block that runs.
    - ``daskbatch-interrupted(topic, key, trace)``: a block has ended that was interrupted; `trace`
      is a pickled list of its `JournaledBlock`.
    - ``daskbatch-left(request, keys, traces, stuck)``: nothing of daskbatch runs from here on,
      unless `stuck` is set. Then `keys` has, by topic, the Dask keys of the blocks that run though
      they were told to stop, and `traces` what runs of them.

    Parameters
    ----------
    worker : Worker
        The worker.
    running : callable
        Returns the blocks that run.
    report : callable
        Sends the reports of a block.
    """

    def __init__(
        self,
        worker: Worker,
        running: Callable[[], list[Progress]],
        report: Callable[[Progress], None],
    ) -> None:
        self._worker = worker
        self._running = running
        self._report = report
        #: Whether blocks that begin from now on defer all their members.
        self._leaving = False
        self._finished = False
        self._request = -1
        self._task: asyncio.Task[None] | None = None
        #: The Dask keys of the blocks that ran when the worker began to leave, or later.
        self._keys: set[Any] = set()
        worker.stream_handlers["daskbatch-leave"] = self._leave
        worker.stream_handlers["daskbatch-stay"] = self._stay

    def note_begin(self, run: Progress) -> None:
        """Have a block that begins while the worker leaves defer all its members; any thread."""
        if self._leaving:
            run.defer_rest()
            self._note_key(run)

    def _note_key(self, run: Progress) -> None:
        if run.context is not None:
            self._keys.add(run.context.key)

    def report_end(self, run: Progress) -> None:
        """Report the end of a block that was interrupted; on the event loop."""
        if run.interrupted is None or run.context is None:
            return
        self._worker.batched_send(
            {
                "op": "daskbatch-interrupted",
                "topic": run.spec.topic,
                "key": run.context.key,
                "trace": _packed([run])[run.spec.topic],
            }
        )

    def _leave(self, request: int, seconds: float | None) -> None:
        self._begin_leaving(request)
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.ensure_future(self._drain(seconds))

    def _begin_leaving(self, request: int) -> None:
        """Begin nothing more, and report what runs."""
        self._leaving, self._finished, self._request = True, False, request
        runs = self._running()
        for run in runs:
            run.defer_rest()
            run.tick()  # a block in a child learns from it which member runs
            self._note_key(run)
            self._report(run)
        executing = [task.key for task in self._executing()]
        self._worker.batched_send(
            {
                "op": "daskbatch-leaving",
                "request": request,
                "executing": executing,
                "traces": _packed(runs),
            }
        )

    def _executing(self) -> set[Any]:
        """Return the Dask tasks that have begun, and whose end Dask has not yet noticed."""
        state = self._worker.state
        return {*state.executing, *state.long_running}

    def _stay(self, request: int) -> None:
        if request != self._request:
            return
        self._leaving = self._finished = False
        if self._task is not None:
            self._task.cancel()
            self._task = None

    async def _drain(self, seconds: float | None) -> None:
        """Wait until what runs has ended, or the time is up; then stop what still runs."""
        deadline = Deadline(seconds)
        while not deadline.passed:
            runs = self._running()
            # Dask must have noticed, too: else the value would not be moved before the end.
            if not runs and not self._unnoticed():
                break
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
        await self.finish()

    def _unnoticed(self) -> bool:
        """Return whether Dask has not yet noticed the end of a block."""
        return any(task.key in self._keys for task in self._executing())

    async def finish(self) -> None:
        """Interrupt what runs, wait until it has ended, and report what it was; once."""
        if self._finished:
            return
        self._finished = self._leaving = True
        for run in self._running():
            run.defer_rest()
            run.tick()  # a block in a child learns from it which member runs
            self._report(run)
            run.interrupt()
        deadline = Deadline(_STOP_TIMEOUT_SECONDS)
        while self._running() and not deadline.passed:
            await asyncio.sleep(_POLL_INTERVAL_SECONDS)
        stuck = self._running()
        keys: dict[str, list[Any]] = {}
        for run in stuck:
            if run.context is not None:
                keys.setdefault(run.spec.topic, []).append(run.context.key)
        self._worker.batched_send(
            {
                "op": "daskbatch-left",
                "request": self._request,
                "keys": keys,
                "traces": _packed(stuck),
                "stuck": bool(stuck),
            }
        )

    def close(self) -> None:
        """Handle no further messages: the worker has closed."""
        ignore_late_messages(self._worker.stream_handlers, "daskbatch-leave", "daskbatch-stay")
        if self._task is not None:
            self._task.cancel()


def _packed(runs: list[Progress]) -> dict[str, bytes]:
    """Return, by topic, what runs of some blocks, as `JournaledBlock` records."""
    traces: dict[str, list[JournaledBlock]] = {}
    for run in runs:
        running = run.running if run.interrupted is None else run.interrupted
        trace = JournaledBlock(run.spec.topic, run.spec.block, {}, running)
        traces.setdefault(run.spec.topic, []).append(trace)
    return {topic: pickle.dumps(some, 5) for topic, some in traces.items()}
