"""Packing: short tasks share blocks, long ones do not, and blocks never wait in a circle."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from daskbatch.plan.blocks import MAX_LONG_BLOCK_SECONDS, SOLO_THRESHOLD_SECONDS, Candidate
from daskbatch.plan.packing import pack

SHORT, LONG = 1e-4, 1.0


def task(
    *waits: int,
    seconds: float | None = SHORT,
    kind: str | None = "k",
    outside: frozenset[int] = frozenset(),
    overwrites: tuple[int, ...] = (),
) -> Candidate:
    return Candidate(seconds, kind, waits=waits, outside=outside, overwrites=overwrites)


def packed(candidates: Sequence[Candidate], slots: int = 2, size: int = 10) -> list[list[int]]:
    return pack(candidates, [size] * len(candidates), slots)


def block_of(blocks: list[list[int]], position: int) -> list[int]:
    (found,) = (block for block in blocks if position in block)
    return found


# -- what holds always --------------------------------------------------------------------


def check(candidates: Sequence[Candidate], blocks: list[list[int]]) -> None:
    home = {member: number for number, block in enumerate(blocks) for member in block}
    assert sorted(member for block in blocks for member in block) == list(range(len(candidates)))
    assert all(blocks), "an empty block"
    for block in blocks:
        assert block == sorted(block)
        assert len({candidates[member].kind for member in block} - {None}) <= 1
        if any(candidates[member].solo for member in block):
            assert len(block) == 1
        expected = [candidates[member].seconds or 0.0 for member in block]
        if max(expected) > SOLO_THRESHOLD_SECONDS:
            assert len(block) == 1 or sum(expected) <= MAX_LONG_BLOCK_SECONDS
    for position, candidate in enumerate(candidates):
        for before in candidate.waits:
            assert home[before] <= home[position], "a block comes before one that it waits for"
        for overwritten in candidate.overwrites:
            assert home[overwritten] != home[position], "both ends of an overwrite"


def random_program(count: int, reach: int, chains: float, seed: int) -> list[Candidate]:
    """A program whose tasks wait for a few recent ones, and overwrite data of any earlier ones."""
    chance = random.Random(seed)
    candidates: list[Candidate] = []
    behind: list[set[int]] = []
    for position in range(count):
        recent = range(max(0, position - reach), position)
        if chance.random() < chains:
            waits = tuple(recent[-1:])
        else:
            waits = tuple(chance.sample(recent, min(len(recent), chance.choice([0, 0, 1, 2, 5]))))
        before = set(waits).union(*(behind[other] for other in waits))
        behind.append(before)
        some = chance.sample(sorted(before), min(len(before), chance.choice([0, 0, 0, 1, 2])))
        candidates.append(
            Candidate(
                seconds=chance.choice([None, None, 0.0, 1e-6, SHORT, SHORT, 0.02, LONG]),
                kind=chance.choice("aaaab"),
                solo=chance.random() < 0.05,
                waits=waits,
                outside=frozenset([1] if chance.random() < 0.1 else []),
                overwrites=tuple(some),
            )
            if chance.random() < 0.9
            else Candidate(0.0, waits=waits)
        )
    return candidates


@settings(deadline=None, max_examples=300)
@given(
    count=st.integers(0, 120),
    reach=st.sampled_from([1, 3, 10, 200]),
    chains=st.sampled_from([0.0, 0.5, 0.9]),
    slots=st.sampled_from([1, 2, 16]),
    size=st.sampled_from([0, 100, 400_000]),
    seed=st.integers(0, 2**32),
)
def test_what_must_hold_of_blocks_holds_for_any_program(
    count: int, reach: int, chains: float, slots: int, size: int, seed: int
) -> None:
    candidates = random_program(count, reach, chains, seed)
    check(candidates, packed(candidates, slots, size))


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 60), st.sampled_from([1, 2]), st.integers(0, 2**32))
def test_what_must_hold_of_blocks_holds_where_all_are_alike(
    count: int, reach: int, seed: int
) -> None:
    chance = random.Random(seed)
    candidates = [
        task(
            *range(max(0, position - chance.randint(1, reach)), position),
            overwrites=tuple(chance.sample(range(position - 1), 1) if position > 1 else ()),
        )
        for position in range(count)
    ]
    check(candidates, packed(candidates, 1))


def test_nothing_makes_no_blocks() -> None:
    assert packed([]) == []


def test_a_task_does_not_share_a_block_with_one_further_up_that_it_overwrites() -> None:
    chain = [task(), task(0), task(1, overwrites=(0,)), task(2)]
    check(chain, packed(chain))


def test_a_chain_does_not_carry_what_it_overwrites_into_the_block_that_it_joins() -> None:
    # A narrow and deep program, so that chains join the blocks of their predecessors.
    candidates = [task()]
    for position in range(1, 400, 4):
        first = position - 1
        candidates += [
            task(first),
            task(first),
            task(position),
            task(position + 2, overwrites=(first,)),
        ]
    check(candidates, packed(candidates, 1))


@pytest.mark.parametrize("waits", [(), (0,)])
def test_tasks_that_take_no_time_are_packed_too(waits: tuple[int, ...]) -> None:
    candidates = [task(seconds=0.0), task(*waits, seconds=0.0), task(seconds=0.0)]
    check(candidates, packed(candidates))


# -- how much is packed -------------------------------------------------------------------


def test_a_few_tasks_that_nobody_knows_are_not_packed() -> None:
    assert packed([task(seconds=None)] * 8, slots=4) == [[n] for n in range(8)]


@pytest.mark.parametrize("seconds", [SHORT, None])
def test_many_short_tasks_share_blocks_enough_for_all_slots(seconds: float | None) -> None:
    for slots in (1, 4, 16):
        blocks = packed([task(seconds=seconds)] * 10_000, slots)
        assert slots <= len(blocks) <= 500


def test_many_short_tasks_behind_others_share_blocks_too() -> None:
    candidates = [*[task()] * 5000, *[task(n, (n + 1) % 5000) for n in range(5000)]]
    blocks = packed(candidates, slots=4)
    check(candidates, blocks)
    assert 8 <= len(blocks) <= 500


def test_the_work_is_divided_so_that_no_block_keeps_the_others_waiting() -> None:
    for slots in (2, 8):
        blocks = packed([task(seconds=1e-3)] * 4000, slots)
        longest = max(map(len, blocks)) * 1e-3
        assert longest <= 0.2
        assert longest <= 4.0 / slots


def test_long_tasks_share_a_block_only_while_many_more_follow() -> None:
    blocks = packed([task(seconds=2 * SOLO_THRESHOLD_SECONDS)] * 100, slots=2)
    sizes = [len(block) for block in blocks]
    assert sizes == sorted(sizes, reverse=True)
    assert set(sizes) == {2, 1}
    assert 20 <= sizes.count(1) <= 40


def test_few_long_tasks_are_alone() -> None:
    assert len(packed([task(seconds=2 * SOLO_THRESHOLD_SECONDS)] * 16, slots=2)) == 16


def test_very_long_tasks_are_alone() -> None:
    blocks = packed([task(seconds=LONG), task()] * 200)
    assert [block for block in blocks if len(block) == 1 and block[0] % 2 == 0] == [
        [n] for n in range(0, 400, 2)
    ]


def test_so_many_long_tasks_that_dask_would_suffer_share_blocks() -> None:
    assert len(packed([task(seconds=LONG)] * 100_000)) <= 20_000


def test_where_there_is_other_work_to_be_done_blocks_are_no_smaller() -> None:
    candidates = [task(seconds=1e-3)] * 500
    alone, besides = (pack(candidates, [10] * 500, 2, others) for others in (0, 100_000))
    check(candidates, besides)
    assert len(besides) < len(alone)


def test_solo_tasks_are_alone_however_short() -> None:
    blocks = packed([Candidate(SHORT, "k", solo=number % 3 == 0) for number in range(300)])
    for number in range(0, 300, 3):
        assert block_of(blocks, number) == [number]
    assert len(blocks) < 200


def test_tasks_with_large_arguments_do_not_share_a_block() -> None:
    assert len(packed([task()] * 100, size=1 << 20)) == 100
    assert len(packed([task()] * 100, size=1 << 18)) >= 25


def test_kinds_are_packed_apart_though_they_alternate() -> None:
    candidates = [task(kind="ab"[number % 2]) for number in range(2000)]
    blocks = packed(candidates)
    check(candidates, blocks)
    assert len(blocks) <= 200


# -- what is packed together --------------------------------------------------------------


@pytest.mark.parametrize("seconds", [SHORT, None])
@pytest.mark.parametrize("width", [1, 40])
def test_chains_of_short_tasks_stay_together(width: int, seconds: float | None) -> None:
    candidates = [task(seconds=seconds) for _ in range(width)]
    for number in range(width, 5 * width):
        candidates.append(task(number - width, seconds=seconds))
    blocks = packed(candidates)
    check(candidates, blocks)
    for first in range(width):
        assert set(range(first, 5 * width, width)) <= set(block_of(blocks, first))


def test_a_long_chain_is_cut_where_it_would_take_too_long() -> None:
    chain = [task(*([number - 1] if number else []), seconds=1e-3) for number in range(1000)]
    blocks = packed(chain)
    check(chain, blocks)
    assert max(map(len, blocks)) <= 200
    assert len(blocks) <= 50


def test_a_chain_of_long_tasks_is_one_by_one() -> None:
    chain = [task(*([number - 1] if number else []), seconds=LONG) for number in range(10)]
    assert packed(chain) == [[number] for number in range(10)]


def test_a_narrow_graph_does_not_hop_at_every_step() -> None:
    candidates = [task()]
    for position in range(0, 1500, 3):
        candidates += [task(position), task(position), task(position + 1, position + 2)]
    blocks = packed(candidates)
    check(candidates, blocks)
    assert len(blocks) <= len(candidates) / 10


def test_the_successor_of_a_long_task_is_not_put_with_unrelated_tasks() -> None:
    width = 400
    roots = [task() for _ in range(width)]
    behind = [task(number, (number + 1) % width) for number in range(width)]
    long, late = task(seconds=LONG), task(2 * width, 0)
    candidates = [*roots, *behind, long, late]
    blocks = packed(candidates)
    check(candidates, blocks)
    assert block_of(blocks, 2 * width + 1) == [2 * width + 1]
    assert len(blocks) < width


def test_tasks_that_wait_for_different_earlier_blocks_are_packed_apart() -> None:
    candidates = [task(outside=frozenset([number % 2])) for number in range(1000)]
    candidates += [task() for _ in range(1000)]
    for block in packed(candidates):
        assert len({candidates[member].outside for member in block}) == 1


def test_a_barrier_is_packed_like_a_task_and_keeps_the_order() -> None:
    width = 500
    candidates = [task() for _ in range(width)]
    candidates.append(Candidate(0.0, waits=tuple(range(width))))
    candidates += [task(width) for _ in range(width)]
    blocks = packed(candidates)
    check(candidates, blocks)
    barrier = next(number for number, block in enumerate(blocks) if width in block)
    homes = {member: number for number, block in enumerate(blocks) for member in block}
    assert all(homes[member] <= barrier for member in range(width))
    assert all(homes[member] >= barrier for member in range(width + 1, 2 * width + 1))
    assert len(blocks) < 200


# -- cost ---------------------------------------------------------------------------------

SHAPES: dict[str, Callable[[int], list[Candidate]]] = {
    "independent": lambda n: [task() for _ in range(n)],
    "unknown": lambda n: [task(seconds=None) for _ in range(n)],
    "one chain": lambda n: [task(*([each - 1] if each else [])) for each in range(n)],
    "chains": lambda n: [task(*([each - 100] if each >= 100 else [])) for each in range(n)],
    "layers": lambda n: [
        task(*(each - 1000 + off for off in (0, 1, 7) if each >= 1000)) for each in range(n)
    ],
    "many, a barrier, many": lambda n: [
        *(task() for _ in range(n // 2)),
        Candidate(0.0, waits=tuple(range(n // 2))),
        *(task(n // 2) for _ in range(n // 2)),
    ],
    "behind many long ones": lambda n: [
        *(task(seconds=LONG) for _ in range(n // 2)),
        *(task(each, (each * 7) % (n // 2)) for each in range(n // 2)),
    ],
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_hundred_thousand_tasks_are_packed_in_no_time(shape: str) -> None:
    candidates = SHAPES[shape](100_000)
    blocks = packed(candidates, slots=8)
    assert sum(map(len, blocks)) == len(candidates)
    homes = {member: number for number, block in enumerate(blocks) for member in block}
    assert len(homes) == len(candidates)
    for block in blocks:
        assert all(one < other for one, other in pairwise(block))
