"""A backend that runs graphs in this process, with Dask's own local schedulers."""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask
import dask.threaded
from dask.task_spec import DataNode

from daskbatch.dispatch.backend import Members, RevokeCallback
from daskbatch.dispatch.dispatcher import Dispatcher
from daskbatch.dispatch.lower import Lowered, Setting
from daskbatch.dispatch.task_record import SubmittedBlock, TaskRecord
from daskbatch.worker.entry import run_block
from daskbatch.worker.execution.block_run import BlockRun
from daskbatch.worker.execution.outcome import BlockResult, Status


class Result:
    """The part of a Dask future that the dispatcher uses: a `BlockFuture`."""

    def __init__(self) -> None:
        self.status = "pending"
        self.over = threading.Event()
        self.value: Any = None

    def finish(self, value: Any) -> None:
        self.value, self.status = value, "finished"
        self.over.set()

    def result(self, timeout: float | None = None) -> Any:
        if not self.over.wait(timeout):
            raise TimeoutError
        return self.value

    def release(self) -> None:
        pass


class InProcessBackend:
    """Runs each submission in another thread, once the inputs of its blocks exist.

    Any thread may use it.

    Parameters
    ----------
    slots : int
        The number of threads for the blocks of a submission; with one, they run one after another.
    reports : bool
        Whether reports are sent; otherwise the dispatcher receives only the keys' results.
    """

    def __init__(self, slots: int = 1, reports: bool = True) -> None:
        self.slots = slots
        self.shares_memory = False
        self.submissions: list[Lowered] = []
        self._reports = reports
        self._results: dict[Any, Result] = {}
        self._threads: list[threading.Thread] = []
        self._runs: dict[int, BlockRun] = {}
        self._revoked: dict[int, dict[int, Status]] = {}
        self._lock = threading.Lock()

    def attach(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher

    def entry(self, payload: bytes, *inputs: Any) -> BlockResult:
        return run_block(payload, *inputs, reporter=self)

    # As a `worker.entry.Reporter`:

    def begin(self, run: BlockRun) -> None:
        with self._lock:
            self._runs[run.spec.block] = run
            for member, status in self._revoked.get(run.spec.block, {}).items():
                run.revoke([member], status)

    def end(self, run: BlockRun) -> None:
        if self._reports:
            for report in run.reports():
                self.dispatcher.report(pickle.dumps(report))

    # As a `dispatch.backend.Backend`:

    def require_alive(self) -> None:
        pass

    def submit(self, lowered: Lowered, again: bool) -> Mapping[str, Any]:
        self.submissions.append(lowered)
        graph = dict(lowered.graph)
        for key in graph:
            self._results[key] = Result()
        for key, block in lowered.blocks.items():
            block.future = self._results[key]
        thread = threading.Thread(target=self._run, args=(lowered, graph))
        self._threads.append(thread)
        thread.start()
        return {key: self._results[key] for key in lowered.buffers}

    def _run(self, lowered: Lowered, graph: dict[Any, Any]) -> None:
        outside = {before for node in graph.values() for before in node.dependencies} - set(graph)
        for key in outside:
            graph[key] = DataNode(key, self._results[key].result())
        keys = list(lowered.blocks)
        if self.slots == 1:
            values = dask.get(graph, keys)
        else:
            values = dask.threaded.get(graph, keys, num_workers=self.slots)
        for key in lowered.buffers:
            self._results[key].finish(lowered.buffers[key].content)
        for (key, block), value in zip(lowered.blocks.items(), values, strict=True):
            self._results[key].finish(value)
            self.dispatcher.key_finished(block, value if block.unfinished else None)

    def revoke(
        self, members: Members, status: Status, then: RevokeCallback, begun: bool = True
    ) -> None:
        revoked = {}
        with self._lock:
            for block, some in members.items():
                self._revoked.setdefault(block, {}).update(dict.fromkeys(some, status))
                run = self._runs.get(block)
                began = run.revoke(some, status) if run is not None else []
                revoked[block] = [member for member in some if member not in began]
        threading.Thread(target=then, args=(revoked, {})).start()

    def has_cancelled(self, block: SubmittedBlock) -> bool:
        return False

    def release(self, block: SubmittedBlock) -> None:
        pass

    def forget(self, blocks: Sequence[int]) -> None:
        pass

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        threading.Timer(seconds, function).start()

    def join(self) -> None:
        for thread in self._threads:
            thread.join()


def make_dispatcher(
    slots: int = 1,
    budget: float = 0.2,
    share_limit: int = 1 << 20,
    reports: bool = True,
    backend: InProcessBackend | None = None,
) -> tuple[Dispatcher, InProcessBackend]:
    """Make a dispatcher that runs tasks in this process, on a given backend or a new one."""
    backend = backend or InProcessBackend(slots, reports)
    setting = Setting("topic", backend.entry, budget, share_limit, 1 << 16, 1 << 20)
    dispatcher = Dispatcher(backend, setting)
    backend.attach(dispatcher)
    return dispatcher, backend


def run_records(dispatcher: Dispatcher, records: Sequence[TaskRecord], timeout: float = 60) -> None:
    """Start records and wait until they are over."""
    dispatcher.submit(records, "test")
    assert dispatcher.outcomes.wait(lambda: all(record.over for record in records), timeout)
