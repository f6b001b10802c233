"""Which waiting gangs may collect slots, and which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from daskbatch.cluster.gang_plan import (
    Collection,
    GangRequest,
    WaitingGang,
    WorkerState,
    plan_collections,
)
from daskbatch.describe.gang import Gang
from daskbatch.dispatch.slot_choice import ChosenSlot


def worker(
    address: str,
    slots: int = 2,
    granted: int = 0,
    ordinary: int = 0,
    host: str = "h",
    gpus: int = 0,
) -> WorkerState:
    supply = {"GPU": float(gpus)} if gpus else {}
    return WorkerState(address, host, address, slots, supply, supply, granted, ordinary)


def waiting(
    ranks: int = 1,
    cores: int = 1,
    *,
    workers: tuple[str, ...] = (),
    held: Mapping[str, int] | None = None,
    fixed: tuple[ChosenSlot, ...] | None = None,
    impatient: bool = False,
    gpus: int = 0,
) -> WaitingGang:
    resources = {"GPU": float(gpus)} if gpus else {}
    request = GangRequest(Gang(ranks, cores), resources, workers)
    return WaitingGang(request, fixed, held or {}, impatient)


def counted(plan: Collection) -> dict[str, int]:
    assert plan.targets is not None
    return dict(Counter(slot.address for slot in plan.targets))


def test_idle_slots_are_taken_exactly() -> None:
    (plan,) = plan_collections([waiting(3)], [worker("a", ordinary=1), worker("b")])
    assert plan.choice is not None
    assert counted(plan) == {"a": 1, "b": 2}


def test_where_ordinary_tasks_run_all_slots_are_asked_for_and_the_first_ones_taken() -> None:
    workers = [worker("a", ordinary=2), worker("b", ordinary=7), worker("c", ordinary=1)]
    (plan,) = plan_collections([waiting(2)], workers)
    assert plan.choice is None
    assert counted(plan) == {"a": 2, "b": 2, "c": 2}


def test_slots_that_only_seem_idle_do_not_hold_it_up() -> None:
    workers = [worker("a"), worker("b", ordinary=2)]
    (plan,) = plan_collections([waiting(2, impatient=True)], workers)
    assert counted(plan) == {"a": 2, "b": 2}


def test_what_it_holds_counts_as_idle() -> None:
    workers = [worker("a", ordinary=3), worker("b", ordinary=1)]
    (plan,) = plan_collections([waiting(2, held={"a": 1})], workers)
    assert plan.choice is not None
    assert counted(plan) == {"a": 1, "b": 1}


def test_on_a_large_cluster_it_asks_for_a_few_more_than_it_needs() -> None:
    workers = [worker(f"w{n}", 4, ordinary=9, host=f"h{n}") for n in range(100)]
    (plan,) = plan_collections([waiting(2)], workers)
    assert plan.targets is not None
    assert 2 < len(plan.targets) <= 24


def test_while_a_granted_gang_has_slots_that_it_needs_it_collects_none() -> None:
    workers = [worker("a", granted=1), worker("b")]
    (plan,) = plan_collections([waiting(4)], workers)
    assert plan.targets is None
    assert plan.why == "other gangs have the slots"


def test_first_come_first_served() -> None:
    workers = [worker("a", granted=1), worker("b")]
    first, second = plan_collections([waiting(4), waiting(1)], workers)
    assert first.targets is None
    assert second.targets is None


def test_a_gang_does_not_keep_others_from_slots_that_it_cannot_use() -> None:
    workers = [worker("a", granted=1), worker("b"), worker("c", host="i")]
    _, second = plan_collections([waiting(1, cores=4, workers=("h",)), waiting(2)], workers)
    assert counted(second) == {"c": 2}
    # And one that the present workers could never satisfy keeps nobody away.
    _, second = plan_collections([waiting(9), waiting(3)], workers)
    assert second.choice is not None
    _, second = plan_collections([waiting(1, gpus=1), waiting(3)], workers)
    assert second.choice is not None


def test_several_gangs_collect_at_once_if_there_is_room() -> None:
    workers = [worker("a"), worker("b")]
    first, second, third = plan_collections([waiting(2), waiting(1), waiting(2)], workers)
    assert first.choice is not None
    assert second.choice is not None
    assert third.targets is None
    taken = Counter(counted(first)) + Counter(counted(second))
    assert taken.total() == 3
    assert max(taken.values()) <= 2


def test_named_workers_hosts_and_resources() -> None:
    workers = [worker("a", gpus=1), worker("b", gpus=2), worker("c", host="i")]
    (plan,) = plan_collections([waiting(2, workers=("b", "c"))], workers)
    assert set(counted(plan)) <= {"b", "c"}
    (plan,) = plan_collections([waiting(3, gpus=1)], workers)
    assert counted(plan) == {"a": 1, "b": 2}
    (plan,) = plan_collections([waiting(4, gpus=1)], workers)
    assert plan.targets is None


def test_a_gang_that_has_lent_its_slots_wants_the_same_ones_back() -> None:
    fixed = (ChosenSlot("a", True), ChosenSlot("b", False))
    workers = [worker("a", 1, ordinary=1), worker("b", 1), worker("c", 1)]
    first, second = plan_collections([waiting(2, fixed=fixed), waiting(1)], workers)
    assert first.targets == fixed
    assert counted(second) == {"c": 1}
    # Another gang has one of them; later gangs do not get the other one.
    workers[0] = worker("a", 1, granted=1)
    first, second = plan_collections([waiting(2, fixed=fixed), waiting(2)], workers)
    assert first.targets is None
    assert second.targets is None
    # A worker that is gone is not waited for.
    (plan,) = plan_collections([waiting(2, fixed=fixed)], workers[1:])
    assert plan.targets == (ChosenSlot("b", False),)
