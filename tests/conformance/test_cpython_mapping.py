"""A `DDict` passes CPython's own tests of mappings and of dict, in every layout.

The tests of mappings run unchanged. The tests of dict use dict literals, so each test that applies
is rewritten here, under the same name. `mapping_cases` lists those that do not apply.
"""

from __future__ import annotations

import random
import unittest
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
from conformance import mapping_cases
from conformance.mapping_cases import (
    LAYOUTS,
    NOT_RUN,
    REWRITTEN,
    BadDictKey,
    BadEq,
    BadHash,
    BadValue,
    Error,
    FailingUserDict,
    SimpleUserDict,
    Text,
)

from daskbatch import Batch, DDict

#: Makes a dictionary with what is in another, or an empty one.
Make = Callable[..., DDict]


@pytest.fixture(scope="module", autouse=True)
def shared() -> Iterator[Batch]:
    """One cluster for all tests of this file."""
    with Batch(num_workers=3) as batch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(mapping_cases.MappingCases, "batch", batch, raising=False)
        yield batch


@pytest.fixture(params=LAYOUTS)
def make(request: pytest.FixtureRequest, shared: Batch) -> Iterator[Make]:
    """Makes dictionaries of each layout, and closes them after the test."""
    made: list[DDict] = []

    def new(items: Mapping[Any, Any] | None = None) -> DDict:
        made.append(shared.ddict(**LAYOUTS[request.param]))
        for key, value in (items or {}).items():
            made[-1][key] = value
        return made[-1]

    yield new
    for each in made:
        each.close()


# -- the cases of mappings ----------------------------------------------------------------

for _layout, _options in LAYOUTS.items():
    _name = f"TestMappingOf{_layout}"
    globals()[_name] = type(_name, (mapping_cases.MappingCases,), {"options": _options})


# -- the cases of dict --------------------------------------------------------------------


def raises(
    kind: type[BaseException] | tuple[type[BaseException], ...],
    function: Callable[..., object],
    *arguments: object,
) -> None:
    with pytest.raises(kind):
        function(*arguments)


def _two_pairs_and_an_error() -> Iterator[tuple[int, int]]:
    yield 1, 1
    yield 2, 2
    raise Error


def test_invalid_keyword_arguments(make: Make) -> None:
    invalid: Any = {1: 2}
    with pytest.raises(TypeError):
        make().update(**invalid)


def test_constructor(make: Make) -> None:
    assert make() == {}
    assert make() is not make()


def test_literal_constructor(make: Make) -> None:
    d = make()
    for size in (0, 1, 6, 256, 400):
        items = [(f"{random.random()}", number) for number in range(size)]
        d.clear()
        d.update(items)
        assert d == dict(items)


def test_bool(make: Make) -> None:
    assert (not make()) is True
    assert make({1: 2})
    assert (bool(make())) is False
    assert (bool(make({1: 2}))) is True


def test_keys(make: Make) -> None:
    assert set(make().keys()) == set()
    d = make({"a": 1, "b": 2})
    keys = d.keys()
    assert set(keys) == {"a", "b"}
    for key in ("a", "b"):
        assert key in keys
        assert key in d
    raises(TypeError, d.keys, None)


def test_values(make: Make) -> None:
    assert set(make().values()) == set()
    d = make({1: 2})
    assert set(d.values()) == {2}
    raises(TypeError, d.values, None)


def test_items(make: Make) -> None:
    assert set(make().items()) == set()
    d = make({1: 2})
    assert set(d.items()) == {(1, 2)}
    raises(TypeError, d.items, None)


def test_contains(make: Make) -> None:
    d = make()
    assert "a" not in d
    assert "a" not in d
    d = make({"a": 1, "b": 2})
    assert "a" in d
    assert "b" in d
    assert "c" not in d
    raises(TypeError, d.__contains__)


def test_len(make: Make) -> None:
    assert len(make()) == 0
    assert len(make({"a": 1, "b": 2})) == 2


def test_getitem(make: Make) -> None:
    d = make({"a": 1, "b": 2})
    assert (d["a"], d["b"]) == (1, 2)
    d["c"] = 3
    d["a"] = 4
    assert (d["c"], d["a"]) == (3, 4)
    del d["b"]
    assert d == {"a": 4, "c": 3}
    raises(TypeError, d.__getitem__)
    d = make({BadEq(24): 42})
    raises(KeyError, d.__getitem__, 23)
    x = BadHash()
    d[x] = 42
    x.fail = True
    raises(Error, d.__getitem__, x)


def test_clear(make: Make) -> None:
    d = make({1: 1, 2: 2, 3: 3})
    d.clear()
    assert d == {}
    raises(TypeError, d.clear, None)


