"""Keys are named after tasks, and their groups do not depend on each other in a circle."""

from __future__ import annotations

from graphlib import TopologicalSorter

import pytest
from dask.utils import key_split
from hypothesis import given
from hypothesis import strategies as st

from daskbatch.describe.spec import function_call
from daskbatch.dispatch.key_names import (
    BARRIER,
    MIXED,
    OTHERS,
    TOKEN,
    Stages,
    dashboard_name,
    member_names,
)
from daskbatch.dispatch.task_record import Group, TaskRecord

NONCE = "0123456789abcdef"


def record(name: str, group: Group | None = None) -> TaskRecord:
    made = TaskRecord("client", 0, name, function_call(len, ("x",), {}))
    made.group = group
    return made


@pytest.mark.parametrize(
    "name", ["a", "two words", "2", "", "größe", "a" * 32, "-", "_x", "é", "("]
)
def test_dask_shows_a_name_as_a_whole(name: str) -> None:
    shown = dashboard_name(name)
    assert key_split((f"{shown}-{NONCE}", 1)) == shown


def test_blocks_of_one_name_have_that_name() -> None:
    assert member_names([record("load")] * 3) == ("load", (("load", 3),))
    assert member_names([record("a-b"), record("a b")]) == ("a_b", (("a_b", 2),))


def test_blocks_of_several_names_count_each() -> None:
    name, counts = member_names([record("load"), record("fit"), record("load")])
    assert name == MIXED
    assert dict(counts) == {"load": 2, "fit": 1}


def test_barriers_are_not_counted() -> None:
    barrier = TaskRecord("client", -1, "barrier", None)
    assert member_names([barrier]) == (BARRIER, ())
    assert member_names([barrier, record("load")]) == ("load", (("load", 1),))


def test_of_many_names_the_others_are_counted_together() -> None:
    _, counts = member_names([record(f"n{i}") for i in range(100)])
    assert sum(count for _, count in counts) == 100
    assert dict(counts)[OTHERS] == 80


def test_calls_of_an_executor_have_its_name_before_theirs() -> None:
    group = Group("executor", 0)
    group.prefix = "survey"
    assert member_names([record("abs", group)])[0] == "survey_abs"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["load", "fit", "plot"]),
            st.sets(st.integers(1, 6), max_size=3),  # how far before the block its values are
            st.sets(st.integers(1, 6), max_size=3),  # the same for tokens
        ),
        max_size=45,
    )
)
def test_groups_depend_on_each_other_in_no_circle(
    blocks: list[tuple[str, set[int], set[int]]],
) -> None:
    stages: Stages[int] = Stages(NONCE)
    groups: dict[int, str] = {}
    needs: dict[str, set[str]] = {}
    for number, (name, values, tokens) in enumerate(blocks):
        # A number below zero is a block of an earlier graph, which has another nonce.
        by_value = {number - back for back in values}
        by_token = {number - back for back in tokens} - by_value
        group = groups[number] = stages.place(number, name, by_value, by_token)
        assert key_split((group, number)) == name
        needs.setdefault(group, set()).update(groups[b] for b in by_value if b >= 0)
        for before in by_token:
            between = stages.token_group(before)
            assert key_split((between, before)) == TOKEN
            needs[group].add(between)
            needs.setdefault(between, set())
            if before >= 0:
                needs[between].add(groups[before])
    assert not any(group in before for group, before in needs.items())
    TopologicalSorter(needs).prepare()


def test_a_long_chain_of_one_name_has_few_groups() -> None:
    stages: Stages[int] = Stages(NONCE)
    groups = {stages.place(n, "step", [n - 1] if n else [], []) for n in range(1000)}
    assert len(groups) < 100
