"""Holds slots of a worker for gangs, and exchanges a held slot for the task that it is held for.

A holder occupies a thread of the worker's pool, like any task: so a task that has waited inside
cannot regain a thread that is held for others. `GangSlots` is used by the worker's event loop and
by the threads of holders and tasks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from distributed import Worker, get_worker

from daskbatch.worker.execution.allocation import Allocation
from daskbatch.worker.execution.task_context import TaskContext, WorkerSlot

#: The first part of the Dask keys of holders; the second one is their number.
SLOT_KEY = "daskbatch_slot"

#: States of a Dask task that does not need its slot yet: its inputs are on the way.
_PREPARING_STATES = ("waiting", "fetch", "flight", "released", "missing")

#: States of a Dask task whose function runs, or is about to run.
_RUNNING_STATES = ("executing", "long-running", "cancelled", "resumed")

#: How often the worker looks whether the inputs of a gang have arrived.
_INPUTS_POLL_INTERVAL_SECONDS = 0.005


def hold_slot(number: int) -> None:
    """Hold a slot until the scheduler frees it: the function of a holder's Dask task."""
    slots = _gang_slots.get(id(get_worker()))
    if slots is not None:
        slots.hold(number)


class Grant(NamedTuple):
    """What the scheduler has granted to a task.

    Parameters
    ----------
    gang : int
        The number of the gang.
    allocation : Allocation
        Its slots.
    """

    gang: int
    allocation: Allocation


