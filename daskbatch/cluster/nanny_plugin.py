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
from distributed.core import Status

from daskbatch.cluster.leaving.probe import is_listening
from daskbatch.cluster.messages import WorkerFate
from daskbatch.worker.execution.journal import JournaledBlock
from daskbatch.worker.journal_directory import read_complete_journals, remove_journals
from daskbatch.worker.processes.process_tree import OWNER, sweep_all

PLUGIN_NAME = "daskbatch-nanny"

#: How long a worker that was killed may take to end, and a connection to the scheduler.
_KILL_TIMEOUT_SECONDS, _CONNECT_TIMEOUT_SECONDS = 5.0, 2.0

#: How often the nanny looks whether the cluster closes.
_POLL_INTERVAL_SECONDS = 0.1

#: The times at which a process began, as it sees that itself and as others do, differ by less.
_CREATION_TOLERANCE_SECONDS = 1.0

#: The states of a cluster object that ends all its workers.
_CLOSING_STATUSES = (Status.closing, Status.closed)


class BatchNannyPlugin(NannyPlugin):  # type: ignore[misc]
    """The nanny's part of daskbatch.

    Handler that the scheduler's plugin calls:

    - ``daskbatch_fate(pid, owner, directory, created, leaves)`` ends what is left of a worker and
      returns a `WorkerFate`. The worker may have been that of another nanny on this host, which
      has died. With `leaves` set it is not started again.

    If the nanny closes, the scheduler first has its worker leave in good order, unless the whole
    cluster closes.
    """

    name = PLUGIN_NAME
    idempotent = True
    restart = False

    def setup(self, nanny: Nanny) -> None:
        """Register the handler, and record how workers end."""
        self._nanny = nanny
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

    async def teardown(self, nanny: Nanny) -> None:
        """Have the worker leave in good order before the nanny ends it; called by Dask."""
        worker = nanny.worker_address
        # Whatever goes wrong: the nanny closes.
        with contextlib.suppress(Exception):
            if worker is None or not nanny.is_alive() or _is_closing(nanny):
                return
            if not await is_listening(nanny.scheduler_addr, _CONNECT_TIMEOUT_SECONDS):
                return
            leaving = asyncio.ensure_future(nanny.scheduler.daskbatch_leave(worker=worker))
            # The cluster may close while tasks still have time to end.
            while not (leaving.done() or _is_closing(nanny)):
                await asyncio.wait([leaving], timeout=_POLL_INTERVAL_SECONDS)
            leaving.cancel()

    async def _fate(
        self, pid: int, owner: str, directory: str, created: float, leaves: bool
    ) -> WorkerFate:
        """End a worker and its processes, and return what it has left."""
        if self._nanny.pid != pid and not Path(directory).is_dir():
            # Not to be seen from here, or removed by the worker.
            return WorkerFate(self._exitcodes[-1] if self._exitcodes else None)
        if leaves and pid == self._nanny.pid and self._nanny.status == Status.running:
            self._nanny.close_gracefully(reason="daskbatch: the worker leaves")
        await asyncio.to_thread(_end, pid, owner, created)
        traces = await asyncio.to_thread(read_complete_journals, Path(directory))
        await asyncio.to_thread(remove_journals, Path(directory))
        exitcode = self._exitcodes[-1] if self._exitcodes else None
        if traces is None:
            return WorkerFate(exitcode)
        by_topic: dict[str, list[JournaledBlock]] = {}
        for trace in traces:
            by_topic.setdefault(trace.topic, []).append(trace)
        return WorkerFate(
            exitcode,
            # By topic, because blocks of different clients have the same numbers.
            {topic: pickle.dumps(some, 5) for topic, some in by_topic.items()},
        )


def _is_closing(nanny: Nanny) -> bool:
    """Return whether the cluster object that has started a nanny ends all its workers."""
    owner = getattr(nanny, "_cluster", None)
    cluster = None if owner is None else owner()
    return cluster is not None and cluster.status in _CLOSING_STATUSES


def _end(pid: int, owner: str, created: float) -> None:
    """End a worker, and what it has started: it may have lost its scheduler, and still run."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess, psutil.TimeoutExpired):
        process = psutil.Process(pid)
        # Another process may have the number by now.
        if abs(process.create_time() - created) < _CREATION_TOLERANCE_SECONDS:
            os.kill(pid, signal.SIGKILL)
            process.wait(_KILL_TIMEOUT_SECONDS)
    sweep_all(OWNER, owner)
