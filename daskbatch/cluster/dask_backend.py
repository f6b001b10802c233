"""The client's end of a Dask cluster: submits graphs, watches keys, revokes members.

Does not know tasks: it calls a `backend.Listener` with all that it receives. It implements
`backend.Backend`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import pickle
import ssl
import weakref
from collections.abc import Callable, Mapping, Sequence
from time import monotonic
from typing import Any, Protocol

import dask
from dask._expr import HLGExpr
from distributed import Client
from distributed.scheduler import KilledWorker
from distributed.spans import SpanMetadata
from distributed.utils import set_thread_state

from daskbatch import config
from daskbatch.cluster.cancelled_keys import CancelledKeys, reason_of
from daskbatch.cluster.connection import register, require_same_software
from daskbatch.cluster.membership import UNREACHABLE_ERRORS, Membership
from daskbatch.cluster.messages import (
    BatchEnded,
    BlockReported,
    MembersRevoked,
    SlotsChanged,
    SummaryWanted,
    ValuesLost,
    WorkerDied,
    WorkerUnfit,
    decode,
)
from daskbatch.cluster.open_links import OpenLinks
from daskbatch.cluster.versions.guarded_plugins import (
    GuardedNannyPlugin,
    GuardedSchedulerPlugin,
    GuardedWorkerPlugin,
)
from daskbatch.cluster.versions.software import UnfitWorker, warning
from daskbatch.dispatch.backend import InputsTooLarge, Listener, Members, RevokeCallback
from daskbatch.dispatch.lower import Lowered
from daskbatch.dispatch.requirements import Capacity
from daskbatch.dispatch.task_record import SubmittedBlock
from daskbatch.dispatch.unsuccessful import Unsuccessful
from daskbatch.errors import BatchError, ServiceLost, WorkerLost
from daskbatch.forking import after_fork, make_lock
from daskbatch.memory.host import host_id
from daskbatch.worker.execution.outcome import BlockResult, Status

#: Switches off Dask's warning of graphs over 10 MB: its advice does not apply to ours.
_NO_WARNING = {"distributed.admin.large-graph-warning-threshold": "1TB"}

_logger = logging.getLogger("daskbatch")

#: Held while Dask's configuration is changed, since all threads share it.
_config_lock = make_lock()

# A thread of the parent may hold Dask's own lock at a fork.
after_fork(dask.config.config_lock._at_fork_reinit)

#: Graphs that are submitted within this time of each other are of one generation.
_SAME_GENERATION = "1 h"

#: How long a future is kept that is no longer needed. If it were released at once, that would
#: delay the next submission.
_LINGER_SECONDS = 0.05

#: How much later than the end of its key the reports of an open block may arrive, and how often
#: the client looks for them.
_LATE_REPORTS_SECONDS, _LATE_REPORTS_POLL_SECONDS = 0.5, 0.002

#: How long an answer of the scheduler may take to arrive.
_ANSWER_TIMEOUT_SECONDS = 5.0


class WorkerListener(Protocol):
    """An object that is notified when workers have joined or left."""

    def workers_changed(self) -> None:
        """Note that workers have joined or left; called on Dask's event loop."""


