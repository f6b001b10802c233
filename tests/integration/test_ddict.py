"""The methods of a `DDict`: values, operations on many keys, counters and views.

`conformance/test_cpython_mapping` compares it with a dict, `test_ddict_keys` tests its keys,
`test_ddict_limits` what it refuses, and `test_ddict_tasks` its use in tasks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, MutableMapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from support import ddicts

from daskbatch import Batch, DDict


@pytest.fixture
def d(batch: Batch) -> Iterator[DDict]:
    """A dictionary of two shards on two workers."""
    with batch.ddict(shards=2) as made:
        yield made


def test_it_is_a_mutable_mapping(d: DDict) -> None:
    assert isinstance(d, MutableMapping)


# -- values are copies --------------------------------------------------------------------


def test_copies_in_a_client(d: DDict) -> None:
    assert ddicts.change_copies(d, "key") == (False, [[1], 0.0, 0.0])


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_copies_in_a_task(batch: Batch, isolation: str) -> None:
    """In the process of the shard, no message copies the values: the dictionary must do it."""
    with batch.ddict(shards=1) as d:
        there = d.workers_for(["key"])
        task = batch.options(workers=there, isolation=isolation).function(
            ddicts.change_copies, d, "key"
        )
        task.run(timeout=60)
        assert task.get() == (isolation == "thread", [[1], 0.0, 0.0])


def test_what_is_popped_belongs_to_who_pops_it(d: DDict) -> None:
    d["a"] = np.arange(100_000)
    popped = d.pop("a")
    popped[:] = 0
    d["a"] = popped
    popped += 1
    assert not d["a"].any()


ARRAYS: dict[str, Callable[[], Any]] = {
    "large": lambda: np.random.default_rng(0).random(3_000_000),
    "of no size": lambda: np.empty((0, 3)),
    "of no dimension": lambda: np.array(1.5),
    "in columns": lambda: np.asfortranarray(np.arange(200_000).reshape(400, 500)),
    "with gaps": lambda: np.arange(200_000)[::3],
    "backwards": lambda: np.arange(200_000)[::-1],
    "read only": lambda: np.frombuffer(bytes(range(256)) * 1000, "u1"),
    "of records": lambda: np.zeros(50_000, [("x", "f8"), ("y", "i4")]),
    "of objects": lambda: np.array([1, "a", None], dtype=object),
    "of another order": lambda: np.arange(100_000, dtype=">i8"),
    "of texts": lambda: np.array(["Straße", "🚲"] * 10_000),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_arrays(batch: Batch, d: DDict, kind: str) -> None:
    array = ARRAYS[kind]()
    d["array"] = array
    for found in (d["array"], d.get_many(["array"])["array"], dict(d)["array"]):
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found, array)
    task = batch.function(ddicts.read, d, "array")
    task.run(timeout=60)
    np.testing.assert_array_equal(task.get(), array)


def test_large_values_of_other_types(d: DDict) -> None:
    values = {
        "bytes": bytes(10_000_000),
        "bytearray": bytearray(b"x" * 5_000_000),
        "text": "Straße 🚲" * 500_000,
        "list": list(range(100_000)),
        "nested": {"a": [np.ones(100_000), (bytes(1_000_000), "x")]},
    }
    d.put_many(values)
    found = d.get_many(values)
    np.testing.assert_array_equal(found["nested"]["a"][0], np.ones(100_000))
    del found["nested"], values["nested"]
    assert found == values
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in values.items()
    }


def test_functions_and_classes_of_a_notebook(batch: Batch, d: DDict) -> None:
    class Local:
        def __init__(self, number: int) -> None:
            self.number = number

    d["function"] = lambda number: number + 1
    d["instance"] = Local(5)
    assert d["function"](1) == 2
    assert isinstance(d["instance"], Local)
    task = batch.function(lambda: d["function"](d["instance"].number))
    task.run(timeout=60)
    assert task.get() == 6


def test_more_than_fits_is_on_disk(batch: Batch) -> None:
    with batch.ddict(shards=2, memory_limit="1 MiB") as d:
        for number in range(40):
            d[number] = np.full(50_000, number)
        assert sum(each["spilled"] for each in d.stats()) > 10 << 20
        assert sum(each["bytes"] for each in d.stats()) < 4 << 20
        for number in range(40):
            assert (d[number] == number).all()
        d.clear()
        assert [each["spilled"] for each in d.stats()] == [0, 0]


# -- many at once -------------------------------------------------------------------------


def test_put_many_takes_what_update_takes(d: DDict) -> None:
    d.put_many({"a": 1, "b": 2})
    d.put_many([("c", 3), ("a", 4)])
    d.put_many((letter, letter) for letter in "bc")
    d.put_many({})
    d.put_many(d)
    assert d == {"a": 4, "b": "b", "c": "c"}


def test_it_is_updated_in_place(d: DDict) -> None:
    same = d
    d |= {"a": 1, "b": 2}
    d |= [("b", 3)]
    d |= d
    assert d is same
    assert d == {"a": 1, "b": 3}
    with pytest.raises(TypeError):
        d |= 5  # type: ignore[arg-type]


def test_of_equal_keys_the_last_one_is_kept(d: DDict) -> None:
    d.put_many([(1, "a"), ("x", 0), (1.0, "b"), (True, "c")])
    assert d == {1: "c", "x": 0}


def test_get_many_gives_a_dict_in_the_order_asked_for(d: DDict) -> None:
    d.update({number: number**2 for number in range(50)})
    wanted = list(range(40, 10, -1))
    assert list(d.get_many(wanted).items()) == [(number, number**2) for number in wanted]
    assert d.get_many(iter([1, 1, 1.0])) == {1: 1}
    assert d.get_many([]) == {}


def test_all_keys_that_are_missing_are_named(d: DDict) -> None:
    d.update(a=1, b=2)
    missing = [("x", 1), None, "c", 3.5]
    with pytest.raises(KeyError) as caught:
        d.get_many(["a", *missing, "b"])
    assert set(caught.value.args) == set(missing)


def test_a_hundred_thousand_keys(d: DDict) -> None:
    d.put_many((f"key {number}", number) for number in range(100_000))
    assert len(d) == 100_000
    assert sorted(d.values()) == list(range(100_000))
    assert set(d) == {f"key {number}" for number in range(100_000)}
    assert d.get_many(f"key {number}" for number in range(0, 100_000, 7)) == {
        f"key {number}": number for number in range(0, 100_000, 7)
    }
    assert min(each["keys"] for each in d.stats()) > 40_000, "they are spread"
    d.clear()
    assert len(d) == 0


# -- numbers ------------------------------------------------------------------------------


def test_fetch_add(d: DDict) -> None:
    assert [d.fetch_add("n"), d.fetch_add("n", 10), d.fetch_add("n", -3)] == [0, 1, 11]
    assert d["n"] == 8
    d["x"] = 0.5
    assert d.fetch_add("x", 0.25) == 0.5
    assert d["x"] == 0.75
    assert d.fetch_add("f", Fraction(1, 3)) == 0
    assert d["f"] == Fraction(1, 3)
    d["d"] = Decimal("0.1")
    assert d.fetch_add("d") == Decimal("0.1")
    assert d["d"] == Decimal("1.1")
    d["large"] = 2**100
    assert d.fetch_add("large") == 2**100
    assert d["large"] == 2**100 + 1


def test_only_numbers_are_added(d: DDict) -> None:
    values: dict[str, Any] = {"text": "1", "list": [1], "none": None}
    d.update(values, n=1)
    for key in values:
        with pytest.raises(TypeError):
            d.fetch_add(key)
    with pytest.raises(TypeError):
        d.fetch_add("n", "1")
    with pytest.raises(TypeError):
        d.fetch_add("new", [1])
    assert d == {**values, "n": 1}


def test_threads_of_a_client_use_it_at_once(d: DDict) -> None:
    found: list[int] = []

    def count() -> None:
        found.extend(ddicts.count_up(d, "n", 200))

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == list(range(1600))


# -- views --------------------------------------------------------------------------------


def test_views_show_what_comes_later(d: DDict) -> None:
    keys, values, items = d.keys(), d.values(), d.items()
    d.update(a=1, b=2)
    assert (len(keys), len(values), len(items)) == (2, 2, 2)
    assert "a" in keys
    assert 2 in values
    assert ("a", 1) in items
    assert ("a", 2) not in items
    del d["a"]
    assert (list(keys), list(values), list(items)) == (["b"], [2], [("b", 2)])


@pytest.mark.parametrize("view", ["keys", "values", "items", "__iter__"])
def test_it_can_be_changed_while_it_is_gone_through(d: DDict, view: str) -> None:
    d.update((number, number) for number in range(1000))
    seen = []
    for count, each in enumerate(getattr(d, view)()):
        seen.append(each[0] if view == "items" else each)
        if count % 10 == 0:
            d.pop(500 + count // 10, None)
            d[f"new {count}"] = f"new {count}"
    kept = [each for each in seen if isinstance(each, int)]
    assert len(kept) == len(set(kept))
    assert set(kept) >= set(range(500)), "what is there all the time is seen"
    assert set(kept) <= set(range(1000))


def test_it_can_be_gone_through_while_others_write(d: DDict) -> None:
    d.update((number, number) for number in range(500))
    stop = threading.Event()

    def write() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            d[-1 - number % 100] = number
            d.pop(-1 - (number * 7) % 100, None)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(10):
            found = dict(d.items())
            assert {key: value for key, value in found.items() if key >= 0} == {
                number: number for number in range(500)
            }
    finally:
        stop.set()
        thread.join()


def test_what_is_removed_is_not_asked_for(d: DDict) -> None:
    d.update((number, number) for number in range(10))
    items, keys = iter(d.items()), iter(d)
    next(items), next(keys)
    d.clear()
    for left in (items, keys):
        assert len(list(left)) < 10


# -- what it says of itself ---------------------------------------------------------------


def test_what_it_says_of_its_shards(d: DDict) -> None:
    d.update((number, bytes(10_000)) for number in range(20))
    told = d.stats()
    assert len(told) == 2
    assert {each["worker"] for each in told} == set(d.workers_for(range(20)))
    assert sum(each["keys"] for each in told) == 20
    assert sum(each["bytes"] for each in told) >= 200_000
    html = d._repr_html_()
    for each in told:
        assert each["worker"] in html
        assert f"{each['keys']:,}" in html


def test_repr_says_which_one_it_is(batch: Batch) -> None:
    with batch.ddict(name="of results") as d:
        d["a"] = 1
        assert "of results" in repr(d)
        assert d.name == "of results"


def test_the_name_of_one_cannot_be_markup(batch: Batch) -> None:
    with batch.ddict(name="<b>&") as d:
        assert "<b>" not in d._repr_html_()
