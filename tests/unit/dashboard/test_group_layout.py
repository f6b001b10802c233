"""Each group has a place of its own, to the right of those that it depends on."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from daskbatch.dashboard.group_layout import lay_out, ordered

NAMES = st.sampled_from("abcdefghij")


@given(st.dictionaries(NAMES, st.sets(NAMES, max_size=4)))
def test_each_group_has_its_place(dependencies: dict[str, set[str]]) -> None:
    nodes, arrows = lay_out(dependencies)
    assert nodes.keys() == arrows.keys() == dependencies.keys()
    assert len({(place["x"], place["y"]) for place in nodes.values()}) == len(nodes)
    for name, arrow in arrows.items():
        assert arrow["nstart"] <= dependencies[name]
        assert len(arrow["nend"]) == len(arrow["nstart"])
        assert all(nodes[before]["x"] < nodes[name]["x"] for before in arrow["nstart"])


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), max_size=30))
def test_without_a_circle_all_arrows_are_drawn(steps: list[tuple[int, int]]) -> None:
    dependencies = {
        str(n): {str(n - back) for back in backs if n >= back} for n, backs in enumerate(steps)
    }
    assert ordered(dict(reversed(dependencies.items()))) == dependencies


def test_long_chains() -> None:
    chain = {str(n): {str(n - 1)} if n else set() for n in range(5000)}
    nodes, _ = lay_out(dict(reversed(chain.items())))
    assert nodes["4999"] == {"x": 4999, "y": 0}