class ClusterBackend:
    """A Dask cluster as a `backend.Backend`. Any thread may use it.

    Parameters
    ----------
    client : distributed.Client
        The connection to it.
    topic : str
        The topic of the events for this client.
    task_key : object, optional
        The key of the Dask task that this client is, if it is one. Dask serves what the task
        submits before all that was submitted after the task itself.
    """

    def __init__(self, client: Client, topic: str, task_key: Any = None) -> None:
        self.client = client
        #: The number of slots now, and the largest one so far: clusters grow and shrink.
        self.slots = self.most_slots = 0
        #: Whether all workers can map this process's memory.
        self.shares_memory = False
        self.membership = Membership(client, topic)
        self._cancelled_keys = CancelledKeys(client, self.membership, self._call_guarded)
        self._task_key = task_key
        #: The futures of buffers, and of the blocks whose results may still be needed.
        self._futures: weakref.WeakSet[Any] = weakref.WeakSet()
        self._topic = topic
        self._questions = itertools.count()
        self._callbacks: dict[int, RevokeCallback] = {}
        self._listener: Listener | None = None
        #: How often workers have joined or left; what they offered, and when that was asked.
        self._worker_changes = 0
        self._known_capacities: tuple[int, list[Capacity]] = -1, []
        #: The workers with other software that have joined, by address; they may have left again.
        self.unfit: dict[str, UnfitWorker] = {}
        #: The objects that are notified when workers have joined or left.
        self.worker_listeners: weakref.WeakSet[WorkerListener] = weakref.WeakSet()
        #: Called on Dask's event loop when workers have joined or left, and there is no slot.
        self.on_no_slots: Callable[[], None] = lambda: None
        #: Called on Dask's event loop when somebody looks at the page /daskbatch.
        self.on_summary_wanted: Callable[[], None] = lambda: None
        #: The futures of keys that are over, kept for `_LINGER_SECONDS`.
        self._lingering: list[Any] = []
        #: The direct connections with open blocks.
        self.open_links = (
            OpenLinks(topic, self._call_guarded, self._tls_context)
            if config.get("open-blocks")
            else None
        )

    def _tls_context(self) -> ssl.SSLContext | None:
        context = self.client.security.get_connection_args("client").get("ssl_context")
        return context if isinstance(context, ssl.SSLContext) else None

    def prepare(self, is_embedded: bool = False) -> None:
        """Register the plugins of the scheduler, nannies and workers.

        Parameters
        ----------
        is_embedded : bool
            Whether this process has started the cluster, which then has the same software.

        Raises
        ------
        BatchError
            The scheduler or a worker has another Python or another daskbatch, or none.
        """
        plugins = GuardedNannyPlugin(), GuardedSchedulerPlugin(), GuardedWorkerPlugin()
        register(self.client, *plugins)
        if not is_embedded:
            require_same_software(self.client)

    def connect(
        self,
        listener: Listener,
        batch: str,
        is_creator: bool,
        on_loss: Callable[[ServiceLost], None],
    ) -> int:
        """Register as a client of a Batch; returns its number there.

        Parameters
        ----------
        listener : Listener
            Receives what happens to blocks and workers.
        batch, is_creator, on_loss
            See `Membership.register`, also for the exceptions.
        """
        self._listener = listener
        if self.open_links is not None:
            self.open_links.listener = listener
        registration = self.membership.register(batch, is_creator, self._receive, on_loss)
        self.slots = registration.slots
        self.most_slots = max(self.most_slots, self.slots)
        self.shares_memory = _is_here(registration.hosts)
        return registration.number

    def disconnect(self, idle: bool = False) -> None:
        """Unregister, and receive nothing more; see `Membership.unregister`."""
        self._listener = None
        if self.open_links is not None:
            self.open_links.close()
        for future in list(self._futures):
            future.release()
        self.membership.unregister(idle)

    def _receive(self, event: tuple[float, Any]) -> None:
        """Pass an event of the scheduler to the listener; called on Dask's event loop."""
        message = decode(event[1])
        listener = self._listener
        if isinstance(message, SlotsChanged):
            self.slots = message.slots
            self.most_slots = max(self.most_slots, self.slots)
            self.shares_memory = _is_here(message.hosts)
            self._worker_changes += 1
            if not self.slots:
                self._call_guarded(self.on_no_slots)
            for each in list(self.worker_listeners):
                self._call_guarded(each.workers_changed)
        if listener is None:
            return
        match message:
            case BlockReported(report):
                self._call_guarded(listener.report, report)
            case MembersRevoked(question, not_begun, stopping):
                self._answer(question, not_begun, stopping)
            case ValuesLost(keys):
                self._call_guarded(listener.values_lost, keys)
            case WorkerDied(keys, details, traces, planned):
                found = None if traces is None else pickle.loads(traces)
                self._call_guarded(listener.worker_died, keys, details, found, planned)
            case SummaryWanted():
                self._call_guarded(self.on_summary_wanted)
            case WorkerUnfit():
                self._note_unfit(UnfitWorker(*message))
            case SlotsChanged():
                self._call_guarded(listener.slots_changed)
            case BatchEnded():
                pass

    def _note_unfit(self, worker: UnfitWorker) -> None:
        """Log that a worker has other software, once for each host and software."""
        if worker[1:] not in {each[1:] for each in self.unfit.values()}:
            _logger.warning("%s", warning(worker))
        self.unfit[worker.address] = worker

    def submit(self, lowered: Lowered, again: bool) -> Mapping[str, Any]:
        """Submit a graph and set the future of each block; see `Submitter.submit`."""
        keys = [*lowered.blocks, *lowered.buffers]
        parent = {} if self._task_key is None else {"key": self._task_key}
        with _config_lock, dask.config.set(_NO_WARNING), set_thread_state(**parent):
            # Dask serves one generation of graphs after the other. Each graph is a new
            # generation: first come, first served. But tasks that were submitted before keep
            # their turn.
            timeout = _SAME_GENERATION if again else 0
            # As `Client.get` does, which takes no order.
            futures = self.client._graph_to_futures(
                expr=HLGExpr(lowered.graph),
                keys=keys,
                span_metadata=SpanMetadata(collections=[{"type": "low-level-graph"}]),
                internal_priority=lowered.order,
                fifo_timeout=timeout,
            )
        for key, block in lowered.blocks.items():
            block.future = futures[key]
            self.client.loop.add_callback(self._watch, block, futures[key])
        self._futures.update(futures.values())
        return {key: futures[key] for key in lowered.buffers}

    def capacities(self, fresh: bool = False) -> list[Capacity]:
        """Return what the present workers offer.

        Parameters
        ----------
        fresh : bool
            Whether the scheduler must be asked. If not, the last answer will do, unless workers
            have joined or left since: this saves a round trip for each task.
        """
        asked_at, known = self._known_capacities
        now = self._worker_changes
        if fresh or asked_at != now:
            found = self.client.sync(self.client.scheduler.daskbatch_capacities)
            known = [Capacity(*each) for each in found]
            self._known_capacities = now, known
        return known

    def gangs(self) -> list[dict[str, Any]]:
        """Return what each gang waits for; asks the scheduler. See `GangAllocator.describe`."""
        return list(self.client.sync(self.client.scheduler.daskbatch_gangs))

    def capacities_later(self, seconds: float, then: Callable[[list[Capacity]], None]) -> None:
        """Call a function, after some seconds, with what the workers offer then."""

        async def ask() -> None:
            await asyncio.sleep(seconds)
            if self.client.status != "running":
                return
            with contextlib.suppress(*UNREACHABLE_ERRORS):
                found = await self.client.scheduler.daskbatch_capacities()
                self._call_guarded(then, [Capacity(*each) for each in found])

        self.client.loop.add_callback(ask)

    def read_output(self, worker: str, **question: Any) -> tuple[int, int, bytes] | None:
        """Ask a worker what a running member has written; None if it does not run there.

        Parameters
        ----------
        worker : str
            The address of the worker.
        **question
            The parameters of `BatchWorkerPlugin._read_output`, without the topic.
        """
        message = {"op": "daskbatch_output", "topic": self._topic, **question}
        with contextlib.suppress(*UNREACHABLE_ERRORS, Exception):
            found: tuple[int, int, bytes] | None = self.client.sync(
                self.client.scheduler.proxy,
                msg=message,
                worker=worker,
                callback_timeout=_ANSWER_TIMEOUT_SECONDS,
            )
            return found
        return None

    def require_alive(self) -> None:
        """Raise `ServiceLost` if the cluster, or the registration there, is gone."""
        self.membership.require_registered()

    def has_cancelled(self, block: SubmittedBlock) -> bool:
        """Return whether the key of a block was cancelled; see `Backend.has_cancelled`."""
        future = block.future
        if self._listener is None or future is None or future.status != "cancelled":
            return False
        self.membership.check()
        return not self.membership.is_lost

    async def _watch(self, block: SubmittedBlock, future: Any) -> None:
        """Wait for a key on the client's event loop, and notify the listener of its end.

        `Future.add_done_callback` would call from a thread pool, which no longer runs anything
        when the interpreter ends.
        """
        while future.status in ("pending", "lost"):
            await future._state.wait()
        result: BlockResult | None = None
        error: BaseException | None = None
        if future.status == "error":
            error = _as_batch_error(await future.exception())
        elif future.status != "finished":
            # Unless this client has released it, somebody else has cancelled it.
            if block.future is not None:
                if self._listener is not None:
                    reason = reason_of(future)
                    await self._cancelled_keys.report(block, reason, self._listener)
                return
        elif await self._has_unreported(block):
            # The key has all outcomes, and the values with them.
            try:
                result = await future
            except Exception as failure:
                error = _as_batch_error(failure)
        if not self._lingering:
            self.client.loop.call_later(_LINGER_SECONDS, self._lingering.clear)
        self._lingering.append(future)
        if self._listener is not None:
            self._call_guarded(self._listener.key_finished, block, result, error)

    async def _has_unreported(self, block: SubmittedBlock) -> bool:
        """Return whether members of a block, whose key is over, were not reported.

        The reports of an open block have a connection of their own, and may arrive a little later.
        """
        if block.open:
            end = monotonic() + _LATE_REPORTS_SECONDS
            while block.unfinished and monotonic() < end:
                await asyncio.sleep(_LATE_REPORTS_POLL_SECONDS)
        return block.unfinished > 0

    def _call_guarded(self, function: Callable[..., None], *args: Any) -> None:
        # If a function of ours raised, Dask's event loop would only log that, and threads that
        # wait for tasks would wait for ever.
        try:
            function(*args)
        except Exception as error:
            _logger.exception("daskbatch lost track of its tasks; this is a bug of daskbatch")
            if self._listener is not None:
                lost = BatchError(f"daskbatch lost track of this task: {error!r}")
                self._listener.give_up(lost)

    def revoke(
        self, members: Members, status: Status, then: RevokeCallback, begun: bool = True
    ) -> None:
        """Withdraw members of blocks; see `Backend.revoke`."""
        question = next(self._questions)
        self._callbacks[question] = then

        async def ask() -> None:
            await self._call(
                "daskbatch_revoke",
                question=question,
                members=dict(members),
                status=int(status),
                begun=begun,
            )
            # The answer arrives as an event. After this time it will not arrive: the scheduler is
            # gone, or this client is no longer registered there.
            self.client.loop.call_later(_ANSWER_TIMEOUT_SECONDS, self._answer, question, {}, {})

        self.client.loop.add_callback(ask)

    def _answer(self, question: int, not_begun: Members, stopping: Members) -> None:
        """Call the callback of a revocation, once."""
        then = self._callbacks.pop(question, None)
        if then is not None:
            self._call_guarded(then, not_begun, stopping)

    def release(self, block: SubmittedBlock) -> None:
        """Drop this client's interest in a block; see `Backend.release`."""
        future, block.future = block.future, None
        if future is not None:
            future.release()

    def forget(self, blocks: Sequence[int]) -> None:
        """Drop the revocations of blocks that are over."""
        self.client.loop.add_callback(self._tell, "daskbatch_forget", blocks=list(blocks))

    def show_unsuccessful(self, tasks: Unsuccessful, then: Callable[[bool], None]) -> None:
        """Have Dask's dashboard count tasks as not run, or as failed.

        Parameters
        ----------
        tasks : Unsuccessful
            The tasks.
        then : callable
            Called, on Dask's event loop, with whether somebody looks at the task stream.
        """

        async def show() -> None:
            shown = await self._tell(
                "daskbatch_unsuccessful",
                withdrawn=[(key, dict(names)) for key, names in tasks.withdrawn.items()],
                failures=[*map(tuple, tasks.failures)],
                others=dict(tasks.others),
                outside=[(*key, count) for key, count in tasks.outside.items() if count],
                ran=list(tasks.ran),
            )
            then(shown is True)

        self.client.loop.add_callback(show)

    def send_summary(self, summary: str) -> None:
        """Send the scheduler what the page /daskbatch shows of this client."""
        self.client.loop.add_callback(self._tell, "daskbatch_summary", summary=summary)

    async def _tell(self, route: str, **message: Any) -> Any:
        """Call a handler of the scheduler, if the client is connected; see `_call`."""
        if self.client.status == "running":
            return await self._call(route, **message)
        return None

    async def _call(self, route: str, **message: Any) -> Any:
        """Call a handler of the scheduler; return its answer, or None if it cannot be reached."""
        scheduler = self.client.scheduler  # None once the client is closed
        if scheduler is not None:
            with contextlib.suppress(*UNREACHABLE_ERRORS):
                return await getattr(scheduler, route)(topic=self._topic, **message)
        return None

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call a function on Dask's event loop after some seconds."""
        loop = self.client.loop
        loop.add_callback(loop.call_later, seconds, self._call_guarded, function)


def _is_here(hosts: Sequence[str]) -> bool:
    """Return whether all of the hosts are that of this process."""
    return bool(host_id()) and set(hosts) == {host_id()}


def _as_batch_error(error: BaseException) -> BaseException:
    """Return `WorkerLost` if Dask has given a key up, else the error itself."""
    if isinstance(error, KilledWorker):
        last = "" if error.last_worker is None else f", the last at {error.last_worker.address}"
        lost = WorkerLost(f"{error.allowed_failures + 1} workers died under it{last}")
        lost.__cause__ = error
        return lost
    # Of Dask's scheduler: no worker was asked to run the key.
    if isinstance(error, MemoryError) and "worth of input dependencies" in str(error):
        return InputsTooLarge(str(error))
    return error
