"""Prevents Dask from running a block a second time when a worker dies, and reports the loss.

Dask would compute lost keys again, with all that they do to files. So the specification of a
block is replaced, before Dask can use it again, by one that returns that the block is lost.
What depends on the block then comes back to the client. The client knows what each task reads
and writes, and runs again what may run again. All runs on the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from dask.task_spec import Task
from distributed import Scheduler

from daskbatch.cluster.leaving.probe import is_listening
from daskbatch.cluster.messages import WorkerDied, WorkerFate
from daskbatch.dispatch.key_names import TOKEN
from daskbatch.dispatch.lower import TOPIC
from daskbatch.dispatch.task_record import BlockKey
from daskbatch.worker.execution.outcome import BlockResult

#: How long a connection to a nanny may take, and how long a nanny may take to report what its
#: worker has left.
_CONNECT_TIMEOUT_SECONDS, _FATE_TIMEOUT_SECONDS = 2.0, 15.0

#: How many nannies beside that of a worker are asked about it.
_MAX_OTHER_NANNIES = 3

#: The traces of a worker that had begun nothing of a client.
_NO_TRACES = pickle.dumps([], 5)


def make_lost_result() -> BlockResult:
    """Return the result of a block whose outcomes the cluster has lost."""
    return BlockResult(b"")


def topic_of(scheduler: Scheduler, key: Any) -> str | None:
    """Return the topic of the client whose block a key is; None for other keys."""
    if not isinstance(key, tuple) or str(key[0]).startswith(TOKEN):
        return None
    state = scheduler.tasks.get(key)
    annotations = None if state is None else state.annotations
    return annotations.get(TOPIC) if annotations else None


def is_marked_lost(state: Any) -> bool:
    """Return whether a Dask task only returns that its block is lost."""
    return getattr(state.run_spec, "func", None) is make_lost_result


def mark_lost(scheduler: Scheduler, keys: Iterable[Any]) -> dict[str, list[BlockKey]]:
    """Prevent Dask from running blocks again, and return their keys by client topic.

    Replaces the run_spec of finished or possibly started blocks by one that returns 'lost'.
    """
    marked: dict[str, list[BlockKey]] = {}
    for key in keys:
        topic = topic_of(scheduler, key)
        if topic is None:
            continue
        state = scheduler.tasks[key]
        # A key that was already replaced has not run since; its loss is, or has been, reported
        # for the worker that ran it. A worker that had only the replacement knows nothing of it.
        if not is_marked_lost(state):
            state.run_spec = Task(key, make_lost_result)
            # Any worker can run the replacement. The worker that the key was restricted to may
            # never return.
            state.worker_restrictions = state.host_restrictions = None
            state.resource_restrictions = None
            marked.setdefault(topic, []).append(key)
    return marked


def reset_suspicion(scheduler: Scheduler, keys: Iterable[Any]) -> None:
    """Reset Dask's count of worker deaths for keys of blocks (`suspicious`).

    Dask also counts keys that had not started, and then gives them up. The client keeps its
    own count, of tasks that ran.
    """
    for key in keys:
        state = scheduler.tasks.get(key)
        if state is not None and state.annotations and TOPIC in state.annotations:
            state.suspicious = 0


class _Departed(NamedTuple):
    """What a worker has reported when nothing of daskbatch ran there any longer.

    Parameters
    ----------
    keys : mapping
        By topic, the Dask keys of the blocks that did not stop.
    traces : mapping
        By topic, a pickled list of what ran of them.
    stuck : bool
        Whether a member still ran, though it was told to stop: one of these keys.
    """

    keys: Mapping[str, Iterable[Any]]
    traces: Mapping[str, bytes]
    stuck: bool


@dataclass(slots=True)
class _Worker:
    """What the tracker records of a worker while it lives, for when it is dead."""

    state: Any
    nanny: str | None
    #: Its process, the owner mark of its children, and the directory of its journals.
    pid: int = -1
    owner: str = ""
    directory: str = ""
    #: Its host; see `memory.host.host_id`.
    host: str = ""
    #: When its process began, as `psutil` says.
    created: float = 0.0
    #: When it will end, in seconds since the epoch, as far as that is announced.
    ends: float = math.inf
    #: By topic, what ran when it began nothing more; None as long as it begins tasks.
    leaving: Mapping[str, bytes] | None = None
    #: What did not stop; None as long as it leaves tasks time to end.
    departed: _Departed | None = None
    #: How much memory it used when it was killed for that; 0 if it was not.
    out_of_memory_bytes: int = 0
    #: The keys that it may have begun when it died, by topic.
    began: dict[str, list[BlockKey]] = field(default_factory=dict)


class WorkerLossTracker:
    """The workers, and what those that died had begun. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler of the workers.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._workers: dict[str, _Worker] = {}
        for address in scheduler.workers:
            self.add_worker(address)

    def add_worker(self, address: str) -> None:
        """Record that a worker has joined."""
        state = self._scheduler.workers[address]
        self._workers.setdefault(address, _Worker(state, state.nanny))

    def record_process(
        self,
        pid: int,
        owner: str,
        directory: str,
        created: float,
        ends: float,
        worker: str,
        host: str = "",
    ) -> None:
        """Record the process and host of a worker, where its journals are, and when it ends."""
        self.add_worker(worker)
        found = self._workers[worker]
        found.pid, found.owner, found.directory, found.created = pid, owner, directory, created
        found.ends, found.host = ends, host

    def hosts(self) -> list[str]:
        """Return the hosts of the workers, each once; an empty text if one is not known."""
        present = (self._workers.get(address) for address in self._scheduler.workers)
        return sorted({"" if each is None else each.host for each in present})

    def record_end(self, ends: float, worker: str) -> None:
        """Record when a worker will end, in seconds since the epoch."""
        if worker in self._workers:
            self._workers[worker].ends = ends

    def end_of(self, worker: str) -> float:
        """Return when a worker will end, in seconds since the epoch; infinite if unknown."""
        found = self._workers.get(worker)
        return math.inf if found is None else found.ends

    def knows(self, worker: str) -> bool:
        """Return whether a worker has daskbatch's plugin."""
        return worker in self._workers and self._workers[worker].pid >= 0

    def record_leaving(self, worker: str, traces: Mapping[str, bytes]) -> None:
        """Record what runs on a worker that begins nothing more, by topic."""
        if worker in self._workers:
            self._workers[worker].leaving = traces

    def record_left(
        self,
        worker: str,
        keys: Mapping[str, Iterable[Any]],
        traces: Mapping[str, bytes],
        stuck: bool,
    ) -> None:
        """Record what still runs on a worker that leaves; see `_Departed`."""
        if worker in self._workers:
            self._workers[worker].departed = _Departed(keys, traces, stuck)

    def record_out_of_memory(self, address: str, size: int) -> None:
        """Record that a worker is being killed because it uses `size` bytes."""
        if address in self._workers:
            self._workers[address].out_of_memory_bytes = size

    def record_death(self, address: str, began: dict[str, list[BlockKey]]) -> None:
        """Record that a worker has died, and the keys that it may have begun, by topic."""
        if address in self._workers:
            self._workers[address].began = began

    def event_of_interruption(self, key: Any, trace: bytes, worker: str) -> WorkerDied:
        """Return the event for a block that a worker has interrupted, since it leaves."""
        found = self._workers.get(worker)
        details = {} if found is None else _details(worker, found, None)
        return WorkerDied([key], details, trace, planned=True)

    async def events_of_death(self, address: str) -> dict[str, WorkerDied]:
        """Find out what a worker that died had done; returns the event for each topic."""
        worker = self._workers.pop(address, None)
        if worker is None:
            return {}
        departed = worker.departed
        began = {topic: list(keys) for topic, keys in worker.began.items()}
        if departed is None or departed.stuck:
            fate = await self._ask_nanny(worker)
        else:
            fate = WorkerFate(None, departed.traces)
        if departed is not None:
            for topic, interrupted in departed.keys.items():
                keys = began.setdefault(topic, [])
                keys += [key for key in interrupted if key not in keys]
        if fate.traces is None:
            # It has begun nothing since it reported this.
            known = worker.leaving if departed is None else departed.traces
            fate = fate._replace(traces=known)
        details = _details(address, worker, fate.exitcode)
        return {
            topic: WorkerDied(
                keys,
                details,
                None if fate.traces is None else fate.traces.get(topic, _NO_TRACES),
                departed is not None,
            )
            for topic, keys in began.items()
        }

    async def _ask_nanny(self, worker: _Worker) -> WorkerFate:
        if worker.nanny is None or not worker.directory:
            return WorkerFate()
        # Also if no block ran there: the worker's processes must not outlive it.
        fate = await self._ask(worker.nanny, worker)
        if fate is None:
            # The nanny has died with its worker. Another one on the same host can do the same.
            for nanny in self._nannies_beside(worker):
                fate = await self._ask(nanny, worker)
                if fate is not None and fate.traces is not None:
                    return fate._replace(exitcode=None)
        return fate or WorkerFate()

    def _nannies_beside(self, worker: _Worker) -> list[str]:
        """Return the other nannies on the host of a worker, the first few."""
        others = {
            each.nanny
            for each in self._scheduler.workers.values()
            if each.nanny and each.nanny != worker.nanny and each.host == worker.state.host
        }
        return sorted(others)[:_MAX_OTHER_NANNIES]

    async def _ask(self, nanny: str, worker: _Worker) -> WorkerFate | None:
        """Ask a nanny what became of a worker; None if it does not answer."""
        # Any error of the nanny: the clients wait for the report, and must receive one.
        with contextlib.suppress(Exception):
            if not await is_listening(nanny, _CONNECT_TIMEOUT_SECONDS):
                return None
            answer = await asyncio.wait_for(
                self._scheduler.rpc(nanny).daskbatch_fate(
                    pid=worker.pid,
                    owner=worker.owner,
                    directory=worker.directory,
                    created=worker.created,
                    leaves=worker.departed is not None,
                ),
                _FATE_TIMEOUT_SECONDS,
            )
            return WorkerFate(*answer)
        return None


def _details(address: str, worker: _Worker, exitcode: int | None) -> dict[str, Any]:
    """Return what is known of the end of a worker: keyword arguments of `WorkerLost`."""
    return {
        "worker": address,
        "exitcode": exitcode,
        "memory": worker.out_of_memory_bytes or _memory(worker.state),
        "memory_limit": worker.state.memory_limit or None,
        "out_of_memory": bool(worker.out_of_memory_bytes),
    }


def _memory(state: Any) -> int | None:
    """Return how many bytes a worker used when it last reported it."""
    used = state.metrics.get("memory")
    return int(used) if used else None