def test_update(make: Make) -> None:
    d = make()
    d.update({1: 100})
    d.update({2: 20})
    d.update({1: 1, 2: 2, 3: 3})
    assert d == {1: 1, 2: 2, 3: 3}
    d.update()
    assert d == {1: 1, 2: 2, 3: 3}
    raises((TypeError, AttributeError), d.update, None)
    d.clear()
    d.update(SimpleUserDict())
    assert d == {1: 1, 2: 2, 3: 3}
    for where in ("keys", "after the first", "values"):
        raises(Error, d.update, FailingUserDict(where))
    raises(Error, d.update, _two_pairs_and_an_error())
    raises(ValueError, d.update, [(1, 2, 3)])


def test_get(make: Make) -> None:
    d = make()
    assert (d.get("c")) is None
    assert d.get("c", 3) == 3
    d = make({"a": 1, "b": 2})
    assert (d.get("c")) is None
    assert d.get("c", 3) == 3
    assert d.get("a") == 1
    assert d.get("a", 3) == 1
    raises(TypeError, d.get)
    raises(TypeError, d.get, None, None, None)


def test_setdefault(make: Make) -> None:
    d = make()
    assert (d.setdefault("key0")) is None
    d.setdefault("key0", [])
    assert (d.setdefault("key0")) is None
    assert d.setdefault("key", [3]) == [3]
    assert d.setdefault("key", [4]) == [3]
    raises(TypeError, d.setdefault)
    x = BadHash()
    d[x] = 42
    x.fail = True
    raises(Error, d.setdefault, x, [])


def test_popitem(make: Make) -> None:
    d = make({number: str(number) for number in range(20)})
    popped = [d.popitem() for _ in range(20)]
    assert dict(popped) == {number: str(number) for number in range(20)}
    raises(KeyError, d.popitem)


def test_pop(make: Make) -> None:
    d = make({"abc": "def"})
    raises(KeyError, d.pop, "ghi")
    assert d.pop("abc") == "def"
    assert len(d) == 0
    raises(KeyError, d.pop, "abc")
    assert d.pop("abc", "def") == "def"
    d["abc"] = "def"
    assert d.pop("abc", 1) == "def"
    raises(TypeError, d.pop)
    x = BadHash()
    d[x] = 42
    x.fail = True
    raises(Error, d.pop, x)


def test_eq(make: Make) -> None:
    assert make() == make()
    assert make({1: 2}) == make({1: 2})
    assert make({1: 2}) != make({1: 3})
    with pytest.raises(Error):
        _ = make({BadEq(): 1}) == make({1: 1})


def _contained(make: Make, view: Callable[[Any], Any]) -> None:
    empty, empty2 = view(make()), view(make())
    smaller = view(make({1: 1, 2: 2}))
    larger = view(make({1: 1, 2: 2, 3: 3}))
    larger2 = view(make({1: 1, 2: 2, 3: 3}))
    larger3 = view(make({4: 1, 2: 2, 3: 3}))
    assert smaller < larger
    assert smaller <= larger
    assert larger > smaller
    assert larger >= smaller
    assert not (smaller >= larger)
    assert not (smaller > larger)
    assert not (larger <= smaller)
    assert not (larger < smaller)
    assert not (smaller < larger3)
    assert not (smaller <= larger3)
    assert not (larger3 > smaller)
    assert not (larger3 >= smaller)
    assert larger2 >= larger
    assert larger2 <= larger
    assert not (larger2 > larger)
    assert not (larger2 < larger)
    assert larger == larger2
    assert smaller != larger
    assert empty == empty2
    assert empty != smaller
    assert larger != larger3


def test_keys_contained(make: Make) -> None:
    _contained(make, lambda d: d.keys())
    _contained(make, lambda d: d.items())


def test_errors_in_view_containment_check(make: Make) -> None:
    one, other = make({1: BadValue()}).items(), make({1: BadValue()}).items()
    more = make({1: BadValue(), 2: BadValue()}).items()
    for compare in (
        lambda: one == other,
        lambda: one != other,
        lambda: one <= other,
        lambda: one >= other,
        lambda: other < more,
        lambda: more > other,
    ):
        raises(RuntimeError, compare)


def test_dictview_set_operations_on_keys(make: Make) -> None:
    k1 = make({1: 1, 2: 2}).keys()
    k2 = make({1: 1, 2: 2, 3: 3}).keys()
    k3 = make({4: 4}).keys()
    assert k1 - k2 == set()
    assert k1 - k3 == {1, 2}
    assert k2 - k1 == {3}
    assert k3 - k1 == {4}
    assert k1 & k2 == {1, 2}
    assert k1 & k3 == set()
    assert k1 | k2 == {1, 2, 3}
    assert k1 ^ k2 == {3}
    assert k1 ^ k3 == {1, 2, 4}


