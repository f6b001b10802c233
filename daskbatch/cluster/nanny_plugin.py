"""The nannies' plugin of daskbatch: reports what a dead worker had done, and how it ended.

Before it answers, it makes sure that the worker, and every process that the worker had started,
is gone. Only then may tasks that ran there run elsewhere. The nanny's event loop calls it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
from pathlib import Path

import psutil
from distributed import Nanny, NannyPlugin

from daskbatch.cluster.messages import WorkerFate
from daskbatch.worker.execution import journal
from daskbatch.worker.processes.process_tree import OWNER, sweep_all

PLUGIN_NAME = "daskbatch-nanny"

#: How long a worker that was killed may take to end.
_KILL_TIMEOUT_SECONDS = 5.0


class BatchNannyPlugin(NannyPlugin):  # type: ignore[misc]
    """The nanny's part of daskbatch.

    Handler that the scheduler's plugin calls:

    - ``daskbatch_fate(pid, owner, directory)`` ends what is left of a worker and returns a
      `WorkerFate`.
    """

    name = PLUGIN_NAME
    idempotent = True
    restart = False

    def setup(self, nanny: Nanny) -> None:
        """Register the handler, and record how workers end."""
        #: The exit codes of workers, in order.
        self._exitcodes: list[int] = []
        nanny.handlers["daskbatch_fate"] = self._fate
        on_exit = nanny._on_worker_exit_sync

        def record_exit(exitcode: int) -> None:
            self._exitcodes.append(exitcode)
            on_exit(exitcode)

        # The nanny forgets how a worker ended as soon as it starts the next one.
        nanny._on_worker_exit_sync = record_exit
        if nanny.process is not None:
            nanny.process.on_exit = record_exit

    async def _fate(self, pid: int, owner: str, directory: str) -> WorkerFate:
        """End a worker and its processes, and return what it has left."""
        await asyncio.to_thread(_end, pid, owner)
        traces = await asyncio.to_thread(journal.read_journals, Path(directory))
        await asyncio.to_thread(journal.remove, Path(directory))
        by_topic: dict[str, list[journal.JournaledBlock]] = {}
        for trace in traces:
            by_topic.setdefault(trace.topic, []).append(trace)
        return WorkerFate(
            self._exitcodes[-1] if self._exitcodes else None,
            # By topic, because blocks of different clients have the same numbers.
            {topic: pickle.dumps(some, 5) for topic, some in by_topic.items()},
        )


def _end(pid: int, owner: str) -> None:
    """End a worker, and what it has started: it may have lost its scheduler, and still run."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess, psutil.TimeoutExpired):
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGKILL)
        process.wait(_KILL_TIMEOUT_SECONDS)
    sweep_all(OWNER, owner)
