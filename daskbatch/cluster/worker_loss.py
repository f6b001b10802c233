"""Keeps Dask from running a block a second time when a worker dies.

Does not know what may be done instead: it says what was lost, and the client decides.

Dask would compute lost keys anew, with all that they do to files. So the specification of
a block is replaced, before Dask can use it again, by one that returns that the block is lost.
What depends on the block then comes back to the client, and the client, which knows who
reads and writes what, runs again what may be run again.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from dask.task_spec import Task
from distributed import Scheduler

from daskbatch.dispatch.lower import TOKEN, TOPIC
from daskbatch.worker.execution.outcome import BlockResult

Key = tuple[str, int]

#: How long a nanny may take to tell of its worker. Seconds.
_FATE_SECONDS = 15.0

#: What a worker leaves that had begun nothing.
_NO_TRACES = pickle.dumps([], 5)


def lost() -> BlockResult:
    """Stand for a block of which the cluster knows nothing any more."""
    return BlockResult(b"")


def topic_of(scheduler: Scheduler, key: Any) -> str | None:
    """Say whose block a key is; None if it is none."""
    if not isinstance(key, tuple) or str(key[0]).startswith(TOKEN):
        return None
    state = scheduler.tasks.get(key)
    annotations = None if state is None else state.annotations
    return annotations.get(TOPIC) if annotations else None


def mark_lost(scheduler: Scheduler, keys: Iterable[Any]) -> dict[str, list[Key]]:
    """Replace what blocks would do by saying that they are lost; returns them by topic."""
    struck: dict[str, list[Key]] = {}
    for key in keys:
        topic = topic_of(scheduler, key)
        if topic is None:
            continue
        state = scheduler.tasks[key]
        # What was replaced before has begun nowhere since: whose death it was is still to be
        # told, or was, and a worker that only had what came instead knows nothing of it.
        if getattr(state.run_spec, "func", None) is not lost:
            state.run_spec = Task(key, lost)
            # To say so takes no certain worker: the one that it was meant for may be gone for good.
            state.worker_restrictions = state.host_restrictions = None
            state.resource_restrictions = None
            struck.setdefault(topic, []).append(key)
    return struck


def reset_suspicion(scheduler: Scheduler, keys: Iterable[Any]) -> None:
    """Have Dask forget under how many deaths keys of ours have been on their way.

    It counts those that had not begun, too, and gives them up. The client counts what ran.
    """
    for key in keys:
        state = scheduler.tasks.get(key)
        if state is not None and state.annotations and TOPIC in state.annotations:
            state.suspicious = 0


@dataclass(slots=True)
class _Worker:
    """What has to be known of a worker once it is dead."""

    state: Any
    nanny: str | None
    #: Its process, whom its children say that they belong to, and where its journals are.
    pid: int = -1
    owner: str = ""
    directory: str = ""
    out_of_memory: int = 0
    began: dict[str, list[Key]] = field(default_factory=dict)


class WorkerLossTracker:
    """The workers, and what is known of those that died.

    Parameters
    ----------
    scheduler : Scheduler
        Where they are.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._workers: dict[str, _Worker] = {}
        for address in scheduler.workers:
            self.add_worker(address)

    def add_worker(self, address: str) -> None:
        """Take in a worker that has joined."""
        state = self._scheduler.workers[address]
        self._workers.setdefault(address, _Worker(state, state.nanny))

    def hello(self, pid: int, owner: str, directory: str, worker: str) -> None:
        """Take in where a worker keeps its journals."""
        self.add_worker(worker)
        known = self._workers[worker]
        known.pid, known.owner, known.directory = pid, owner, directory

    def ran_out_of_memory(self, address: str, size: int) -> None:
        """Take in that a worker is being ended for its memory. Bytes."""
        if address in self._workers:
            self._workers[address].out_of_memory = size

    def died(self, address: str, began: dict[str, list[Key]]) -> None:
        """Take in that a worker has died, and the keys that it may have begun."""
        if address in self._workers:
            self._workers[address].began = began

    async def tell(self, address: str) -> dict[str, dict[str, Any]]:
        """Find out what a worker that died had done; returns a message for each topic."""
        worker = self._workers.pop(address, None)
        if worker is None:
            return {}
        fate = await self._ask_nanny(worker)
        why = {
            "worker": address,
            "exitcode": fate.get("exitcode"),
            "memory": worker.out_of_memory or _memory(worker.state),
            "memory_limit": worker.state.memory_limit or None,
            "out_of_memory": bool(worker.out_of_memory),
        }
        traces = fate.get("traces")
        return {
            topic: {
                "died": keys,
                "why": why,
                "traces": None if traces is None else traces.get(topic, _NO_TRACES),
            }
            for topic, keys in worker.began.items()
        }

    async def _ask_nanny(self, worker: _Worker) -> dict[str, Any]:
        if worker.nanny is None or not worker.directory:
            return {}
        # Whatever goes wrong there: the clients wait to be told.
        with contextlib.suppress(Exception):
            # Also where nothing of ours ran: what the worker has started must not outlive it.
            return await asyncio.wait_for(
                self._scheduler.rpc(worker.nanny).daskbatch_fate(
                    pid=worker.pid, owner=worker.owner, directory=worker.directory
                ),
                _FATE_SECONDS,
            )
        return {}


def _memory(state: Any) -> int | None:
    """Give how many bytes a worker used when it last said so."""
    used = state.metrics.get("memory")
    return int(used) if used else None
