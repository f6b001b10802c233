"""Large containers of plain values: which ones `marshal` stores, and that they arrive unchanged."""

from __future__ import annotations

import contextlib
import math
import pickle
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import numpy as np
import pytest

from daskbatch.serialization import pickling, plain_containers, stored_value

COUNT = 30_000

INLINE_LIMIT = 65_536


class Number(int):
    """An integer of a user's own type."""


class Pair(NamedTuple):
    """A tuple of a user's own type."""

    one: int
    other: int


class Color(IntEnum):
    RED = 1


def texts() -> list[Any]:
    return [str(n) for n in range(COUNT)]


def round_trip(value: Any) -> Any:
    data = plain_containers.dumps(value)
    assert data is not None
    return pickle.loads(plain_containers.PICKLE, buffers=[data.content])


@pytest.mark.parametrize(
    "make",
    [
        lambda: {n: str(n) for n in range(COUNT)},
        lambda: {str(n): n for n in reversed(range(COUNT))},
        lambda: [str(n) for n in range(COUNT)],
        lambda: tuple(str(n).encode() for n in range(COUNT)),
        lambda: [{n: str(n) for n in range(COUNT)}, ({}, [], b"", 1j, True, None)],
        lambda: {"a": ["a"] * COUNT, "b": {"c": [1.5, -0.0, math.inf, 10**400]}},
        lambda: ["ä", "\udc80", "\0", "\U0001f600"] * COUNT,
    ],
)
def test_plain_values_arrive_unchanged(make: Callable[[], Any]) -> None:
    value = make()
    found = round_trip(value)
    assert found == value
    assert type(found) is type(value)
    # The same order, types and signs of zeros.
    assert repr(found) == repr(value)


def test_what_is_shared_stays_shared_and_what_is_not_does_not() -> None:
    text, inner = "a long text " * 10, [1, 2]
    value = [[text] * COUNT, inner, inner, [1, 2]]
    found = round_trip(value)
    assert {id(each) for each in found[0]} == {id(found[0][0])}
    assert found[1] is found[2]
    assert found[1] is not found[3]
    recursive: list[Any] = texts()
    recursive += [recursive, (recursive,)]
    again = round_trip(recursive)
    assert again[-2] is again
    assert again[-1][0] is again


@pytest.mark.parametrize(
    "item",
    [
        bytearray(b"abc"),
        memoryview(b"abc"),
        array("i", [1]),
        np.ones(3),
        np.float64(1),
        np.str_("a"),
        Number(1),
        Color.RED,
        Pair(1, 2),
        OrderedDict(a=1),
        Counter("a"),
        range(3),
        slice(1),
        Ellipsis,
        len,
        int,
        compile("1", "", "eval"),
        object(),
        set(),
        frozenset(),
    ],
    ids=lambda item: type(item).__name__,
)
def test_other_types_are_pickled(item: Any) -> None:
    """`marshal` would take some of them for bytes."""
    for value in ([*texts(), item], [texts(), [(item,)]]):
        assert plain_containers.dumps(value) is None
        assert plain_containers.dumps(dict.fromkeys(range(2), value)) is None
    with contextlib.suppress(TypeError):  # it cannot be a key
        assert plain_containers.dumps({**dict.fromkeys(texts()), (item, 1): 1}) is None


def test_numbers_are_pickled() -> None:
    for value in (list(range(COUNT)), dict.fromkeys(range(COUNT)), [[1.5] * COUNT], set(texts())):
        assert plain_containers.dumps(value) is None


def test_many_small_containers_are_pickled() -> None:
    assert plain_containers.dumps([("a", n) for n in range(COUNT)]) is None
    assert plain_containers.dumps(["a", *((n, n) for n in range(COUNT))]) is None
    deep: list[Any] = []
    for _ in range(900):
        deep = [deep]
    assert round_trip([texts(), deep]) is not None
    for _ in range(5000):
        deep = [deep]
    assert plain_containers.dumps([texts(), deep]) is None


def test_it_is_known_whether_something_else_refers_to_a_container_in_it() -> None:
    def is_closed(value: Any) -> bool:
        data = plain_containers.dumps(value)
        assert data is not None
        return data.closed

    kept: list[Any] = []
    assert is_closed(texts())
    assert is_closed([texts(), {1: [], 2: (texts(), {})}])
    assert is_closed({1: texts(), "a": "b"})
    assert not is_closed([texts(), kept])
    assert not is_closed({1: texts(), 2: kept})
    assert not is_closed([texts(), [[(1, kept)]]])
    same: list[Any] = []
    value = [texts(), same, same]
    del same
    assert not is_closed(value)  # that it is the same list is not looked for
    value.append(value)
    assert not is_closed(value)


def test_a_stored_one_is_loaded_anew_each_time() -> None:
    value = [{n: str(n) for n in range(COUNT)} for _ in range(3)]
    stored = stored_value.dumps(value, INLINE_LIMIT)
    first, second = pickling.loads(stored), pickling.loads(stored)
    first[0].clear()
    assert second == value
    assert pickling.loads(stored_value.carried(stored)) == value
    assert pickling.loads(pickle.loads(pickle.dumps(stored, 5))) == value
    assert pickling.loads(pickle.loads(pickle.dumps(stored, 4))) == value
