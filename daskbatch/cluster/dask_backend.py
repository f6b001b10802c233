"""The client's end of a Dask cluster: submits graphs, hears of keys, revokes members.

Does not know tasks; what it hears it tells a dispatcher. It is a `backend.Backend`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import pickle
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import dask
from distributed import Client
from distributed.scheduler import KilledWorker
from distributed.utils import set_thread_state

from daskbatch.cluster.connection import register
from daskbatch.cluster.membership import GONE, Membership
from daskbatch.cluster.nanny_plugin import BatchNannyPlugin
from daskbatch.cluster.scheduler_plugin import BatchService
from daskbatch.dispatch.backend import Answered, Listener, Members
from daskbatch.dispatch.lower import Lowered
from daskbatch.dispatch.placement import SubmittedBlock
from daskbatch.dispatch.requirements import Capacity
from daskbatch.errors import BatchError, ServiceLost, WorkerLost
from daskbatch.worker.cores import CoresPlugin
from daskbatch.worker.execution.outcome import BlockResult, Status
from daskbatch.worker.plugin import BatchWorkerPlugin

#: Dask warns of graphs over 10 MB, with advice that does not apply to ours.
_NO_WARNING = {"distributed.admin.large-graph-warning-threshold": "1TB"}


_logger = logging.getLogger("daskbatch")

#: Dask's configuration is one for all threads.
_setting_config = threading.Lock()


def _free_locks() -> None:
    # Whoever has them at a fork is a thread of the parent.
    locks: list[Any] = [_setting_config, dask.config.config_lock]
    for lock in locks:
        lock._at_fork_reinit()


os.register_at_fork(after_in_child=_free_locks)

#: Graphs that follow each other faster than this are of one generation.
_SAME_GENERATION = "1 h"

#: How long a future is kept that nobody wants any more: to give it back at once would be in the
#: way of what is submitted next. Seconds.
_LINGER_SECONDS = 0.05

#: How long an answer may be on its way from the scheduler. Seconds.
_ANSWER_SECONDS = 5.0


class WorkerListener(Protocol):
    """Something that is told when workers have come or gone, on Dask's event loop."""

    def workers_changed(self) -> None: ...


