"""Tells, from the nanny of a worker that has died, what the worker had done and why it died.

Does not know tasks. It makes sure that the worker, and all that it had started, is gone,
before anything that ran there can be run elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import signal
from pathlib import Path
from typing import Any

import psutil
from distributed import Nanny, NannyPlugin

from daskbatch.worker.execution import journal
from daskbatch.worker.processes.process_tree import OWNER, sweep_all

PLUGIN_NAME = "daskbatch-nanny"

#: How long a worker that was killed may take to be gone. Seconds.
_GONE_SECONDS = 5.0


class BatchNannyPlugin(NannyPlugin):  # type: ignore[misc]
    """The part of daskbatch that lives on a nanny."""

    name = PLUGIN_NAME
    idempotent = True
    restart = False

    def setup(self, nanny: Nanny) -> None:
        #: How workers have ended, the last one last.
        self._exits: list[int] = []
        nanny.handlers["daskbatch_fate"] = self._fate
        inner = nanny._on_worker_exit_sync

        def note(exitcode: int) -> None:
            self._exits.append(exitcode)
            inner(exitcode)

        # The nanny forgets how a worker ended, as soon as it starts the next one.
        nanny._on_worker_exit_sync = note
        if nanny.process is not None:
            nanny.process.on_exit = note

    async def _fate(self, pid: int, owner: str, directory: str) -> dict[str, Any]:
        """Make sure that a worker is gone, and tell what it leaves."""
        await asyncio.to_thread(_end, pid, owner)
        traces = await asyncio.to_thread(journal.read_journals, Path(directory))
        await asyncio.to_thread(journal.remove, Path(directory))
        of_topics: dict[str, list[journal.Trace]] = {}
        for trace in traces:
            of_topics.setdefault(trace.topic, []).append(trace)
        return {
            "exitcode": self._exits[-1] if self._exits else None,
            # By topic, since the blocks of different clients have the same numbers.
            "traces": {topic: pickle.dumps(some, 5) for topic, some in of_topics.items()},
        }


def _end(pid: int, owner: str) -> None:
    """End a worker that may only have lost its scheduler, and what it has started."""
    with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess, psutil.TimeoutExpired):
        process = psutil.Process(pid)
        os.kill(pid, signal.SIGKILL)
        process.wait(_GONE_SECONDS)
    sweep_all(OWNER, owner)
