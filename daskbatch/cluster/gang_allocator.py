"""Grants gangs their slots, all at once or none, and takes the slots back: the scheduler's part.

The Dask key of a gang requires a resource that no worker has (`lower.UNGRANTED`). So Dask keeps it
on the scheduler once its inputs are there: it occupies no slot and no thread. The allocator
collects its slots one by one by holders (`slot_holders`), as `gang_plan` decides, and then has Dask
run the key on the first of these workers, in exchange for the holder there.

A gang that is over leaves its holders behind for a moment. The next gang takes them over, if no
ordinary task wants the slots. Ordinary tasks that wait for slots which a gang had get a turn
before the next gang; a gang that collects slots gets each slot that an ordinary task leaves. So
neither can keep the other from running.

While the task of a gang waits inside, its slots are lent: what it waits for may need them. It
continues once it has all of them again.

All runs on the scheduler's event loop.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from time import monotonic
from typing import Any

from distributed import Scheduler
from distributed.comm import get_address_host

from daskbatch.cluster.gang_plan import Collection, GangRequest, WaitingGang, plan_collections
from daskbatch.cluster.gang_run import NO_SLOTS, GangRun, GangState
from daskbatch.cluster.gang_snapshot import count_slots, describe_workers, ordinary_tasks
from daskbatch.cluster.slot_holders import Holder, SlotHolders, granted_priority
from daskbatch.cluster.worker_loss import is_marked_lost, topic_of
from daskbatch.cluster.worker_streams import send_at_once
from daskbatch.describe.gang import Gang
from daskbatch.dispatch.lower import GANG, UNGRANTED
from daskbatch.dispatch.slot_choice import ChosenSlot, OfferedSlots, SlotChoice, choose_slots
from daskbatch.worker.slot_holding import SLOT_KEY

#: How long the holders of a gang that is over are kept for the next gang.
_IDLE_SECONDS = 0.1

#: How long a task may wait inside before its slots are lent.
_LEND_DELAY_SECONDS = 0.02

#: How long slots that seem idle may take to be held; then the gang asks for others as well.
_IMPATIENT_AFTER_SECONDS = 0.25

#: How long a worker that has ended a holder by itself gets no other one.
_UNFIT_SECONDS = 1.0

#: The interval of checks while gangs wait or are being stopped.
_CHECK_INTERVAL_SECONDS = 0.25


class GangAllocator:
    """The gangs of all clients. Not thread-safe.

    Stream handlers that workers call (see `worker.slot_holding.GangSlots`): ``daskbatch-held``,
    ``daskbatch-gang-ended``, ``daskbatch-gang-waits`` and ``daskbatch-gang-resumes``.

    Parameters
    ----------
    scheduler : Scheduler
        The scheduler.
    """

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._holders = SlotHolders(scheduler, self.advance_soon)
        self._numbers = itertools.count()
        #: All gangs, by number; and those that Dask has not dropped, by their keys.
        self._gangs: dict[int, GangRun] = {}
        self._by_key: dict[Any, GangRun] = {}
        #: The workers that have ended a holder by themselves, and until when they get no other one.
        self._unfit: dict[str, float] = {}
        #: Whether there are idle holders, whose slots ordinary tasks may want.
        self._has_idle = False
        self._is_advancing = False
        self._check: asyncio.TimerHandle | None = None
        scheduler.stream_handlers.update(
            {
                "daskbatch-held": self._holders.record_held,
                "daskbatch-gang-ended": self._record_end,
                "daskbatch-gang-waits": self._begin_lending,
                "daskbatch-gang-resumes": self._end_lending,
            }
        )

    def describe(self) -> list[dict[str, Any]]:
        """Return what is known of each gang, the first to be served first.

        Each is a dict with the Dask key, the topic of the client, the ranks, the cores of each,
        the state, what it waits for (``why``), the number of slots that it holds, and the hosts
        with their ranks, once they are granted.
        """
        return [
            {
                "key": gang.key,
                "topic": topic_of(self._scheduler, gang.key),
                "ranks": gang.request.gang.ranks,
                "cores": gang.request.gang.cores,
                "state": gang.state.value,
                "why": gang.why if gang.wants_slots else "",
                "held": sum(holder.held for holder in gang.holders),
                "hosts": list(gang.choice.hosts),
            }
            for gang in sorted(self._gangs.values(), key=lambda gang: gang.order)
        ]

    def uses(self, address: str) -> bool:
        """Return whether a gang that runs elsewhere has slots of a worker."""
        return any(
            holder.address == address
            for gang in self._gangs.values()
            if gang.state is GangState.RUNNING
            for holder in gang.holders
        )

    # -- what happens on the scheduler ----------------------------------------------------

    def transition(self, key: Any, start: str, finish: str) -> None:
        """Note that Dask has moved a key. Dask is in the middle of it: no key is moved here."""
        gang = self._by_key.get(key)
        if gang is not None:
            self._gang_moved(gang, start, finish)
        if finish == "no-worker":
            self._arrive(key)
        elif self._has_idle and finish in ("processing", "queued"):
            self.advance_soon()
        if start == "processing" and type(key) is tuple and key[0] == SLOT_KEY:
            self._holder_ended(key)

    def _arrive(self, key: Any) -> None:
        """Note that a key could run, if it is a gang."""
        state = self._scheduler.tasks[key]
        asked = (state.annotations or {}).get(GANG)
        if asked is None or UNGRANTED not in (state.resource_restrictions or {}):
            return
        ranks, cores, resources, workers = asked
        request = GangRequest(Gang(ranks, cores), dict(resources), tuple(workers))
        gang = GangRun(next(self._numbers), key, state.priority[0], request)
        self._gangs[gang.number] = self._by_key[key] = gang
        self.advance_soon()

    def _gang_moved(self, gang: GangRun, start: str, finish: str) -> None:
        if gang.state is GangState.WAITING:
            if start == "no-worker" and finish != "processing":
                self._drop(gang)
        elif start == "processing":
            del self._by_key[gang.key]
            if finish == "released" and gang.head in self._scheduler.workers:
                # Its client has dropped it, or its inputs were lost. It may still run there.
                self._withhold(gang.key)
                gang.state = GangState.ENDING
                asyncio.get_running_loop().call_soon(self._ask_whether_over, gang)
            else:
                self._drop(gang)

    def _withhold(self, key: Any) -> None:
        """Have Dask keep a key back until its slots are granted."""
        state = self._scheduler.tasks.get(key)
        if state is not None and not is_marked_lost(state):
            state.resource_restrictions = {UNGRANTED: 1}
            state.worker_restrictions = None

    def _holder_ended(self, key: Any) -> None:
        holder = self._holders.record_end(key)
        if holder is not None and isinstance(holder.owner, GangRun):
            # Its worker has left or is about to, or cannot run it.
            holder.owner.holders.remove(holder)
            self._unfit[holder.address] = monotonic() + _UNFIT_SECONDS

    def _drop(self, gang: GangRun) -> None:
        """Forget a gang, and leave its holders behind."""
        self._gangs.pop(gang.number, None)
        if self._by_key.get(gang.key) is gang:
            del self._by_key[gang.key]
        self._leave_behind(gang)

    def _leave_behind(self, gang: GangRun) -> None:
        """Make the holders of a gang idle."""
        for holder in gang.holders:
            holder.owner, holder.idle_since = None, monotonic()
        gang.holders = []
        self.advance_soon()

    def _ask_whether_over(self, gang: GangRun) -> None:
        """Ask the worker of a gang whether the gang has ended there, after Dask has dropped it."""
        message = {"op": "daskbatch-gang-over", "gang": gang.number, "key": gang.key}
        self._scheduler.worker_send(gang.head, message)
        self._check_later()

    def _record_end(self, gang: int, worker: str) -> None:
        """Note that the task of a gang has ended on its worker."""
        found = self._gangs.get(gang)
        if found is not None and found.state is GangState.ENDING:
            self._drop(found)

    def add_worker(self, address: str) -> None:
        """Note that a worker has joined; called before Dask gives it any task.

        It may take the place of one that has died. Then it holds the slots that gangs, whose tasks
        run elsewhere on its host, had there: the tasks still use that much of the host.
        """
        worker = self._scheduler.workers[address]
        room = worker.nthreads
        for gang in self._gangs.values():
            slots = list(gang.choice.slots)
            for position, slot in enumerate(slots):
                gone = position > 0 and slot.address not in self._scheduler.workers
                if gone and room and get_address_host(slot.address) == worker.host:
                    slots[position] = slot._replace(address=address)
                    room -= 1
                    if gang.state is GangState.RUNNING:
                        self._add_holder(gang, slots[position])
            gang.choice = gang.choice._replace(slots=tuple(slots))
        self.advance_soon()

    def remove_worker(self) -> None:
        """Note that a worker has left."""
        for gang in list(self._gangs.values()):
            if gang.state is GangState.ENDING and gang.head not in self._scheduler.workers:
                self._drop(gang)
        self.advance_soon()

    def end_idle(self) -> None:
        """End the holders that no gang owns: a client has left."""
        for holder in self._holders.all():
            if holder.owner is None:
                self._holders.release(holder)

    def end_all(self) -> None:
        """End all holders: Dask is about to restart, and demands that no task remains.

        No client has made the holders, so Dask does not release them with the tasks of clients.
        """
        self._holders.drop_all()

    def clear(self) -> None:
        """Forget all gangs: Dask has forgotten all tasks."""
        self._gangs.clear()
        self._by_key.clear()
        self._holders.clear()

    # -- lending --------------------------------------------------------------------------

    def _begin_lending(self, gang: int, wait: int, worker: str) -> None:
        """Note that the task of a gang waits; its slots are lent if that takes long."""
        found = self._gangs.get(gang)
        if found is not None and found.state in (GangState.RUNNING, GangState.REGAINING):
            found.state, found.wait = GangState.LENDING, wait
            loop = asyncio.get_running_loop()
            loop.call_later(_LEND_DELAY_SECONDS, self._lend, found, wait)
            self.advance_soon()  # the slot of its thread is free at once

    def _lend(self, gang: GangRun, wait: int) -> None:
        if gang.state is GangState.LENDING and gang.wait == wait:
            self._leave_behind(gang)

    def _end_lending(self, gang: int, wait: int, worker: str) -> None:
        """Note that the task of a gang wants its slots back."""
        found = self._gangs.get(gang)
        if found is not None and found.state is GangState.LENDING:
            found.state, found.wait = GangState.REGAINING, wait
            self.advance_soon()

    # -- collecting -----------------------------------------------------------------------

    def advance_soon(self) -> None:
        """Go on once Dask has completed what it does now."""
        if not self._is_advancing:
            self._is_advancing = True
            asyncio.get_running_loop().call_soon(self._advance)

    def _advance(self) -> None:
        """Free what others want, and have the waiting gangs collect slots."""
        self._is_advancing = False
        try:
            self._holders.forget_ended()
            self._free_wanted()
            self._collect_all()
            self._free_old()
        finally:
            self._check_later()

    def _collect_all(self) -> None:
        """Have the waiting gangs collect slots, in their order."""
        waiting = [gang for gang in self._gangs.values() if gang.wants_slots]
        if waiting:
            waiting.sort(key=lambda gang: gang.order)
            counts = count_slots(self._scheduler, self._gangs.values(), self._holders.all())
            now = monotonic()
            self._unfit = {each: until for each, until in self._unfit.items() if until > now}
            workers = [
                worker
                for worker in describe_workers(self._scheduler, counts, waiting[0].key)
                if worker.address not in self._unfit
            ]
            plans = plan_collections([_as_waiting(gang) for gang in waiting], workers)
            for gang, plan in zip(waiting, plans, strict=True):
                gang.why = plan.why
                if gang.wants_slots:
                    self._collect(gang, plan)

    def _free_wanted(self) -> None:
        """Free the idle holders whose slots an ordinary task waits for."""
        idle = self._idle_holders()
        if not idle:
            return
        counts = count_slots(self._scheduler, self._gangs.values(), self._holders.all())
        for holder in idle:
            worker = self._scheduler.workers.get(holder.address)
            count = counts.get(holder.address)
            if (
                worker is None
                or count is None
                or not holder.held
                or self._scheduler.queued
                or ordinary_tasks(worker, count) > worker.nthreads - count.granted - count.idle
            ):
                self._holders.release(holder)

    def _free_old(self) -> None:
        """Free the idle holders that no gang has taken over for a while."""
        now = monotonic()
        for holder in self._idle_holders():
            if now > holder.idle_since + _IDLE_SECONDS:
                self._holders.release(holder)
        self._has_idle = bool(self._idle_holders())

    def _idle_holders(self) -> list[Holder]:
        return [each for each in self._holders.all() if each.owner is None and not each.ending]

    def _collect(self, gang: GangRun, plan: Collection) -> None:
        """Have a gang hold the slots of a plan, and grant them if it holds enough."""
        missing = self._take_over(gang, plan.targets or ())
        choice = plan.choice
        if choice is not None and _lacks_only_first(gang, choice, missing):
            # All other slots are held, and that of its task is idle.
            self._grant(gang, choice, first_is_idle=True)
            return
        if plan.targets is None:
            return
        gang.collecting_since = gang.collecting_since or monotonic()
        for slot in missing:
            self._add_holder(gang, slot)
        if gang.state is GangState.REGAINING:
            if len(gang.holders) >= len(plan.targets) and _all_held(gang):
                self._give_back(gang)
        elif (choice := _choose_held(gang)) is not None:
            self._grant(gang, choice)

    def _take_over(self, gang: GangRun, targets: Sequence[ChosenSlot]) -> list[ChosenSlot]:
        """Give a gang the holders for its slots that exist, and return the slots without one."""
        idle = self._idle_holders()
        own, gang.holders = gang.holders, []
        missing = []
        for slot in targets:
            holder = _find(slot, gang, own) or _find(slot, gang, idle)
            if holder is None:
                missing.append(slot)
            else:
                holder.owner = gang
                gang.holders.append(holder)
        for holder in own:
            # Held ones may be of use to another gang, or are freed soon.
            holder.owner, holder.idle_since = None, monotonic()
            if holder.held:
                self._has_idle = True
                self.advance_soon()
            else:
                self._holders.release(holder)
        return missing

    def _add_holder(self, gang: GangRun, slot: ChosenSlot) -> None:
        resources = _resources_of(slot, gang)
        holder = self._holders.place(slot.address, resources, gang.level, gang)
        if holder is not None:
            gang.holders.append(holder)

    # -- granting -------------------------------------------------------------------------

    def _grant(self, gang: GangRun, choice: SlotChoice, first_is_idle: bool = False) -> None:
        """Have Dask run the task of a gang, in exchange for the holder of its first slot.

        Parameters
        ----------
        gang : GangRun
            The gang.
        choice : SlotChoice
            Its slots; it has a holder for each of them.
        first_is_idle : bool
            Whether it has none for the first slot, which is idle.
        """
        scheduler = self._scheduler
        head = choice.slots[0].address
        own, gang.holders = gang.holders, []
        exchanged: Holder | None = None
        if not first_is_idle:
            exchanged = _find(choice.slots[0], gang, own)
        for slot in choice.slots[1:]:
            holder = _find(slot, gang, own)
            if holder is not None:
                gang.holders.append(holder)
        for holder in own:
            holder.owner, holder.idle_since = None, monotonic()
            self._has_idle = True
        state = scheduler.tasks[gang.key]
        state.resource_restrictions = dict(gang.request.resources) or None
        state.worker_restrictions, state.host_restrictions = {head}, None
        state.loose_restrictions = False
        state.priority = granted_priority(gang.level)
        gang.state, gang.choice = GangState.RUNNING, choice
        scheduler.worker_send(
            head,
            {
                "op": "daskbatch-granted",
                "gang": gang.number,
                "key": gang.key,
                "hosts": [list(each) for each in choice.hosts],
                "cores": gang.request.gang.cores,
            },
        )
        scheduler.transitions({gang.key: "processing"}, f"daskbatch-grant-{gang.number}")
        if state.state != "processing":
            # The worker was paused or is about to leave.
            gang.state, gang.choice = GangState.WAITING, NO_SLOTS
            self._withhold(gang.key)
            if exchanged is not None:
                gang.holders.append(exchanged)
            self._leave_behind(gang)
        elif exchanged is not None:
            self._holders.hand_over(exchanged)
            message = {"op": "daskbatch-exchange", "key": gang.key, "holder": exchanged.number}
            scheduler.worker_send(head, message)
        send_at_once(scheduler, head)
        if own:
            self.advance_soon()

    def _give_back(self, gang: GangRun) -> None:
        """Give a gang that has lent its slots all of them back."""
        exchanged = next((each for each in gang.holders if each.address == gang.head), None)
        if exchanged is not None:
            gang.holders.remove(exchanged)
            self._holders.hand_over(exchanged)
        gang.state, gang.collecting_since = GangState.RUNNING, None
        message = {
            "op": "daskbatch-regained",
            "gang": gang.number,
            "wait": gang.wait,
            "holder": None if exchanged is None else exchanged.number,
        }
        send_at_once(self._scheduler, gang.head, message)

    # -- checks ---------------------------------------------------------------------------

    def _check_later(self) -> None:
        """Look again after a while, if anything may change without an event."""
        busy = any(
            gang.wants_slots or gang.state is GangState.ENDING for gang in self._gangs.values()
        )
        if self._check is None and (busy or self._has_idle):
            seconds = _IDLE_SECONDS if self._has_idle else _CHECK_INTERVAL_SECONDS
            self._check = asyncio.get_running_loop().call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._check = None
        scheduler = self._scheduler
        for gang in list(self._gangs.values()):
            if gang.state is GangState.ENDING:
                self._ask_whether_over(gang)
            elif gang.state is GangState.WAITING and scheduler.no_workers_timeout is not None:
                # It waits for other tasks, and not for a worker.
                state = scheduler.tasks.get(gang.key)
                if state is not None and scheduler.unrunnable.pop(state, None) is not None:
                    scheduler.unrunnable[state] = monotonic()
        self._advance()


def _as_waiting(gang: GangRun) -> WaitingGang:
    since = gang.collecting_since
    return WaitingGang(
        gang.request,
        gang.choice.slots if gang.state is GangState.REGAINING else None,
        Counter(holder.address for holder in gang.holders if holder.held),
        since is not None and monotonic() > since + _IMPATIENT_AFTER_SECONDS,
    )


def _all_held(gang: GangRun) -> bool:
    return all(holder.held for holder in gang.holders)


def _lacks_only_first(gang: GangRun, choice: SlotChoice, missing: Sequence[ChosenSlot]) -> bool:
    """Return whether a gang holds all slots of a choice but one that its task can run in."""
    if len(missing) != 1 or not _all_held(gang):
        return False
    (slot,), first = missing, choice.slots[0]
    same = slot.leads_rank == first.leads_rank or not gang.request.resources
    return slot.address == first.address and same


def _resources_of(slot: ChosenSlot, gang: GangRun) -> dict[str, float]:
    """Return the abstract resources that the holder of a slot takes."""
    return dict(gang.request.resources) if slot.leads_rank else {}


def _find(slot: ChosenSlot, gang: GangRun, holders: list[Holder]) -> Holder | None:
    """Take a holder that can hold a slot out of a list; None if there is none."""
    resources = _resources_of(slot, gang)
    fitting = [
        each for each in holders if each.address == slot.address and each.resources == resources
    ]
    if not fitting:
        return None
    found = next((each for each in fitting if each.held), fitting[0])
    holders.remove(found)
    return found


def _choose_held(gang: GangRun) -> SlotChoice | None:
    """Return the slots to grant, if a gang holds enough."""
    if not gang.holders:
        return None
    resources = gang.request.resources
    slots: Counter[str] = Counter()
    leading: Counter[str] = Counter()
    for holder in gang.holders:
        if holder.held:
            slots[holder.address] += 1
            leading[holder.address] += holder.resources == resources
    hosts = {holder.address: holder.host for holder in gang.holders}
    offered: Iterable[OfferedSlots] = (
        OfferedSlots(
            address,
            hosts[address],
            count,
            {name: amount * leading[address] for name, amount in resources.items()},
        )
        for address, count in slots.items()
    )
    return choose_slots(gang.request.gang, resources, offered)