class ClusterBackend:
    """A Dask cluster as a `backend.Backend`.

    Parameters
    ----------
    client : distributed.Client
        Connected to it.
    topic : str
        Under which this client is told of its blocks.
    within : object, optional
        The key of the Dask task that this client is in. What it submits is served before what
        has been submitted since that was.
    """

    def __init__(self, client: Client, topic: str, within: Any = None) -> None:
        self.client = client
        self.slots = 0
        self.membership = Membership(client, topic)
        self._within = within
        self._address = client.scheduler.address
        #: Of the blocks whose results somebody may still ask for, and of buffers.
        self._futures: weakref.WeakSet[Any] = weakref.WeakSet()
        self._topic = topic
        self._questions = itertools.count()
        self._asked: dict[int, Answered] = {}
        self._listener: Listener | None = None
        #: Told when workers have come or gone.
        self.worker_watches: weakref.WeakSet[WorkerListener] = weakref.WeakSet()
        #: Futures of keys that are over, for a while.
        self._lingering: list[Any] = []

    def prepare(self) -> None:
        """Have the scheduler, nannies and workers do their part; raises `BatchError`."""
        register(self.client, BatchNannyPlugin(), BatchService(), BatchWorkerPlugin())

    def connect(
        self,
        listener: Listener,
        batch: str,
        founds: bool,
        on_loss: Callable[[ServiceLost], None],
    ) -> int:
        """Become a client of a Batch; returns its number there. See `Membership.take`.

        Parameters
        ----------
        listener : Listener
            Who is told of reports, of keys and of workers.
        batch, founds, on_loss
            See there.
        """
        self._listener = listener
        number, self.slots = self.membership.take(batch, founds, self._heard, on_loss)
        return number

    def disconnect(self, idle: bool = False) -> None:
        """Be no client any more, and hear no more; see `Membership.give_up`."""
        self._listener = None
        for future in list(self._futures):
            future.release()
        self.membership.give_up(idle)

    def _heard(self, event: tuple[float, Any]) -> None:
        _, message = event
        listener = self._listener
        if isinstance(message, int):
            self.slots = message
            for watch in list(self.worker_watches):
                self._guard(watch.workers_changed)
        elif listener is None:
            return
        elif isinstance(message, bytes):
            self._guard(listener.report, message)
        elif "question" in message:
            self._answered(message["question"], message["revoked"], message["stopping"])
        elif "gone" in message:
            self._guard(listener.values_gone, message["gone"])
        else:
            traces = None if message["traces"] is None else pickle.loads(message["traces"])
            self._guard(listener.worker_died, message["died"], message["why"], traces)

    def submit(self, lowered: Lowered, again: bool) -> Mapping[str, Any]:
        keys = [*lowered.blocks, *lowered.buffers]
        within = {} if self._within is None else {"key": self._within}
        with _setting_config, dask.config.set(_NO_WARNING), set_thread_state(**within):
            # Dask serves one generation of graphs after the other: a new one each time, so
            # that whoever submits first is served first, but for what was submitted before.
            timeout = _SAME_GENERATION if again else 0
            futures = dict(
                zip(
                    keys,
                    self.client.get(lowered.graph, keys, sync=False, fifo_timeout=timeout),
                    strict=True,
                )
            )
        for key, block in lowered.blocks.items():
            block.future = futures[key]
            self.client.loop.add_callback(self._watch, block, futures[key])
        self._futures.update(futures.values())
        return {key: futures[key] for key in lowered.buffers}

    def capacities(self) -> list[Capacity]:
        """Ask what the workers have that are there now."""
        found = self.client.sync(self.client.scheduler.daskbatch_capacities)
        return [Capacity(*each) for each in found]

    def reserve_cores(self) -> None:
        """Have each worker, also those to come, offer its threads as the resource `CORES`."""
        self.client.register_plugin(CoresPlugin())

    def capacities_later(self, seconds: float, then: Callable[[list[Capacity]], None]) -> None:
        """Ask that after some time, and tell."""

        async def ask() -> None:
            await asyncio.sleep(seconds)
            if self.client.status != "running":
                return
            with contextlib.suppress(*GONE):
                found = await self.client.scheduler.daskbatch_capacities()
                self._guard(then, [Capacity(*each) for each in found])

        self.client.loop.add_callback(ask)

    def require_alive(self) -> None:
        self.membership.require()

    async def _watch(self, block: SubmittedBlock, future: Any) -> None:
        """Wait for a key on the client's event loop, and tell what became of it.

        `Future.add_done_callback` would call from a thread pool, which does nothing any
        more when the interpreter ends.
        """
        while future.status in ("pending", "lost"):
            await future._state.wait()
        result: BlockResult | None = None
        error: BaseException | None = None
        if future.status == "error":
            error = _as_own(await future.exception())
        elif future.status != "finished":
            # Unless it was released here, nobody else's cancelling but the cluster's end does it.
            if block.future is not None:
                self._guard(self.membership.look)
                error = ServiceLost(f"its key is {future.status}")
        elif block.left:
            # Not all was reported; the key has it all.
            try:
                result = await future
            except Exception as failure:
                error = _as_own(failure)
        if not self._lingering:
            self.client.loop.call_later(_LINGER_SECONDS, self._lingering.clear)
        self._lingering.append(future)
        if self._listener is not None:
            self._guard(self._listener.key_over, block, result, error)

    def _guard(self, function: Callable[..., None], *args: Any) -> None:
        # On Dask's event loop an error of ours would be logged, and whoever waits would wait
        # for ever.
        try:
            function(*args)
        except Exception as error:
            _logger.exception("daskbatch lost track of its tasks; this is a bug of daskbatch")
            if self._listener is not None:
                lost = BatchError(f"daskbatch lost track of this task: {error!r}")
                self._listener.give_up(lost)

    def revoke(self, members: Members, status: Status, then: Answered, begun: bool = True) -> None:
        question = next(self._questions)
        self._asked[question] = then

        async def ask() -> None:
            with contextlib.suppress(*GONE):
                await self.client.scheduler.daskbatch_revoke(
                    topic=self._topic,
                    question=question,
                    members=dict(members),
                    status=int(status),
                    begun=begun,
                )
            # By then the answer has come, unless the scheduler is gone, or there is no client
            # any more that it knows.
            self.client.loop.call_later(_ANSWER_SECONDS, self._answered, question, {}, {})

        self.client.loop.add_callback(ask)

    def _answered(self, question: int, revoked: Members, stopping: Members) -> None:
        then = self._asked.pop(question, None)
        if then is not None:
            self._guard(then, revoked, stopping)

    def release(self, block: SubmittedBlock) -> None:
        future, block.future = block.future, None
        if future is not None:
            future.release()

    def forget(self, blocks: Sequence[int]) -> None:
        self.client.loop.add_callback(
            self.client.scheduler.daskbatch_forget, topic=self._topic, blocks=list(blocks)
        )

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        loop = self.client.loop
        loop.add_callback(loop.call_later, seconds, self._guard, function)


def _as_own(error: BaseException) -> BaseException:
    """Say in our words what became of a key that Dask gave up."""
    if isinstance(error, KilledWorker):
        last = "" if error.last_worker is None else f", the last at {error.last_worker.address}"
        lost = WorkerLost(f"{error.allowed_failures + 1} workers died under it{last}")
        lost.__cause__ = error
        return lost
    return error
