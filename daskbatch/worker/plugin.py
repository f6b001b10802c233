"""The part of daskbatch that lives on a Dask worker: entry point, reports, revocations.

Together with `cluster.scheduler_plugin` on the scheduler it carries reports up to the client,
and revocations down to the blocks. The worker's event loop calls the plugin, except for `begin`
and `end`, which the threads of blocks call.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import pickle
import signal
import sys
import threading
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import psutil
from dask.utils import parse_timedelta
from distributed import Worker, WorkerPlugin, get_worker
from distributed.metrics import time
from distributed.threadpoolexecutor import thread_state as pool_state
from distributed.threadpoolexecutor import threads_lock
from distributed.utils import thread_state
from distributed.worker_state_machine import SecedeEvent

from daskbatch.memory.host import host_id
from daskbatch.serialization import stored_value
from daskbatch.worker.announced_end import announced_end, ask_slurm
from daskbatch.worker.dask_types import register_stored_values
from daskbatch.worker.departure import WorkerDeparture
from daskbatch.worker.entry import run_block
from daskbatch.worker.execution import initialized_function
from daskbatch.worker.execution.block import BlockSpec, OpenedReport, Report
from daskbatch.worker.execution.executable import ADDED_VARIABLE
from daskbatch.worker.execution.helper_thread import get_helper_thread
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.execution.progress import Progress
from daskbatch.worker.execution.slot import FixedSlot, PoolSlot
from daskbatch.worker.execution.task_context import TaskContext
from daskbatch.worker.isolation.child_pool import get_child_pool
from daskbatch.worker.journal_pool import JournalPool
from daskbatch.worker.late_messages import ignore_late_messages
from daskbatch.worker.open_blocks.open_run import OpenRun
from daskbatch.worker.open_blocks.server import OpenServer
from daskbatch.worker.ports import set_ports
from daskbatch.worker.processes import initial_state
from daskbatch.worker.processes.reaper import get_reaper
from daskbatch.worker.profiling.remote import close_worker, forget_later, open_worker
from daskbatch.worker.relayed_values import relay_values
from daskbatch.worker.same_host import send_references
from daskbatch.worker.slot_holding import GangSlots
from daskbatch.worker.termination import leave_on_sigterm

if TYPE_CHECKING:
    from daskbatch.worker.mpi.rank_pool import RankPool

PLUGIN_NAME = "daskbatch-worker"

#: The interval at which the event loop asks running blocks for reports, and checks their budgets.
_TICK_INTERVAL_SECONDS = 0.02

#: How long Dask takes to send a report to the scheduler; and for how long a block waits for that at
#: most, before it frees large arguments. Seconds.
_SENDING_SECONDS, _MAX_REPORT_SECONDS = 0.004, 0.1

#: The annotation of a Dask key that says how long its tasks may take; see `dispatch.lower`.
_WALLTIME = "daskbatch_walltime"

_logger = logging.getLogger("daskbatch")
_machine_logger = logging.getLogger("distributed.worker.state_machine")

#: The default of `daskbatch.stop-grace`.
_STOP_GRACE = "2s"


def run_on_worker(payload: bytes, *inputs: Any) -> BlockResult:
    """Run a block as a Dask task.

    Parameters
    ----------
    payload : bytes
        A pickled `BlockSpec`.
    *inputs : BlockResult or bytes
        The results of the Dask tasks that this one depends on.
    """
    plugin = get_worker().plugins[PLUGIN_NAME]
    return run_block(payload, *inputs, reporter=plugin)


class BatchWorkerPlugin(WorkerPlugin):  # type: ignore[misc]
    """The worker's part of every Batch: sends reports of blocks, passes revocations to them.

    The thread of a block only appends to the block's log. The worker's event loop asks the
    block for reports, at intervals and at the end, and sends them.

    Messages that the worker receives on the stream from its scheduler: `daskbatch-revoke`,
    `daskbatch-forget`, `daskbatch-end`. It sends `daskbatch-hello`, `daskbatch-ends`,
    `daskbatch-report` and `daskbatch-revoked`.
    """

    name = PLUGIN_NAME
    idempotent = True

    def setup(self, worker: Worker) -> None:
        """Register the handlers, and report where the journals are; called by Dask."""
        self._worker = worker
        #: The pickled `Security` of the worker, for children: they have none themselves.
        self._security: bytes | None = None
        if worker.scheduler.address.startswith("tls"):
            with contextlib.suppress(Exception):  # then children cannot use the worker's
                self._security = pickle.dumps(worker.security, 5)
        _survive_interrupts()
        set_ports(dask.config.get("daskbatch.port", default=None))
        initial_state.record()
        if worker.nanny is not None:
            _record_added_environment()
            leave_on_sigterm(worker)
        #: The blocks that run, by topic and number.
        self._runs: dict[tuple[str, int], Progress] = {}
        _machine_logger.addFilter(self._is_worth_telling)
        #: What members were given instead of being run, by topic and number of their block.
        self._revoked: dict[tuple[str, int], dict[int, Status]] = {}
        #: The topics of clients that have ended.
        self._ended: set[str] = set()
        #: The journals of the slots. There are none without a nanny, since only a nanny reads them.
        self._journals: JournalPool | None = None
        if worker.nanny is not None:
            self._journals = JournalPool(Path(worker.local_directory).parent, worker.id)
        #: Held while blocks and revocations are recorded.
        self._lock = threading.Lock()
        open_worker(worker.local_directory)
        self._helper = get_helper_thread()
        self._ticking = False
        #: How long a member may take to stop until its slot is given to others; and the blocks of
        #: such members.
        grace = dask.config.get("daskbatch.stop-grace", default=_STOP_GRACE)
        self._stop_grace: float = parse_timedelta(grace)
        self._stuck: weakref.WeakSet[Progress] = weakref.WeakSet()
        self._gangs = GangSlots(worker)
        stored_value.set_memory_limit(worker.memory_manager.memory_limit)
        register_stored_values()
        send_references(worker)
        relay_values(worker)
        #: When this worker ends, in seconds since the epoch, as far as that is announced.
        self._ends = announced_end(getattr(worker, "lifetime", None))
        self._departure = WorkerDeparture(worker, lambda: list(self._runs.values()), self._send)
        self._open_server: OpenServer | None = None
        self._is_closed = False
        worker.stream_handlers["daskbatch-revoke"] = self._revoke
        worker.stream_handlers["daskbatch-forget"] = self._forget
        worker.stream_handlers["daskbatch-end"] = self._end
        worker.handlers["daskbatch_output"] = self._read_output
        worker.batched_send(
            {
                "op": "daskbatch-hello",
                "pid": os.getpid(),
                "owner": get_reaper().owner,
                "directory": "" if self._journals is None else str(self._journals.directory),
                "host": host_id(),
                "created": psutil.Process().create_time(),
                "ends": self._ends,
            }
        )

        if "SLURM_JOB_ID" in os.environ:
            threading.Thread(
                target=self._ask_end, args=[worker], name="daskbatch-end-time", daemon=True
            ).start()

    def _ask_end(self, worker: Worker) -> None:
        """Find out, in a thread, when the job of this worker ends, and report it."""
        ends = min(self._ends, ask_slurm())
        if ends != self._ends:
            self._ends = ends
            worker.loop.add_callback(worker.batched_send, {"op": "daskbatch-ends", "ends": ends})

    async def teardown(self, worker: Worker) -> None:
        """Stop all tasks, and end what this worker has started; called by Dask."""
        await self._departure.finish()
        self._departure.close()
        late = "daskbatch-revoke", "daskbatch-forget", "daskbatch-end"
        ignore_late_messages(worker.stream_handlers, *late)
        worker.handlers.pop("daskbatch_output", None)
        self._gangs.close()
        _machine_logger.removeFilter(self._is_worth_telling)
        if self._open_server is not None:
            self._open_server.close()
        # A worker that closes, or has lost its scheduler, must not continue its tasks.
        for run in list(self._runs.values()):
            run.stop_all()
        self._is_closed = True
        _close_pools()
        close_worker()
        if not self._runs:
            get_reaper().close()  # else it would end processes that tasks have left on purpose
        if self._journals is not None:
            self._journals.close()

    def _is_worth_telling(self, record: logging.LogRecord) -> bool:
        """Return False if Dask tells that it has cancelled a block which runs no member.

        It cancels the keys of a worker that closes before it calls `teardown`. Such a block has
        ended, or waits for members, or its thread has not begun it yet.
        """
        message = record.getMessage()
        if "ended with CancelledError" not in message:
            return True
        busy = {
            run.context.key
            for run in list(self._runs.values())
            if run.context is not None and not run.is_idle
        }
        return not any(
            repr(task.key) in message and task.key not in busy
            for task in self._worker.state.all_running_tasks
            if getattr(task.run_spec, "func", None) is run_on_worker
        )

    # -- the threads that run blocks (this is an `entry.Reporter`) ------------------------

    def begin(self, run: Progress) -> None:
        """Record that a block begins, and apply earlier revocations to it."""
        key = _key(run.spec)
        journal = None if self._journals is None else self._journals.take()
        if journal is not None:
            journal.begin(*key)
            run.journal = journal
        run.context = self._context(run)
        with self._lock:
            self._runs[key] = run
            if isinstance(run, OpenRun):
                self._open(run)
            if run.spec.topic in self._ended:
                run.stop_all()
            for member, status in self._revoked.get(key, {}).items():
                run.revoke([member], status)
            if not self._ticking:
                self._ticking = True
                self._worker.loop.add_callback(self._start_ticking)
        self._departure.note_begin(run)
        if self._ends != math.inf and not self._fits(run):
            run.defer_rest()

    def _fits(self, run: Progress) -> bool:
        """Return whether a block that begins is over, by its walltime, before this worker ends."""
        assert run.context is not None
        task = self._worker.state.tasks.get(run.context.key)
        walltime = ((task and task.annotations) or {}).get(_WALLTIME)
        return walltime is None or time() + walltime <= self._ends

    def _open(self, run: OpenRun) -> None:
        """Let the client of an open block connect; called with the lock held."""
        if self._open_server is None:
            try:
                self._open_server = OpenServer(self._worker, self._runs)
            except OSError as error:
                # The block closes when nobody has connected, and its client takes the ordinary way.
                _logger.warning("clients cannot connect to open blocks: %s", error)
                return
        run.watch = self._open_server
        report = OpenedReport(run.spec.block, self._open_server.address)
        self._worker.loop.add_callback(self._send_report, run.spec.topic, report)

    def _context(self, run: Progress) -> TaskContext:
        """Return the context of the members of a block that runs in this thread."""
        pool, dask_key = getattr(pool_state, "executor", None), thread_state.key
        began = thread_state.start_time
        slot: FixedSlot | PoolSlot = FixedSlot()
        # Not the block itself, which refers to its context: in a cycle, its values would stay in
        # memory until the garbage collector runs.
        running = weakref.ref(run)

        def on_release() -> None:
            run = running()
            if run is not None and run.spec.budget != math.inf:
                run.slot_released()
            event = SecedeEvent(
                key=dask_key, compute_duration=time() - began, stimulus_id=f"secede-{time()}"
            )
            self._worker.loop.add_callback(self._worker.handle_stimulus, event)

        if hasattr(pool, "_rejoin_list"):
            slot = PoolSlot(pool, threads_lock, on_release, self._helper.run)
        address = self._worker.scheduler.address
        context = TaskContext(
            *(slot, run.spec.topic, dask_key, address, self._security), worker=self._worker.address
        )
        self._gangs.begin(context)
        return context

    def end(self, run: Progress) -> None:
        """Record that a block is over, and have the event loop send its last reports."""
        slot = None if run.context is None else self._gangs.end(run.context)
        if isinstance(slot, PoolSlot):
            # The pool reads this to decide whether the thread ends.
            pool_state.proceed = slot.finish()
        if self._journals is not None and run.interrupted is None:
            if run.journal is not None:
                run.journal.set_running(-1)
            self._journals.give_back(run.journal)
        if self._is_closed:
            _close_pools()  # it may have taken another child since
        # On the event loop this runs before Dask's own work for a finished key. So a request to
        # revoke members of the block is answered either before this, and the answer says that
        # they have begun, or after the report that they are over.
        reported = None if run.slow_arguments is None else threading.Event()
        self._worker.loop.add_callback(self._finish, run, reported)
        if reported is not None:
            # No other thread runs while the arguments are freed.
            reported.wait(_MAX_REPORT_SECONDS)
            run.slow_arguments = None

    # -- the event loop -------------------------------------------------------------------

    def _start_ticking(self) -> None:
        self._worker.loop.call_later(_TICK_INTERVAL_SECONDS, self._tick)

    def _finish(self, run: Progress, reported: threading.Event | None) -> None:
        self._send(run)
        if reported is not None:
            self._worker.loop.call_later(_SENDING_SECONDS, reported.set)
        self._departure.report_end(run)
        with self._lock:
            # If Dask runs a key twice, the second run may begin before the first has ended.
            if self._runs.get(_key(run.spec)) is run:
                del self._runs[_key(run.spec)]

    def _tick(self) -> None:
        with self._lock:
            runs = list(self._runs.values())
            self._ticking = bool(runs)
        for run in runs:
            run.tick()
            if run.seconds_stopping() > self._stop_grace and run not in self._stuck:
                self._leave_slot(run)
            self._send(run)
        if runs:
            self._worker.loop.call_later(_TICK_INTERVAL_SECONDS, self._tick)

    def _leave_slot(self, run: Progress) -> None:
        """Leave the slot of a member that does not stop to others; it keeps its thread."""
        self._stuck.add(run)
        run.defer_rest()
        if run.context is not None:
            # In another thread: the lock of the pool may be held for a moment.
            slot = run.context.slot
            threading.Thread(target=slot.release, name="daskbatch-release", daemon=True).start()

    def _send(self, run: Progress) -> None:
        if not run.deliver():
            for report in run.reports():
                self._send_report(run.spec.topic, report)

    def _send_report(self, topic: str, report: Report) -> None:
        message = {"op": "daskbatch-report", "topic": topic, "report": pickle.dumps(report, 5)}
        self._worker.batched_send(message)

    def _revoke(
        self, topic: str, block: int, members: list[int], status: int, request: int, begun: bool
    ) -> None:
        """Revoke members of a block, even if the block is sent to this worker only later."""
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

    def _read_output(
        self, topic: str, block: int, member: int, name: str, position: int, most: int
    ) -> tuple[int, int, bytes] | None:
        """Return what a running member has written; None if it does not run here."""
        with self._lock:
            run = self._runs.get((topic, block))
        part = None if run is None else run.read_output(member, name, position, most)
        return None if part is None else (part.attempt, part.begin, part.data)

    def _end(self, topic: str) -> None:
        """Stop the tasks of a client that has ended, and begin no other one."""
        with self._lock:
            self._ended.add(topic)
            for run in self._runs.values():
                if run.spec.topic == topic:
                    run.stop_all()
            for key in [key for key in self._revoked if key[0] == topic]:
                del self._revoked[key]
        initialized_function.forget(topic)
        forget_later(topic)
        get_child_pool().end_initialized(topic)
        if (ranks := _rank_pool()) is not None:
            ranks.end_client(topic)

    def _forget(self, topic: str, blocks: list[int]) -> None:
        """Forget the revocations of blocks that are over."""
        with self._lock:
            for block in blocks:
                self._revoked.pop((topic, block), None)


def _survive_interrupts() -> None:
    """Keep an embedded worker alive if a task sends SIGINT to its own process.

    An embedded worker has no terminal, so that no user can send it SIGINT on purpose. But Dask
    would assume that the worker is to be closed, and would not start another one.
    """
    embedded = ADDED_VARIABLE in os.environ
    if embedded and threading.current_thread() is threading.main_thread():
        # A handler, not SIG_IGN: executables would inherit that, and ignore SIGINT, too.
        signal.signal(signal.SIGINT, lambda *_: None)


def _record_added_environment() -> None:
    """Record which variables the nanny has set for its worker alone, as OMP_NUM_THREADS.

    Variables that the nanny's own environment had already are the user's.
    """
    configured = dask.config.get("distributed.nanny.pre-spawn-environ", default=None) or {}
    found = [name for name, value in configured.items() if os.environ.get(name) == str(value)]
    try:
        before = Path(f"/proc/{os.getppid()}/environ").read_bytes().split(b"\0")
    except OSError:
        before = []
    names = {each.partition(b"=")[0].decode(errors="replace") for each in before}
    added = [name for name in found if name not in names]
    if added and ADDED_VARIABLE not in os.environ:
        os.environ[ADDED_VARIABLE] = ",".join(added)


def _close_pools() -> None:
    """End the children and the ranks of this process that are kept."""
    get_child_pool().close()
    if (ranks := _rank_pool()) is not None:
        ranks.close()


def _rank_pool() -> RankPool | None:
    """Return the ranks of this process; None if no job has run, since a worker starts without."""
    found = sys.modules.get("daskbatch.worker.mpi.rank_pool")
    return None if found is None else found.get_rank_pool()


def _key(spec: BlockSpec) -> tuple[str, int]:
    return spec.topic, spec.block
