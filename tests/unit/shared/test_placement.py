"""Where parts of shared objects are to be, when workers join and leave."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
from hypothesis import given

from daskbatch.shared.placement import Move, missing_replicas, spread, to_drop


@pytest.mark.parametrize(
    ("workers", "wanted", "leaving", "missing"),
    [
        (["a"], 1, [], 0),
        (["a"], 2, [], 1),
        (["a", "b"], 2, ["a"], 1),
        (["a", "b"], 2, ["a", "b"], 2),
        (["a", "b", "c"], 2, ["a"], 0),
    ],
)
def test_a_replica_on_a_worker_that_leaves_does_not_count(
    workers: list[str], wanted: int, leaving: list[str], missing: int
) -> None:
    assert missing_replicas(workers, wanted, leaving) == missing


@pytest.mark.parametrize(
    ("workers", "wanted", "leaving", "more_come", "dropped"),
    [
        (["a", "b"], 1, ["a"], False, ["a"]),
        (["a", "b"], 1, ["a"], True, ["a"]),
        # The only copy stays until there is another one.
        (["a"], 1, ["a"], True, []),
        (["a"], 1, ["a"], False, []),
        # With two, nothing is lost if one more worker dies meanwhile.
        (["a", "b"], 2, ["a"], True, []),
        (["a", "b"], 2, ["a"], False, ["a"]),
        (["a", "b"], 2, [], True, []),
    ],
)
def test_a_leaving_replica_goes_once_others_have_what_it_has(
    workers: list[str], wanted: int, leaving: list[str], more_come: bool, dropped: list[str]
) -> None:
    assert to_drop(workers, wanted, leaving, more_come) == dropped


def test_shards_of_one_worker_spread_over_those_that_join() -> None:
    shards = {index: ["a"] for index in range(8)}
    moves = spread(shards, ["a", "b", "c", "d"])
    load = Counter(move.target for move in moves)
    assert load == {"b": 2, "c": 2, "d": 2}
    assert all(move.source == "a" for move in moves)


def test_replicas_of_one_shard_stay_on_different_workers() -> None:
    shards = {0: ["a", "b"], 1: ["a", "b"], 2: ["a", "b"]}
    moves = spread(shards, ["a", "b", "c"])
    for index, source, target in moves:
        assert target == "c"
        shards[index] = [*(worker for worker in shards[index] if worker != source), target]
    assert all(len(set(workers)) == 2 for workers in shards.values())
    assert Counter(worker for each in shards.values() for worker in each) == {
        "a": 2,
        "b": 2,
        "c": 2,
    }


def test_what_is_balanced_stays() -> None:
    assert spread({0: ["a"], 1: ["b"], 2: ["a"]}, ["a", "b"]) == []
    assert spread({0: ["a"]}, ["a", "b"]) == []
    assert spread({}, ["a"]) == []
    assert spread({0: ["a"], 1: ["a"]}, []) == []


@given(
    st.dictionaries(
        st.integers(0, 20), st.lists(st.sampled_from("abcde"), min_size=1, max_size=2, unique=True)
    ),
    st.lists(st.sampled_from("abcdefg"), unique=True),
)
def test_moves_are_possible_and_balance(shards: dict[int, list[str]], able: list[str]) -> None:
    places = {index: list(workers) for index, workers in shards.items()}
    for move in spread(shards, able):
        assert isinstance(move, Move)
        assert move.target in able
        assert move.target not in places[move.shard]
        places[move.shard].remove(move.source)
        places[move.shard].append(move.target)
    before = Counter(worker for each in shards.values() for worker in each if worker in able)
    after = Counter(worker for each in places.values() for worker in each if worker in able)
    if able:
        assert max(after[w] for w in able) <= max(before[w] for w in able)
        assert min(after[w] for w in able) >= min(before[w] for w in able)
