"""The part of daskbatch that lives on the scheduler: passes reports and revocations on.

Does not know tasks: only topics (one for each client of a Batch) and blocks by number.
Reports go to the client that they concern and are not kept, unlike Dask's own events.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Mapping, Sequence
from time import time
from typing import Any

from distributed import Scheduler, SchedulerPlugin

from daskbatch.cluster.client_registry import ClientRegistry
from daskbatch.cluster.worker_loss import WorkerLossTracker, mark_lost, reset_suspicion
from daskbatch.dispatch.requirements import Capacity

PLUGIN_NAME = "daskbatch-service"

#: The plugin that knows dictionaries and queues, if there is one.
SHARED_PLUGIN_NAME = "daskbatch-shared"

#: The topic of what concerns all clients of a Batch.
BATCHES = "daskbatch-batches"

#: How long a worker may take to answer that members are revoked, before that counts as "no".
ANSWER_SECONDS = 5.0

#: How often is looked, at the least, whether a client has been silent for too long.
_LOOK_SECONDS = 1.0

#: How long who leaves may have to wait until shared objects have ended. Seconds.
_ENDING_SECONDS = 5.0

#: Of some members of a block, those that have begun on a worker, and those of them that it stops.
Answer = tuple[Sequence[int], Sequence[int]]


class BatchSchedulerPlugin(SchedulerPlugin):  # type: ignore[misc]
    """The scheduler's side of every Batch on it."""

    name = PLUGIN_NAME
    idempotent = True

    async def start(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._clients = ClientRegistry()
        self._listening = False
        #: What workers are yet to be told: topic -> block -> member -> status.
        self._revoked: dict[str, dict[int, dict[int, int]]] = {}
        self._requests = itertools.count()
        self._answers: dict[tuple[int, str], asyncio.Future[Answer]] = {}
        self._worker_losses = WorkerLossTracker(scheduler)
        self._working: set[asyncio.Task[None]] = set()
        scheduler.stream_handlers.update(
            {
                "daskbatch-report": self._report,
                "daskbatch-revoked": self._answer,
                "daskbatch-hello": self._worker_losses.hello,
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
                "daskbatch_capacities": self._capacities,
            }
        )

    # -- clients --------------------------------------------------------------------------

    def _register(
        self, client: str, topic: str, batch: str, where: str, founds: bool
    ) -> tuple[int, int] | None:
        """Enrol a client; returns its number and the cluster's task slots."""
        enrolled = self._clients.enrol(topic, batch, client, where, founds)
        if enrolled is None:
            return None
        return enrolled.number, int(self._scheduler.total_nthreads)

    def _close(self, topic: str) -> None:
        """Note that a client starts no more tasks."""
        client = self._clients.find(topic)
        if client is not None:
            client.closed = True

    async def _join(self, topic: str, seconds: float) -> list[str] | None:
        """Wait for a time until a client is the last of its Batch, which ends with that.

        Returns what there is to say of the others; None if it is no client itself any more.
        """
        client = self._clients.find(topic)
        if client is None:
            return None
        others = await self._clients.others_left(topic, seconds)
        if not others:
            await _over(self._end_batch(client.batch))
        return [str(each) for each in others]

    async def _unregister(self, topic: str, idle: bool = False) -> None:
        """Let a client go; what of its tasks has not begun will not begin.

        With the creator of a Batch all go. One that is `idle` has no tasks left.
        """
        client = self._clients.find(topic)
        ending: list[asyncio.Task[None]] = []
        if client is not None and client.number == 0:
            ending = self._end_batch(client.batch)
        ending += self._drop(topic, idle)
        await _over(ending)

    def _drop(self, topic: str, idle: bool = False) -> list[asyncio.Task[None]]:
        client = self._clients.leave(topic)
        if client is None:
            return []
        # What was revoked must not run, though nobody waits for it any more; and who has made
        # a Batch may have left something in the processes of the workers.
        if self._revoked.pop(topic, None) or not idle or client.number == 0:
            self._tell_workers({"op": "daskbatch-end", "topic": topic})
        return self._end_batch(client.batch) if self._clients.is_empty(client.batch) else []

    def _end_batch(self, batch: str) -> list[asyncio.Task[None]]:
        """Have a Batch end for all its clients, and the shared objects that it has made.

        Gives what ends them: until that is over, somebody may yet read them.
        """
        shared = self._scheduler.plugins.get(SHARED_PLUGIN_NAME)
        ending: list[asyncio.Task[None]] = [] if shared is None else shared.end_owned(batch)
        others = [each for each in self._clients.of_batch(batch) if each.number]
        for connection in self._clients.end(batch):
            self._send(connection, BATCHES, {"ended": batch})
        for other in others:
            ending += self._drop(other.topic)
        return ending

    def remove_client(self, scheduler: Scheduler, client: str) -> None:
        # It may have crashed: the others of its Batch go on, its creator or not.
        for each in self._clients.of_connection(client):
            self._drop(each.topic)
        self._clients.disconnected(client)

    def _alive(self, client: str, ttl: float) -> None:
        """Hear that a client is there, and for how long it may be silent."""
        self._clients.heard(client, ttl)
        if not self._listening:
            self._listening = True
            self._begin(self._listen())

    async def _listen(self) -> None:
        """Count clients that are silent as crashed."""
        while (seconds := self._clients.next_look()) is not None:
            # Not for longer: others may come that may be silent for less.
            await asyncio.sleep(min(seconds, _LOOK_SECONDS))
            for connection in self._clients.silent():
                self._clients.disconnected(connection)
                comm = self._scheduler.client_comms.get(connection)
                if comm is not None:
                    # As when it had crashed; and it will notice, if it ever goes on.
                    comm.abort()
        self._listening = False

    def _notify(self, topic: str, message: Any) -> None:
        client = self._clients.find(topic)
        if client is not None:
            self._send(client.connection, topic, message)

    def _send(self, connection: str, topic: str, message: Any) -> None:
        # Dask's client hands an "event" to whoever has subscribed to its topic.
        event = {"op": "event", "topic": topic, "event": (time(), message)}
        self._scheduler.client_send(connection, event)

    # -- reports --------------------------------------------------------------------------

    def _report(self, topic: str, report: bytes, worker: str) -> None:
        self._notify(topic, report)

    # -- workers --------------------------------------------------------------------------

    def add_worker(self, scheduler: Scheduler, worker: str) -> None:
        self._worker_losses.add_worker(worker)
        for topic, blocks in self._revoked.items():
            for block, members in blocks.items():
                for member, status in members.items():
                    self._scheduler.worker_send(
                        worker, _revocation(topic, block, [member], status, request=-1)
                    )
        self._tell_slots()

    def remove_worker(self, scheduler: Scheduler, worker: str, **kwargs: Any) -> None:
        for (_, address), answer in self._answers.items():
            # A member that had begun on a worker that died will not complete there.
            if address == worker and not answer.done():
                answer.set_result(((), ()))
        self._tell_slots()
        self._begin(self._tell_of_death(worker))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._working.add(task)
        task.add_done_callback(self._working.discard)

    def _capacities(self) -> list[Capacity]:
        return [
            Capacity(each.address, each.host, str(each.name), dict(each.resources))
            for each in self._scheduler.workers.values()
        ]

    # -- deaths ---------------------------------------------------------------------------

    def log_event(self, topic: str, msg: Any) -> None:
        """Hear of a worker's death before Dask does anything about its keys."""
        if topic == "worker-restart-memory":
            self._worker_losses.ran_out_of_memory(msg["worker"], msg["rss"])
        elif topic == "all" and isinstance(msg, dict) and msg.get("action") == "remove-worker":
            reset_suspicion(self._scheduler, msg["processing-tasks"])
            began = mark_lost(self._scheduler, msg["processing-tasks"])
            gone = mark_lost(self._scheduler, msg["lost-computed-tasks"])
            self._worker_losses.died(msg["worker"], began)
            for topic, keys in gone.items():
                self._notify(topic, {"gone": keys})

    def transition(self, key: Any, start: str, finish: str, *args: Any, **kwargs: Any) -> None:
        if start == "memory" and finish == "released":
            # Nobody wants the result; if a token of it gets lost, that is no reason to run it.
            mark_lost(self._scheduler, [key])

    async def _tell_of_death(self, worker: str) -> None:
        for topic, message in (await self._worker_losses.tell(worker)).items():
            self._notify(topic, message)

    # -- slots ----------------------------------------------------------------------------

    def _tell_slots(self) -> None:
        for client in self._clients:
            self._notify(client.topic, int(self._scheduler.total_nthreads))

    def _tell_workers(self, message: dict[str, Any]) -> None:
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
        """Take members of blocks back; the client is told which surely will not run.

        Every worker is told, and so is each that joins later: wherever Dask has sent, or
        will send, or will steal a block, its members are not begun. What is too late has
        begun on the worker that says so, or is over by a report that the client is sent
        before: hence the answer takes the way of the reports.
        """
        waiting: dict[int, list[asyncio.Future[Answer]]] = {}
        for block, some in members.items():
            known = self._revoked.setdefault(topic, {}).setdefault(block, {})
            known.update(dict.fromkeys(some, status))
            waiting[block] = []
            for address in list(self._scheduler.workers):
                request = next(self._requests)
                answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
                self._answers[request, address] = answer
                waiting[block].append(answer)
                self._scheduler.worker_send(
                    address, _revocation(topic, block, some, status, request, begun)
                )
        everything = [answer for answers in waiting.values() for answer in answers]
        try:
            if everything:
                await asyncio.wait(everything, timeout=ANSWER_SECONDS)
            revoked = {
                block: _not_begun(members[block], answers) for block, answers in waiting.items()
            }
            stopping = {
                block: [m for a in answers if a.done() for m in a.result()[1]]
                for block, answers in waiting.items()
            }
            message = {"question": question, "revoked": revoked, "stopping": stopping}
            self._notify(topic, message)
        finally:
            self._answers = {k: a for k, a in self._answers.items() if a not in everything}

    def _answer(
        self, request: int, began: Sequence[int], stopping: Sequence[int], worker: str
    ) -> None:
        answer = self._answers.get((request, worker))
        if answer is not None and not answer.done():
            answer.set_result((began, stopping))

    def _forget(self, topic: str, blocks: Sequence[int]) -> None:
        """Drop what is known of blocks that are over."""
        for block in blocks:
            self._revoked.get(topic, {}).pop(block, None)
        self._tell_workers({"op": "daskbatch-forget", "topic": topic, "blocks": blocks})


def _revocation(
    topic: str,
    block: int,
    members: Sequence[int],
    status: int,
    request: int,
    begun: bool = True,
) -> dict[str, Any]:
    return {
        "op": "daskbatch-revoke",
        "topic": topic,
        "block": block,
        "members": list(members),
        "status": status,
        "request": request,
        "begun": begun,
    }


def _not_begun(members: Sequence[int], answers: Sequence[asyncio.Future[Answer]]) -> list[int]:
    if not all(answer.done() for answer in answers):
        return []
    began = {member for answer in answers for member in answer.result()[0]}
    return [member for member in members if member not in began]


async def _over(ending: Sequence[asyncio.Task[None]]) -> None:
    """Wait until something has ended; a worker that does not answer is not waited for."""
    if ending:
        await asyncio.wait(ending, timeout=_ENDING_SECONDS)
