"""Gangs get consecutive ranks on as few hosts as possible, or nothing."""

from __future__ import annotations

import itertools
import re
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from daskbatch.describe.gang import Gang
from daskbatch.describe.spec import Options
from daskbatch.dispatch.requirements import Capacity, unmet
from daskbatch.dispatch.slot_choice import OfferedSlots, choose_slots, most_ranks, usable_slots


def offer(*hosts: tuple[str, list[int]], gpus: int = 0) -> list[OfferedSlots]:
    """Return what workers offer: for each host its name, and the slots of its workers."""
    resources = {"GPU": float(gpus)} if gpus else {}
    return [
        OfferedSlots(f"{host}:{number}", host, slots, resources)
        for host, workers in hosts
        for number, slots in enumerate(workers)
    ]


@pytest.mark.parametrize(
    ("gang", "hosts"),
    [
        (Gang(1), (("small", 1),)),
        (Gang(2), (("small", 2),)),
        (Gang(3), (("middle", 3),)),
        (Gang(4), (("large", 4),)),
        (Gang(6), (("large", 6),)),
        (Gang(8), (("large", 6), ("small", 2))),
        (Gang(9), (("large", 6), ("middle", 3))),
        (Gang(11), (("large", 6), ("middle", 3), ("small", 2))),
        (Gang(1, cores=3), (("middle", 1),)),
        (Gang(2, cores=3), (("large", 2),)),
        (Gang(3, cores=3), (("large", 2), ("middle", 1))),
        (Gang(12), None),
        (Gang(1, cores=7), None),
        (Gang(4, cores=3), None),
    ],
)
def test_ranks_fill_as_few_hosts_as_possible(gang: Gang, hosts: object) -> None:
    offered = offer(("small", [2]), ("large", [4, 2]), ("middle", [1, 1, 1]))
    choice = choose_slots(gang, {}, offered)
    assert (choice and choice.hosts) == hosts


def test_each_rank_takes_its_resources_from_one_worker() -> None:
    offered = [
        OfferedSlots("a", "host", 4, {}),
        OfferedSlots("b", "host", 1, {"GPU": 2.0}),
        OfferedSlots("c", "host", 3, {"GPU": 1.0}),
    ]
    choice = choose_slots(Gang(2, cores=4), {"GPU": 1}, offered)
    assert choice is not None
    assert Counter(slot.address for slot in choice.slots) == {"a": 4, "b": 1, "c": 3}
    assert [slot.address for slot in choice.slots if slot.leads_rank] == ["b", "c"]
    assert choice.slots[0].leads_rank
    assert choose_slots(Gang(3), {"GPU": 1}, offered) is None


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 3)), max_size=7),
    st.integers(1, 8),
    st.integers(1, 4),
    st.booleans(),
)
def test_a_choice_takes_what_is_offered_and_there_is_one_if_it_fits(
    workers: list[tuple[str, int, int]], ranks: int, cores: int, gpus: bool
) -> None:
    offered = [
        OfferedSlots(f"{host}{number}", host, slots, {"GPU": float(count)})
        for number, (host, slots, count) in enumerate(workers)
    ]
    needed = {"GPU": 1.0} if gpus else {}
    choice = choose_slots(Gang(ranks, cores), needed, offered)
    fits = {
        name: min(
            sum(each.slots for each in some) // cores,
            sum(
                min(each.slots, int(each.resources["GPU"])) if gpus else each.slots for each in some
            ),
        )
        for name, some in (
            (name, [each for each in offered if each.host == name]) for name in "abc"
        )
    }
    assert len(most_ranks(cores, needed, offered)) == sum(fits.values()) * cores
    usable = {each.host for each in usable_slots(Gang(1, cores), needed, offered)}
    assert usable == {name for name, count in fits.items() if count}
    if choice is None:
        assert sum(fits.values()) < ranks
        return
    assert len(choice.slots) == ranks * cores
    assert sum(slot.leads_rank for slot in choice.slots) == ranks
    taken = Counter(slot.address for slot in choice.slots)
    leading = Counter(slot.address for slot in choice.slots if slot.leads_rank)
    for each in offered:
        assert taken[each.address] <= each.slots
        assert not gpus or leading[each.address] <= each.resources["GPU"]
    # Consecutive slots are on one host, and no fewer hosts would do.
    of = {each.address: each.host for each in offered}
    groups = [name for name, _ in itertools.groupby(of[slot.address] for slot in choice.slots)]
    assert groups == [name for name, _ in choice.hosts]
    most = sorted(fits.values(), reverse=True)
    assert sum(most[: len(groups) - 1]) < ranks


@pytest.mark.parametrize(
    ("gang", "why"),
    [
        (Gang(1, 3), None),
        (Gang(2, 2), None),
        (Gang(5), None),
        (
            Gang(6),
            "asks for 6 ranks of 1 slot each, all at once; the workers that may run it have 5",
        ),
        (
            Gang(1, 4),
            "asks for 4 slots of one host, all at once; .* 5 slots in all .h has 3, i has 2",
        ),
        (Gang(2, 3), "asks for 2 ranks of 3 slots of one host each, all at once"),
    ],
)
def test_what_no_cluster_of_this_size_can_grant_is_unmet(gang: Gang, why: str | None) -> None:
    workers = [
        Capacity("a", "h", "a", {}, 2),
        Capacity("b", "h", "b", {}, 1),
        Capacity("c", "i", "c", {}, 2),
    ]
    found = unmet(Options(gang=gang), workers)
    if why is None:
        assert found is None
    else:
        assert found is not None
        assert re.search(why, found)


def test_a_worker_that_is_about_to_come_back_counts_for_gangs() -> None:
    here = Capacity("a", "h", "a", {}, 1)
    dead = Capacity("b", "h", "b", {}, 1, is_here=False)
    assert unmet(Options(gang=Gang(1, 2)), [here, dead]) is None
    assert unmet(Options(gang=Gang(1, 2)), [here]) is not None
    assert unmet(Options(gang=Gang(1, 2)), []) is None, "with no worker at all, tasks wait"
    assert unmet(Options(workers=("b",)), [here, dead]) is not None
