"""The scheduler's plugin of daskbatch: forwards reports, and revokes members of blocks.

Does not know tasks: only topics, one for each client of a Batch, and blocks by number. Reports
are sent to the client that they concern and are not stored, unlike Dask's own events. All runs
on the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from time import time
from typing import Any

from distributed import Scheduler, SchedulerPlugin

from daskbatch.cluster.capacities import Capacities
from daskbatch.cluster.client_registry import ClientRegistry
from daskbatch.cluster.fair_share import FairShare
from daskbatch.cluster.futures.future_states import FutureStates
from daskbatch.cluster.gang_allocator import GangAllocator
from daskbatch.cluster.growth.demands import Demands
from daskbatch.cluster.leaving.departures import departures_of
from daskbatch.cluster.leaving.walltimes import Walltimes
from daskbatch.cluster.messages import (
    BatchEnded,
    BlockReported,
    ClientEvent,
    MembersRevoked,
    Registration,
    SlotsChanged,
    SummaryWanted,
    ValuesLost,
    WorkerUnfit,
    encode,
)
from daskbatch.cluster.versions.software import UnfitWorker
from daskbatch.cluster.versions.unfit_workers import UnfitWorkers, usable, usable_slots
from daskbatch.cluster.waiting_keys import WaitingKeys
from daskbatch.cluster.worker_loss import WorkerLossTracker, mark_lost, reset_suspicion
from daskbatch.dashboard.dashboard import Dashboard
from daskbatch.dashboard.task_times import TaskTime
from daskbatch.dispatch.key_names import NAMES, TOKEN
from daskbatch.dispatch.lower import TOPIC
from daskbatch.worker.future_value import STATE_ROUTE
from daskbatch.worker.inproc_scheduler import record_scheduler

PLUGIN_NAME = "daskbatch-service"

#: The name of the plugin for dictionaries and queues, which need not exist.
SHARED_PLUGIN_NAME = "daskbatch-shared"

#: The topic of events that concern all clients of a Batch.
BATCHES_TOPIC = "daskbatch-batches"

#: How long a worker may take to answer a revocation, before that counts as "not revoked".
_REVOKE_TIMEOUT_SECONDS = 5.0

#: The longest interval between two checks for silent clients.
_MAX_CHECK_INTERVAL_SECONDS = 1.0

#: How long a client that leaves may have to wait until shared objects have ended.
_END_TIMEOUT_SECONDS = 5.0

#: Of some members of a block: those that have begun on a worker, and those that it stops.
_RevokeAnswer = tuple[Sequence[int], Sequence[int]]


class BatchSchedulerPlugin(SchedulerPlugin):  # type: ignore[misc]
    """The scheduler's part of every Batch.

    Handlers that clients call:

    - ``daskbatch_register(client, topic, batch, where, founds)`` registers a client of a
      Batch, its creator if `founds` is set; returns a `Registration`, or None if the Batch
      does not exist or has ended.
    - ``daskbatch_unregister(topic, idle)`` removes a client. Returns nothing.
    - ``daskbatch_close(topic)`` records that a client starts no more tasks. Returns nothing.
    - ``daskbatch_join(topic, seconds)`` waits until a client is alone in its Batch, and then
      ends the Batch; returns descriptions of the other clients, or None if the client is
      not registered.
    - ``daskbatch_alive(client, ttl)`` is a heartbeat of a connection. Returns nothing.
    - ``daskbatch_revoke(topic, question, members, status, begun)`` revokes members of blocks.
      The answer is the event `MembersRevoked`.
    - ``daskbatch_forget(topic, blocks)`` drops revocations. Returns nothing.
    - ``daskbatch_capacities()`` returns the `Capacity` of each worker.
    - ``daskbatch_unfit()`` returns the `UnfitWorker` of each worker with other software.
    - ``daskbatch_gangs()`` returns what each gang waits for; see `GangAllocator.describe`.
    - ``daskbatch_future_state(key)`` returns where the result of a Dask future is.
    - ``daskbatch_unsuccessful(topic, withdrawn, failures, others, outside, ran)`` has Dask's
      dashboard show what it does not see of tasks; see `dispatch.unsuccessful`. Returns whether
      somebody has looked at its task stream.
    - ``daskbatch_summary(topic, summary)`` is the answer to `SummaryWanted`. Returns nothing.

    Stream handlers that workers call:

    - ``daskbatch-report(topic, report)``: a pickled `Report`; forwarded as `BlockReported`.
    - ``daskbatch-revoked(request, began, stopping)``: the answer to a revocation.
    - ``daskbatch-hello(pid, owner, directory, created, ends, host)``: the worker's process, where
      it keeps its journals, when it ends, and its host.
    - ``daskbatch-unfit(host, python, daskbatch)``: the worker has other software.
    - ``daskbatch-interrupted(topic, key, trace)``: a block was interrupted, since the worker
      leaves.
    - ``daskbatch-ends(ends)``: when the worker ends, if it has learnt that later.

    Messages to the streams of workers (see `worker.plugin.BatchWorkerPlugin`):
    ``daskbatch-revoke``, ``daskbatch-forget`` and ``daskbatch-end``. Messages to clients:
    the events of `cluster.messages`, as Dask's events of the client's topic.
    """

    name = PLUGIN_NAME
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        """Register the handlers."""
        self._scheduler = scheduler
        record_scheduler(scheduler)
        self._clients = ClientRegistry()
        self._checks_silence = False
        #: The revocations to send to workers that join: topic -> block -> member -> status.
        self._revoked: dict[str, dict[int, dict[int, int]]] = {}
        self._requests = itertools.count()
        self._answers: dict[tuple[int, str], asyncio.Future[_RevokeAnswer]] = {}
        self._worker_losses = WorkerLossTracker(scheduler)
        self._unfit = UnfitWorkers(scheduler, self._report_unfit)
        self._gangs = GangAllocator(scheduler)
        self._fair_share = FairShare(scheduler)
        self._capacities = Capacities(scheduler, self._worker_losses.end_of)
        self._walltimes = Walltimes(scheduler, self._worker_losses.end_of)
        self._future_states = FutureStates(scheduler)
        self._demands = Demands(scheduler)
        self._waiting_keys = WaitingKeys(scheduler, lambda: any(True for _ in self._clients))
        self._departures = departures_of(scheduler)
        self._departures.tracker = self._worker_losses
        self._departures.users.append(self._gangs.uses)
        self._background: set[asyncio.Task[None]] = set()
        self._dashboard = Dashboard(
            scheduler, self._clients, self._ask_for_summary, SHARED_PLUGIN_NAME
        )
        self._dashboard.connect()
        scheduler.stream_handlers.update(
            {
                "daskbatch-report": self._report,
                "daskbatch-revoked": self._answer,
                "daskbatch-hello": self._hello,
                "daskbatch-interrupted": self._interrupted,
                "daskbatch-ends": self._worker_losses.record_end,
            }
        )
        scheduler.handlers.update(
            {
                "daskbatch_register": self._register,
                "daskbatch_unregister": self._unregister,
                "daskbatch_close": self._close,
                "daskbatch_join": self._join,
                "daskbatch_alive": self._alive,
                "daskbatch_revoke": self._revoke,
                "daskbatch_forget": self._forget,
                "daskbatch_capacities": self._capacities.all,
                "daskbatch_gangs": self._gangs.describe,
                "daskbatch_unfit": self._unfit.all,
                STATE_ROUTE: self._future_states.state,
                "daskbatch_unsuccessful": self._unsuccessful,
                "daskbatch_summary": self._dashboard.record,
            }
        )
        restart = scheduler.handlers["restart"]

        @functools.wraps(restart)
        async def restart_without_holders(**options: Any) -> None:
            self._gangs.end_all()
            await restart(**options)

        scheduler.handlers["restart"] = restart_without_holders

    # -- clients --------------------------------------------------------------------------

    def _register(
        self, client: str, topic: str, batch: str, where: str, founds: bool
    ) -> Registration | None:
        """Register a client of a Batch; the Batch begins when its creator registers."""
        registered = self._clients.register(topic, batch, client, where, founds)
        if registered is None:
            return None
        self._waiting_keys.start()
        return Registration(
            *(registered.number, usable_slots(self._scheduler), self._worker_losses.hosts())
        )

    def _close(self, topic: str) -> None:
        """Record that a client starts no more tasks."""
        client = self._clients.find(topic)
        if client is not None:
            client.closed = True

    async def _join(self, topic: str, seconds: float) -> list[str] | None:
        """Wait until a client is the last of its Batch, and then end the Batch."""
        client = self._clients.find(topic)
        if client is None:
            return None
        others = await self._clients.wait_until_alone(topic, seconds)
        if not others:
            await _wait_ended(self._end_batch(client.batch))
        return [str(each) for each in others]

    async def _unregister(self, topic: str, idle: bool = False) -> None:
        """Remove a client; its tasks that have not begun will not begin.

        With the creator of a Batch all its clients are removed. A client that is `idle` has
        no unfinished tasks.
        """
        client = self._clients.find(topic)
        ending: list[asyncio.Task[None]] = []
        if client is not None and client.number == 0:
            ending = self._end_batch(client.batch)
        ending += self._remove(topic, idle)
        await _wait_ended(ending)

    def _remove(self, topic: str, idle: bool = False) -> list[asyncio.Task[None]]:
        """Remove a client; if its Batch ends with it, returns the tasks that end shared objects."""
        client = self._clients.remove(topic)
        if client is None:
            return []
        self._gangs.end_idle()
        self._demands.remove(topic)
        self._fair_share.remove(topic)
        self._dashboard.remove(topic)
        # Revoked members must not run, though the client no longer waits for them. And the
        # creator of a Batch may have left an executor's state in the workers' processes.
        if self._revoked.pop(topic, None) or not idle or client.number == 0:
            self._send_to_workers({"op": "daskbatch-end", "topic": topic})
        return self._end_batch(client.batch) if self._clients.is_empty(client.batch) else []

    def _end_batch(self, batch: str) -> list[asyncio.Task[None]]:
        """End a Batch for all its clients, and the shared objects that it has made.

        Returns the tasks that end the objects: until these are over, a client may still read
        from an object.
        """
        shared = self._scheduler.plugins.get(SHARED_PLUGIN_NAME)
        ending: list[asyncio.Task[None]] = [] if shared is None else shared.end_owned(batch)
        others = [each for each in self._clients.of_batch(batch) if each.number]
        for connection in self._clients.end_batch(batch):
            self._send(connection, BATCHES_TOPIC, BatchEnded(batch))
        for other in others:
            ending += self._remove(other.topic)
        return ending

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        """Remove the clients of a connection that has closed; called by Dask."""
        # The process may have crashed: the other clients go on, even without the creator.
        for each in self._clients.of_connection(client):
            self._remove(each.topic)
        self._clients.disconnected(client)

    def _alive(self, client: str, ttl: float) -> None:
        """Record a heartbeat of a connection, which may then be silent for `ttl` seconds."""
        self._clients.record_heartbeat(client, ttl)
        if not self._checks_silence:
            self._checks_silence = True
            self._run_in_background(self._check_silence())

    async def _check_silence(self) -> None:
        """Close the connections that are silent for too long, as if the clients had crashed."""
        while (seconds := self._clients.seconds_to_next_silence()) is not None:
            # Not for longer at once: a client with a shorter limit may register meanwhile.
            await asyncio.sleep(min(seconds, _MAX_CHECK_INTERVAL_SECONDS))
            for connection in self._clients.silent_connections():
                self._clients.disconnected(connection)
                comm = self._scheduler.client_comms.get(connection)
                if comm is not None:
                    # As if it had crashed. If the client still runs, it notices this.
                    comm.abort()
        self._checks_silence = False

    def _notify(self, topic: str, event: ClientEvent) -> None:
        """Send an event to the client of a topic, if it is registered."""
        client = self._clients.find(topic)
        if client is not None:
            self._send(client.connection, topic, event)

    def _send(self, connection: str, topic: str, event: ClientEvent) -> None:
        # Dask's client passes a message "event" to the handler of its topic.
        message = {"op": "event", "topic": topic, "event": (time(), encode(event))}
        self._scheduler.client_send(connection, message)

    # -- reports --------------------------------------------------------------------------

    def _report(self, topic: str, report: bytes, worker: str) -> None:
        """Forward a worker's report to the client that it concerns."""
        self._notify(topic, BlockReported(report))

    def _interrupted(self, topic: str, key: Any, trace: bytes, worker: str) -> None:
        """Notify a client that a block was interrupted, because its worker leaves."""
        self._notify(topic, self._worker_losses.event_of_interruption(key, trace, worker))

    def _hello(self, **process: Any) -> None:
        """Record the process of a worker that has joined, its host, and when it ends."""
        self._worker_losses.record_process(**process)
        self._unfit.record_fit(process["worker"])
        self._walltimes.retry_soon()
        self._send_slots()

    # -- workers --------------------------------------------------------------------------

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        """Send a worker that joins all revocations; called by Dask."""
        self._worker_losses.add_worker(worker)
        self._unfit.add_worker(worker)
        self._capacities.add_worker(worker)
        for topic, blocks in self._revoked.items():
            for block, members in blocks.items():
                for member, status in members.items():
                    self._scheduler.worker_send(
                        worker, _revocation(topic, block, [member], status, request=-1)
                    )
        self._gangs.add_worker(worker)
        self._send_slots()

    def _report_unfit(self, worker: UnfitWorker) -> None:
        """Notify all clients of a worker that can run none of their tasks."""
        for client in self._clients:
            self._notify(client.topic, WorkerUnfit(*worker))
        self._send_slots()

    def _run_in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- deaths ---------------------------------------------------------------------------
    #
    # In this order: Dask logs that it removes the worker (`log_event`), before it decides what
    # becomes of the worker's keys; then it calls `remove_worker`; then the nanny is asked what
    # the worker had done (`_report_death`).

    def log_event(self, topic: str, msg: Any) -> None:
        """Learn of a worker's death before Dask does anything about its keys; called by Dask."""
        if topic == "worker-restart-memory":
            self._worker_losses.record_out_of_memory(msg["worker"], msg["rss"])
        elif topic == "all" and isinstance(msg, dict) and msg.get("action") == "remove-worker":
            self._capacities.remove_worker(msg["worker"], died=not msg["expected"])
            self._protect_keys(
                msg["worker"], began=msg["processing-tasks"], computed=msg["lost-computed-tasks"]
            )

    def _protect_keys(self, worker: str, began: Iterable[Any], computed: Iterable[Any]) -> None:
        """Keep Dask from running the blocks of a dead worker again, and report lost values."""
        reset_suspicion(self._scheduler, began)
        began_keys = mark_lost(self._scheduler, began)
        lost_values = mark_lost(self._scheduler, computed)
        self._worker_losses.record_death(worker, began_keys)
        for topic, keys in lost_values.items():
            self._notify(topic, ValuesLost(keys))

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        """Complete the answers of a worker that has left, and report its death; called by Dask."""
        self._departures.remove_worker(worker)
        self._unfit.remove_worker(worker)
        for (_, address), answer in self._answers.items():
            # A member that had begun on a worker that died will not complete there.
            if address == worker and not answer.done():
                answer.set_result(((), ()))
        self._gangs.remove_worker()
        self._send_slots()
        self._run_in_background(self._report_death(worker))

    async def _report_death(self, worker: str) -> None:
        """Ask the worker's nanny what the worker had done, and tell each client concerned."""
        for topic, event in (await self._worker_losses.events_of_death(worker)).items():
            self._notify(topic, event)

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        """Keep Dask from running a released block again, and follow gangs; called by Dask."""
        self._unfit.transition(key, finish)
        self._gangs.transition(key, start, finish)
        if finish == "processing" and type(key) is tuple and str(key[0]).startswith(TOKEN):
            self._keep_token(key)
        self._walltimes.transition(key, finish)
        self._fair_share.transition(key, start, finish, kwargs.get("startstops") or ())
        self._future_states.transition(key, finish)
        self._dashboard.tasks.transition(key, finish)
        if start == "memory" and finish == "released":
            # No client needs the result. If a token of it is lost, Dask must not run it for that.
            mark_lost(self._scheduler, [key])

    def _keep_token(self, key: Any) -> None:
        """Have Dask make a token where the block's result is: else the result would move."""
        stealing = self._scheduler.extensions.get("stealing")
        if stealing is not None:
            stealing.remove_key_from_stealable(self._scheduler.tasks[key])

    def restart(self, scheduler: Scheduler) -> None:
        """Forget all gangs with the tasks that Dask has forgotten; called by Dask."""
        self._gangs.clear()
        self._fair_share.clear()
        self._dashboard.tasks.clear()

    # -- the dashboard --------------------------------------------------------------------

    def update_graph(
        self,
        scheduler: Scheduler,
        *,
        annotations: Mapping[str, Any],
        priority: Mapping[Any, Any],
        **kwargs: Any,
    ) -> None:
        """Have clients served in turn, and the dashboard show a graph; called by Dask."""
        self._fair_share.update_graph(annotations, priority)
        names = annotations.get(NAMES)
        if names:
            self._dashboard.tasks.add(names, annotations[TOPIC])

    def _unsuccessful(
        self,
        topic: str,
        withdrawn: Sequence[tuple[Any, Mapping[str, int]]],
        failures: Sequence[tuple[str, str, str]],
        others: Mapping[str, int],
        outside: Sequence[tuple[str, str, int]],
        ran: Sequence[Sequence[Any]],
    ) -> bool:
        """Have the dashboard count tasks of a client as not run, or as failed."""
        if self._clients.find(topic) is None:
            return False
        for key, names in withdrawn:
            self._dashboard.tasks.withdraw(topic, key, names)
        self._dashboard.tasks.fail(topic, failures, others)
        self._dashboard.tasks.change(topic, outside)
        return self._dashboard.times.add([TaskTime(*each) for each in ran])

    def _ask_for_summary(self, topic: str) -> None:
        self._notify(topic, SummaryWanted())

    # -- slots ----------------------------------------------------------------------------

    def _send_slots(self) -> None:
        changed = SlotsChanged(usable_slots(self._scheduler), self._worker_losses.hosts())
        for client in self._clients:
            self._notify(client.topic, changed)

    def _send_to_workers(self, message: dict[str, Any]) -> None:
        for address in list(self._scheduler.workers):
            self._scheduler.worker_send(address, message)

    # -- revocations ----------------------------------------------------------------------

    async def _revoke(
        self,
        topic: str,
        question: int,
        members: Mapping[int, Sequence[int]],
        status: int,
        begun: bool,
    ) -> None:
        """Revoke members of blocks, and send the client which of them will not run.

        Every worker receives the revocation, and so does each worker that joins later. So no
        worker begins the members, wherever Dask has sent, will send, or will move the block.
        If a member cannot be revoked, it has begun on a worker that answers so, or it is over.
        Then the client receives its report before the answer, because both travel on the same
        stream, in order.
        """
        waiting: dict[int, list[asyncio.Future[_RevokeAnswer]]] = {}
        for block, some in members.items():
            revoked_members = self._revoked.setdefault(topic, {}).setdefault(block, {})
            revoked_members.update(dict.fromkeys(some, status))
            waiting[block] = []
            for worker in list(usable(self._scheduler, self._scheduler.workers.values())):
                address = worker.address
                request = next(self._requests)
                answer: asyncio.Future[_RevokeAnswer] = asyncio.get_running_loop().create_future()
                self._answers[request, address] = answer
                waiting[block].append(answer)
                self._scheduler.worker_send(
                    address, _revocation(topic, block, some, status, request, begun)
                )
        all_answers = [answer for answers in waiting.values() for answer in answers]
        try:
            if all_answers:
                await asyncio.wait(all_answers, timeout=_REVOKE_TIMEOUT_SECONDS)
            not_begun = {
                block: _not_begun(members[block], answers) for block, answers in waiting.items()
            }
            stopping = {
                block: [m for a in answers if a.done() for m in a.result()[1]]
                for block, answers in waiting.items()
            }
            self._notify(topic, MembersRevoked(question, not_begun, stopping))
        finally:
            self._answers = {k: a for k, a in self._answers.items() if a not in all_answers}

    def _answer(
        self, request: int, began: Sequence[int], stopping: Sequence[int], worker: str
    ) -> None:
        """Record a worker's answer to a revocation."""
        answer = self._answers.get((request, worker))
        if answer is not None and not answer.done():
            answer.set_result((began, stopping))

    def _forget(self, topic: str, blocks: Sequence[int]) -> None:
        """Drop the revocations of blocks that are over."""
        for block in blocks:
            self._revoked.get(topic, {}).pop(block, None)
        self._send_to_workers({"op": "daskbatch-forget", "topic": topic, "blocks": blocks})


def _revocation(
    topic: str,
    block: int,
    members: Sequence[int],
    status: int,
    request: int,
    begun: bool = True,
) -> dict[str, Any]:
    """Return the message that revokes members of a block on a worker."""
    return {
        "op": "daskbatch-revoke",
        "topic": topic,
        "block": block,
        "members": list(members),
        "status": status,
        "request": request,
        "begun": begun,
    }


def _not_begun(
    members: Sequence[int], answers: Sequence[asyncio.Future[_RevokeAnswer]]
) -> list[int]:
    """Return the members that no worker has begun; none of them if an answer is missing."""
    if not all(answer.done() for answer in answers):
        return []
    began = {member for answer in answers for member in answer.result()[0]}
    return [member for member in members if member not in began]


async def _wait_ended(ending: Sequence[asyncio.Task[None]]) -> None:
    """Wait until shared objects have ended, but not for ever for a worker without an answer."""
    if ending:
        await asyncio.wait(ending, timeout=_END_TIMEOUT_SECONDS)
