"""Puts the running of blocks onto a Dask worker: entry point, reports, revocations.

Does not know what a block does; together with `dispatch.service` on the scheduler it
carries reports up to the client and revocations down to the blocks.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import pickle
import signal
import threading
from pathlib import Path
from typing import Any

import dask
from distributed import Worker, WorkerPlugin, get_worker
from distributed.metrics import time
from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.threadpoolexecutor import threads_lock
from distributed.utils import thread_state
from distributed.worker_state_machine import SecedeEvent

from daskbatch.worker.entry import run_block
from daskbatch.worker.execution import initialized_function as prepare
from daskbatch.worker.execution.block import BlockSpec
from daskbatch.worker.execution.executable import ADDED_VARIABLE
from daskbatch.worker.execution.helper_thread import errands
from daskbatch.worker.execution.journal import PREFIX, Journal, remove, remove_old
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.execution.progress import Progress
from daskbatch.worker.execution.slot import NoSlot, PoolSlot
from daskbatch.worker.execution.task_context import TaskContext
from daskbatch.worker.isolation.child_pool import children
from daskbatch.worker.processes.reaper import warden
from daskbatch.worker.profiling.remote import forget_later

PLUGIN = "daskbatch-worker"

#: How often a running block is looked at: for reports, and for its budget. Seconds.
_TICK = 0.02

#: Values up to this size are kept for the case that the worker is killed. Bytes.
_JOURNAL_BYTES = 1 << 16


def run_on_worker(payload: bytes, *inputs: Any) -> BlockResult:
    """Run a block as a Dask task.

    Parameters
    ----------
    payload : bytes
        A pickled `BlockSpec`.
    *inputs : BlockResult or bytes
        The results of the Dask tasks that this one depends on.
    """
    plugin = get_worker().plugins[PLUGIN]
    return run_block(payload, *inputs, reporter=plugin)


class BatchWorkerPlugin(WorkerPlugin):  # type: ignore[misc]
    """The part of daskbatch that lives on a worker.

    The thread of a block only ever appends to its `Progress`; what has to be sent is
    picked up from it by the worker's event loop, now and then and at the end.
    """

    name = PLUGIN
    idempotent = True

    def setup(self, worker: Worker) -> None:
        self._worker = worker
        #: For children, which are no workers, and have nothing to connect with by themselves.
        self._security: bytes | None = None
        if worker.scheduler.address.startswith("tls"):
            with contextlib.suppress(Exception):  # else children need some of their own
                self._security = pickle.dumps(worker.security, 5)
        _survive_interrupts()
        if worker.nanny is not None:
            _note_added_environment()
        self._runs: dict[tuple[str, int], Progress] = {}
        self._revoked: dict[tuple[str, int], dict[int, Status]] = {}
        #: The topics whose clients are gone.
        self._ended: set[str] = set()
        #: The journals of slots that are free, and where they are. Without a nanny there is
        #: nobody to read them.
        self._journals: list[Journal] = []
        self._numbers = itertools.count()
        self._directory: Path | None = None
        if worker.nanny is not None:
            scratch = Path(worker.local_directory).parent
            remove_old(scratch)
            self._directory = scratch / f"{PREFIX}{worker.id}"
            self._directory.mkdir(exist_ok=True)
        self._lock = threading.Lock()
        self._errands = errands()
        self._ticking = False
        worker.stream_handlers["daskbatch-revoke"] = self._revoke
        worker.stream_handlers["daskbatch-forget"] = self._forget
        worker.stream_handlers["daskbatch-end"] = self._end
        worker.batched_send(
            {
                "op": "daskbatch-hello",
                "pid": os.getpid(),
                "owner": warden().owner,
                "directory": str(self._directory or ""),
            }
        )

    def teardown(self, worker: Worker) -> None:
        worker.stream_handlers.pop("daskbatch-revoke", None)
        worker.stream_handlers.pop("daskbatch-forget", None)
        worker.stream_handlers.pop("daskbatch-end", None)
        # A worker that leaves, or has lost its scheduler, must not go on with its tasks.
        for run in list(self._runs.values()):
            run.stop_all()
        children().close()
        if not self._runs:
            warden().close()  # it would end what a task has left running on purpose
        if self._directory is not None:
            remove(self._directory)

    # -- the threads that run blocks (`run.Reporter`) -------------------------------------

    def begin(self, run: Progress) -> None:
        key = _key(run.spec)
        journal = self._take_journal()
        if journal is not None:
            journal.begin(*key)
            run.journal = journal
        run.host = self._host(run)
        with self._lock:
            self._runs[key] = run
            if run.spec.topic in self._ended:
                run.stop_all()
            for member, status in self._revoked.get(key, {}).items():
                run.revoke([member], status)
            if not self._ticking:
                self._ticking = True
                self._worker.loop.add_callback(self._start_ticking)

    def _host(self, run: Progress) -> TaskContext:
        """Say what the members of a block that runs in this thread have around them."""
        pool, dask_key = getattr(pool_state, "executor", None), thread_state.key
        began = thread_state.start_time
        slot: NoSlot | PoolSlot = NoSlot()

        def given() -> None:
            if run.spec.budget != math.inf:
                # What is behind the member that waits may be what it waits for.
                run.defer_rest()
            event = SecedeEvent(
                key=dask_key, compute_duration=time() - began, stimulus_id=f"secede-{time()}"
            )
            self._worker.loop.add_callback(self._worker.handle_stimulus, event)

        if hasattr(pool, "_rejoin_list"):
            slot = PoolSlot(pool, threads_lock, given, self._errands.do)
        return TaskContext(
            slot, run.spec.topic, dask_key, self._worker.scheduler.address, self._security
        )

    def end(self, run: Progress) -> None:
        slot = None if run.host is None else run.host.slot
        if isinstance(slot, PoolSlot):
            # By this the pool lets go of the thread, or not.
            pool_state.proceed = slot.finish()
        if run.journal is not None:
            run.journal.run(-1)
            self._journals.append(run.journal)
        # On the loop this comes before what Dask does there when the key is done; and who
        # asks to revoke members of the block is answered either before, that they have begun,
        # or after the report that they are over.
        self._worker.loop.add_callback(self._finish, run)

    def _take_journal(self) -> Journal | None:
        if self._directory is None:
            return None
        try:
            return self._journals.pop()
        except IndexError:
            return Journal(self._directory / str(next(self._numbers)), _JOURNAL_BYTES)

    # -- the event loop -------------------------------------------------------------------

    def _start_ticking(self) -> None:
        self._worker.loop.call_later(_TICK, self._tick)

    def _finish(self, run: Progress) -> None:
        self._send(run)
        with self._lock:
            # A key that Dask runs a second time may have begun before the first has ended.
            if self._runs.get(_key(run.spec)) is run:
                del self._runs[_key(run.spec)]

    def _tick(self) -> None:
        with self._lock:
            runs = list(self._runs.values())
            self._ticking = bool(runs)
        for run in runs:
            run.look()
            self._send(run)
        if runs:
            self._worker.loop.call_later(_TICK, self._tick)

    def _send(self, run: Progress) -> None:
        for report in run.reports():
            self._worker.batched_send(
                {
                    "op": "daskbatch-report",
                    "topic": run.spec.topic,
                    "report": pickle.dumps(report, 5),
                }
            )

    def _revoke(
        self, topic: str, block: int, members: list[int], status: int, request: int, begun: bool
    ) -> None:
        """Take members of a block back, also if it comes here only later."""
        key = topic, block
        with self._lock:
            run = self._runs.get(key)
            running = run.revoke(members, Status(status)) if run is not None else []
            self._revoked.setdefault(key, {}).update(dict.fromkeys(members, Status(status)))
        stopping = []
        if run is not None and status == Status.CANCELLED and begun:
            stopping = [member for member in running if run.stop_running(member)]
        self._worker.batched_send(
            {"op": "daskbatch-revoked", "request": request, "began": running, "stopping": stopping}
        )

    def _end(self, topic: str) -> None:
        """Begin nothing more of a client that is gone."""
        with self._lock:
            self._ended.add(topic)
            for run in self._runs.values():
                if run.spec.topic == topic:
                    run.stop_all()
            for key in [key for key in self._revoked if key[0] == topic]:
                del self._revoked[key]
        prepare.forget(topic)
        forget_later(topic)
        children().let_go(topic)

    def _forget(self, topic: str, blocks: list[int]) -> None:
        with self._lock:
            for block in blocks:
                self._revoked.pop((topic, block), None)


def _survive_interrupts() -> None:
    """Let a SIGINT that a task sends its own process not end an embedded worker.

    There is nobody at a terminal of its own to send it on purpose; and Dask would take the
    worker for one that wants to leave, and not start another.
    """
    embedded = ADDED_VARIABLE in os.environ
    if embedded and threading.current_thread() is threading.main_thread():
        # A handler, since what is ignored would be ignored by executables, too.
        signal.signal(signal.SIGINT, lambda *_: None)


def _note_added_environment() -> None:
    """Note what the nanny has set for its worker alone: one thread for linear algebra, say.

    What its own parent had set already is the user's.
    """
    ours = dask.config.get("distributed.nanny.pre-spawn-environ", default=None) or {}
    found = [name for name, value in ours.items() if os.environ.get(name) == str(value)]
    try:
        before = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        before = []
    names = {each.partition(b"=")[0].decode(errors="replace") for each in before}
    added = [name for name in found if name not in names]
    if added and ADDED_VARIABLE not in os.environ:
        os.environ[ADDED_VARIABLE] = ",".join(added)


def _key(spec: BlockSpec) -> tuple[str, int]:
    return spec.topic, spec.block
