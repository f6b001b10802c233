"""Holds slots of workers for gangs, by Dask tasks that do nothing but occupy a slot.

So all who ask for slots see what a gang holds: Dask's scheduler and its dashboard, other clients,
and the workers' thread pools. All runs on the scheduler's event loop.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dask.task_spec import Task
from distributed import Scheduler

from daskbatch.dashboard.key_groups import announce
from daskbatch.worker.slot_holding import SLOT_KEY, hold_slot

#: The span that Dask counts all holders in; one span, since Dask keeps every span for ever.
_SPAN = {"name": ("daskbatch",), "ids": ("daskbatch-slots",)}

#: The second part of the priority of holders, and of gangs whose slots are granted: they come
#: before all ordinary tasks of the same user's priority. A gang comes before the holders.
_FIRST_GENERATION = -(2**62)


@dataclass(slots=True, eq=False)
class Holder:
    """A Dask task that holds one slot.

    Parameters
    ----------
    number : int
        Its number among all holders.
    address, host : str
        The worker, and its machine.
    resources : mapping
        The abstract resources that it takes as well.
    owner : object, optional
        The gang that it holds the slot for; None for an idle one.

    Attributes
    ----------
    held : bool
        Whether it has the slot.
    ending : bool
        Whether it was released, and occupies the slot until the worker confirms this.
    idle_since : float
        Since when it has no owner, by `monotonic`.
    """

    number: int
    address: str
    host: str
    resources: Mapping[str, float]
    owner: object | None
    held: bool = False
    ending: bool = False
    idle_since: float = 0.0

    @property
    def key(self) -> tuple[str, int]:
        """The Dask key."""
        return SLOT_KEY, self.number


class SlotHolders:
    """The holders of all gangs. Not thread-safe.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    changed : callable
        Called when a holder has got its slot, or has ended. It must not change Dask's state.
    """

    def __init__(self, scheduler: Scheduler, changed: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._changed = changed
        self._numbers = itertools.count()
        self._holders: dict[int, Holder] = {}
        #: The keys that have ended, and that Dask is to forget.
        self._ended: list[Any] = []

    def all(self) -> list[Holder]:
        """Return all holders."""
        return list(self._holders.values())

    def place(
        self, address: str, resources: Mapping[str, float], level: float, owner: object
    ) -> Holder | None:
        """Have a worker hold a slot as soon as one becomes free; None if it cannot.

        Parameters
        ----------
        address, resources, owner
            As for a `Holder`.
        level : float
            The first part of the gang's priority in Dask.
        """
        worker = self._scheduler.workers.get(address)
        if worker is None:
            return None
        holder = Holder(next(self._numbers), address, worker.host, resources, owner)
        key = holder.key
        state = self._scheduler.new_task(key, Task(key, hold_slot, holder.number), "released")
        state.priority = (level, _FIRST_GENERATION, 0)
        state.worker_restrictions = {address}
        state.resource_restrictions = dict(resources) or None
        spans = self._scheduler.extensions.get("spans")
        if spans is not None:
            # Without a span, the worker's next heartbeat would fail.
            state.annotations = {"span": _SPAN}
            spans.observe_tasks([state], (), {})
        self._holders[holder.number] = holder
        announce(self._scheduler, [state])
        self._scheduler.transitions({key: "waiting"}, f"daskbatch-hold-{holder.number}")
        if state.state == "processing":
            return holder
        del self._holders[holder.number]
        self._scheduler.transitions({key: "forgotten"}, f"daskbatch-drop-{holder.number}")
        return None

    def record_held(self, number: int, worker: str) -> None:
        """Record that a holder has its slot."""
        holder = self._holders.get(number)
        if holder is not None:
            holder.held = True
            self._changed()

    def release(self, holder: Holder) -> None:
        """End a holder; until its worker confirms this, it counts as `ending`."""
        if holder.ending:
            return
        holder.ending, holder.owner = True, None
        if not holder.held:
            # If it has not begun, its worker drops it.
            self._scheduler.transitions(
                {holder.key: "forgotten"}, f"daskbatch-drop-{holder.number}"
            )
            self._holders.pop(holder.number, None)
        self._scheduler.worker_send(
            holder.address, {"op": "daskbatch-free", "number": holder.number}
        )

    def hand_over(self, holder: Holder) -> None:
        """Note that a worker ends a holder by itself, in exchange for a task."""
        holder.ending, holder.owner = True, None

    def record_end(self, key: Any) -> Holder | None:
        """Record that Dask no longer runs a holder; returns it, unless it was dropped before."""
        holder = self._holders.pop(key[1], None)
        if holder is not None:
            self._ended.append(key)
            self._changed()
        return holder

    def forget_ended(self) -> None:
        """Have Dask forget the holders that have ended."""
        ended, self._ended = self._ended, []
        found = {key: "forgotten" for key in ended if key in self._scheduler.tasks}
        if found:
            self._scheduler.transitions(found, "daskbatch-forget-holders")

    def drop_all(self) -> None:
        """Have Dask forget all holders, and the workers end them."""
        keys = [holder.key for holder in self._holders.values()] + self._ended
        for holder in self._holders.values():
            message = {"op": "daskbatch-free", "number": holder.number}
            self._scheduler.worker_send(holder.address, message)
        found = {key: "forgotten" for key in keys if key in self._scheduler.tasks}
        self.clear()
        if found:
            self._scheduler.transitions(found, "daskbatch-drop-holders")

    def clear(self) -> None:
        """Forget all holders: Dask has forgotten all tasks."""
        self._holders.clear()
        self._ended.clear()


def granted_priority(level: float) -> tuple[float, int, int]:
    """Return the priority in Dask of a gang whose slots are granted."""
    return level, _FIRST_GENERATION - 1, 0