def test_dictview_set_operations_on_items(make: Make) -> None:
    k1 = make({1: 1, 2: 2}).items()
    k2 = make({1: 1, 2: 2, 3: 3}).items()
    k3 = make({4: 4}).items()
    assert k1 - k2 == set()
    assert k1 - k3 == {(1, 1), (2, 2)}
    assert k2 - k1 == {(3, 3)}
    assert k3 - k1 == {(4, 4)}
    assert k1 & k2 == {(1, 1), (2, 2)}
    assert k1 & k3 == set()
    assert k1 | k2 == {(1, 1), (2, 2), (3, 3)}
    assert k1 ^ k2 == {(3, 3)}
    assert k1 ^ k3 == {(1, 1), (2, 2), (4, 4)}


def test_items_symmetric_difference(make: Make) -> None:
    rr = random.Random(5).randrange
    one, other = make(), make()
    for _ in range(5):
        left = {x: rr(3) for x in range(20) if rr(2)}
        right = {x: rr(3) for x in range(20) if rr(2)}
        for d, items in ((one, left), (other, right)):
            d.clear()
            d.update(items)
        assert one.items() ^ other.items() == left.items() ^ right.items()


def test_dictview_mixed_set_operations(make: Make) -> None:
    d = make({1: 1})
    assert d.keys() == {1}
    assert {1} == d.keys()
    assert d.keys() | {2} == {1, 2}
    assert {2} | d.keys() == {1, 2}
    assert d.items() == {(1, 1)}
    assert {(1, 1)} == d.items()
    assert d.items() | {2} == {(1, 1), 2}
    assert {2} | d.items() == {(1, 1), 2}


def test_tuple_keyerror(make: Make) -> None:
    d = make()
    for key in (42, "text", (1,), None, ("a", (1.5, frozenset({2})))):
        with pytest.raises(KeyError) as caught:
            d[key]
        assert caught.value.args == (key,)
        with pytest.raises(KeyError) as caught:
            del d[key]
        assert caught.value.args == (key,)


def test_bad_key(make: Make) -> None:
    d = make({BadDictKey(): 1})
    key = BadDictKey()
    for act in (
        lambda: d.__setitem__(key, 2),
        lambda: d[key],
        lambda: key in d,
        lambda: d.get(key),
        lambda: d.setdefault(key, 42),
        lambda: d.pop(key),
        lambda: d.update({key: 2}),
    ):
        raises(Error, act)


def test_resize1(make: Make) -> None:
    d = make()
    for number in range(5):
        d[number] = number
    for number in range(5):
        del d[number]
    for number in range(5, 9):
        d[number] = number
    assert d == {number: number for number in range(5, 9)}


def test_string_keys_can_track_values(make: Make) -> None:
    """A dictionary that contains itself: its value is the same dictionary."""
    d = make({str(number): number for number in range(10)})
    d["foo"] = d
    assert d["foo"]["foo"]["7"] == 7
    d["foo"]["8"] = "changed"
    assert d["8"] == "changed"


def test_str_nonstr(make: Make) -> None:
    """Without the class of CPython's test that equals a str but whose hash differs by process."""
    texts: list[str] = ["key3", Text("key3")]
    for key3 in texts:
        for write in (
            lambda d, key: d.__setitem__(key, 44),
            lambda d, key: d.setdefault(key, 44),
            lambda d, key: d.update({key: 44}),
        ):
            d = make({"key1": 42, "key2": 43})
            write(d, key3)
            assert [d.get(key) for key in ("key1", *texts)] == [42, 44, 44]
            assert len(d) == 3


# -- nothing is forgotten -----------------------------------------------------------------


def _names(case: type[unittest.TestCase]) -> set[str]:
    return set(unittest.TestLoader().getTestCaseNames(case))


def test_each_case_of_mappings_runs_in_each_layout_or_it_is_said_why_not() -> None:
    written = mapping_cases.written_of_mappings()
    for layout, options in LAYOUTS.items():
        case = globals()[f"TestMappingOf{layout}"]
        assert case.options == options
        for test in written:
            assert (test.split(".")[1] in _names(case)) != (test in NOT_RUN), test
    ours = vars(mapping_cases.MappingCases)
    replaced = {test for test in written if test.split(".")[1] in ours} - set(NOT_RUN)
    # What is in CPython's first class is called by what replaces it.
    assert {test for test in replaced if not test.startswith("Basic")} == set(REWRITTEN)
    assert {test for test in NOT_RUN if "Protocol." in test} <= written


def test_each_case_of_dict_is_written_anew_or_it_is_said_why_not() -> None:
    written = mapping_cases.written_of_dict()
    assert {test for test in NOT_RUN if "Protocol." not in test} <= written
    for test in written:
        assert (test.split(".")[1] in globals()) != (test in NOT_RUN), test
