"""The order in which Dask serves the blocks of a graph is that of the program."""

from __future__ import annotations

from typing import Any

import pytest
from dask.task_spec import DataNode, GraphNode, Task, TaskRef

from daskbatch.dispatch.graph_order import graph_order


def make(*blocks: tuple[str, int], **waits: int) -> dict[Any, GraphNode]:
    by_name = {key[0]: key for key in blocks}
    return {
        key: Task(key, print, *([TaskRef(by_name[f"b{waits[key[0]]}"])] if key[0] in waits else []))
        for key in blocks
    }


def test_one_name_is_left_to_dask() -> None:
    keys = [("work", 19), ("work", 18)]
    assert graph_order([make(*keys)], keys) is None
    assert graph_order([], []) is None


@pytest.mark.parametrize("names", [("a", "b", "c"), ("c", "b", "a"), ("b", "c", "b")])
def test_of_several_names_the_first_comes_first(names: tuple[str, ...]) -> None:
    keys = [(name, 19 - number) for number, name in enumerate(names)]
    layers = [{key: Task(key, print)} for key in reversed(keys)]
    found = graph_order(layers, keys)
    assert found is not None
    assert sorted(found, key=found.__getitem__) == keys


def test_data_comes_before_what_uses_it() -> None:
    keys = [("b", 19), ("a", 18)]
    nodes: dict[Any, GraphNode] = {key: Task(key, print, TaskRef("data")) for key in keys}
    nodes["data"] = DataNode("data", 1)
    assert graph_order([nodes], keys) == {"data": 0, ("b", 19): 1, ("a", 18): 2}


def test_with_edges_dask_decides_and_the_program_breaks_ties() -> None:
    # Two chains: b0 -> b2, and b1 -> b3.
    keys = [(f"b{n}", 19 - n) for n in range(4)]
    for order in (keys, [keys[1], keys[0], keys[3], keys[2]]):
        found = graph_order([make(*order, b2=0, b3=1)], order)
        assert found is not None
        # One chain after the other, that of the first block first.
        assert sorted(found, key=found.__getitem__) == [order[0], order[2], order[1], order[3]]