class GangSlots:
    """The worker's end of the gangs. Any thread may call `begin`, `end` and `hold`.

    Messages that the worker receives on the stream from its scheduler:

    - ``daskbatch-granted(gang, key, hosts, cores)``: the slots of a task that is about to arrive.
    - ``daskbatch-exchange(key, holder)``: frees a holder once the task can take its slot.
    - ``daskbatch-free(number)``: frees a holder.
    - ``daskbatch-gang-over(gang, key)``: asks whether a gang that Dask has dropped still runs.
    - ``daskbatch-regained(gang, wait, holder)``: a task that waited has its slots again.

    Messages that it sends: ``daskbatch-held(number)``, ``daskbatch-gang-ended(gang)``,
    ``daskbatch-gang-waits(gang, wait)`` and ``daskbatch-gang-resumes(gang, wait)``.

    Parameters
    ----------
    worker : Worker
        The worker.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._lock = threading.Lock()
        #: What was granted to tasks that have not begun, by their Dask keys.
        self._grants: dict[Any, Grant] = {}
        #: The slots of the gangs that run here, by the gangs' numbers.
        self._running: dict[int, GangSlot] = {}
        #: The holders that run here; and those that were freed before they ran.
        self._holding: dict[int, threading.Event] = {}
        self._freed: set[int] = set()
        self._closed = False
        # They stay when the worker closes: messages may still be on the way.
        worker.stream_handlers.update(
            {
                "daskbatch-granted": self._granted,
                "daskbatch-exchange": self._exchange,
                "daskbatch-free": self._free,
                "daskbatch-gang-over": self._is_over,
                "daskbatch-regained": self._regained,
            }
        )
        _gang_slots[id(worker)] = self

    def close(self) -> None:
        """Free all holders: the worker closes."""
        _gang_slots.pop(id(self._worker), None)
        with self._lock:
            self._closed = True
            for event in self._holding.values():
                event.set()

    # -- holders --------------------------------------------------------------------------

    def hold(self, number: int) -> None:
        """Keep the thread that calls it until the holder is freed."""
        with self._lock:
            if self._closed or number in self._freed:
                self._freed.discard(number)
                return
            event = self._holding[number] = threading.Event()
        self._send("daskbatch-held", number=number)
        event.wait()
        with self._lock:
            del self._holding[number]

    def _free(self, number: int) -> None:
        """Free a holder; it may have been sent back before it ran."""
        task = self._worker.state.tasks.get((SLOT_KEY, number))
        with self._lock:
            event = self._holding.get(number)
            if event is not None:
                event.set()
            elif task is not None and task.state in _RUNNING_STATES:
                self._freed.add(number)

    def _exchange(self, key: Any, holder: int) -> None:
        """Free a holder as soon as a task is ready to take its slot."""
        task = self._worker.state.tasks.get(key)
        if task is not None and task.state in _PREPARING_STATES:
            self._worker.loop.call_later(_INPUTS_POLL_INTERVAL_SECONDS, self._exchange, key, holder)
        else:
            self._free(holder)

    # -- gangs ----------------------------------------------------------------------------

    def _granted(self, gang: int, key: Any, hosts: Any, cores: int) -> None:
        """Keep what was granted to a task until the task begins."""
        allocation = Allocation(tuple((host, ranks) for host, ranks in hosts), cores)
        with self._lock:
            self._grants[key] = Grant(gang, allocation)

    def begin(self, context: TaskContext) -> None:
        """Give a task that begins what it was granted, if it is a gang.

        Parameters
        ----------
        context : TaskContext
            Its context. It gets the allocation, and a slot that stands for all slots of the gang.
        """
        if not self._grants:
            return
        with self._lock:
            grant = self._grants.pop(context.key, None)
            if grant is not None:
                slot = GangSlot(grant.gang, context.slot, self._send)
                self._running[grant.gang] = slot
                context.slot, context.allocation = slot, grant.allocation

    def end(self, context: TaskContext) -> WorkerSlot:
        """Notify the scheduler that a task has ended, if it is a gang.

        Returns
        -------
        WorkerSlot
            The place of its thread.
        """
        slot = context.slot
        if not isinstance(slot, GangSlot):
            return slot
        with self._lock:
            self._running.pop(slot.gang, None)
        self._send("daskbatch-gang-ended", gang=slot.gang)
        return slot.thread_slot

    def _is_over(self, gang: int, key: Any) -> None:
        """Notify the scheduler if a gang will not run here, or has ended."""
        task = self._worker.state.tasks.get(key)
        with self._lock:
            if gang in self._running or (task is not None and task.state in _RUNNING_STATES):
                return
            grant = self._grants.get(key)
            if grant is not None and grant.gang == gang:
                del self._grants[key]
        self._send("daskbatch-gang-ended", gang=gang)

    def _regained(self, gang: int, wait: int, holder: int | None) -> None:
        """Pass the slots back to a task that has waited; the last one is that of its thread."""
        with self._lock:
            slot = self._running.get(gang)
        if slot is not None:
            slot.regain(wait)
        if holder is not None:
            self._free(holder)

    def _send(self, op: str, **fields: Any) -> None:
        self._worker.loop.add_callback(self._worker.batched_send, {"op": op, **fields})


class GangSlot:
    """All slots of a gang as one `WorkerSlot`: they are lent while its task waits.

    Any thread may use it.

    Parameters
    ----------
    gang : int
        The number of the gang.
    slot : WorkerSlot
        The place of its thread.
    send : callable
        Sends a message to the scheduler.
    """

    def __init__(self, gang: int, slot: WorkerSlot, send: Callable[..., None]) -> None:
        self.gang = gang
        #: The place of its thread.
        self.thread_slot = slot
        self._send = send
        self._lock = threading.Lock()
        #: The number of the last wait; of the last one that is over, so that all slots are wanted
        #: again; and of the last one after which they were regained.
        self._wait = self._requested_wait = self._regained_wait = 0

    def release(self) -> None:
        """Release the thread's place; the scheduler lends the other slots."""
        with self._lock:
            self._wait += 1
            self._send("daskbatch-gang-waits", gang=self.gang, wait=self._wait)
        self.thread_slot.release()

    def request(self) -> None:
        """Request all slots; the thread's place comes last."""
        with self._lock:
            if self._requested_wait < self._wait:
                self._requested_wait = self._wait
                self._send("daskbatch-gang-resumes", gang=self.gang, wait=self._wait)

    def regain(self, wait: int) -> None:
        """Record that the other slots are there again, and take the thread's place."""
        with self._lock:
            if wait != self._wait:
                return  # the task waits once more
            self._regained_wait = wait
        self.thread_slot.request()

    def is_held(self) -> bool:
        """Return whether the task has all its slots."""
        return self._regained_wait == self._wait and self.thread_slot.is_held()


#: The gangs' ends of the workers of this process, by the `id` of the worker.
_gang_slots: dict[int, GangSlots] = {}
