"""Whether all items of a container have the same types, with the machine code and without it."""

from __future__ import annotations

import contextlib
import platform
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from daskbatch.memory import machine_code
from daskbatch.serialization import item_types
from daskbatch.serialization.item_types import all_in_dictionary, all_in_sequence

IS_CODE_FOR_HERE = sys.platform == "linux" and platform.machine() == "x86_64"


@pytest.fixture(params=["machine code", "none"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Have the machine code run, or not."""

    def fail(code: bytes) -> int:
        raise OSError("the code is for other machines")

    item_types._functions.cache_clear()
    if request.param == "none":
        monkeypatch.setattr(machine_code, "load", fail)
    elif not IS_CODE_FOR_HERE:
        pytest.skip("the code is for other machines")
    assert (item_types._functions() is None) == (request.param == "none")
    yield request.param
    item_types._functions.cache_clear()


class Text(str):
    """A text of a user's own type."""


@pytest.mark.parametrize(
    ("items", "kind", "expected"),
    [
        ([], int, True),
        ([1], int, True),
        ([1, 2**100, -1], int, True),
        ([1, True], int, False),
        ([True, False], bool, True),
        (["a", Text("b")], str, False),
        ([Text("b")], Text, True),
        ([b"", bytearray()], bytes, False),
        ([None, None], type(None), True),
        ([[], {}], list, False),
        ([0.0] * 1000 + [1], float, False),
    ],
)
def test_all_of_a_sequence(way: str, items: list[Any], kind: type, expected: bool) -> None:
    assert all_in_sequence(items, kind) is expected
    assert all_in_sequence(tuple(items), kind) is expected
    by_number = dict(enumerate(items))
    assert all_in_dictionary(by_number, int, kind) is expected
    assert all_in_dictionary(by_number, str, kind) is not bool(items)


def test_all_keys_of_a_dictionary(way: str) -> None:
    values = {str(number): number for number in range(100)}
    assert all_in_dictionary(values, str, int)
    del values["50"]
    assert all_in_dictionary(values, str, int)
    values[Text("x")] = 1
    assert not all_in_dictionary(values, str, int)


def test_nothing_is_held_or_lost(way: str) -> None:
    item, key, kind = "text" * 3, "key" * 3, str
    counted = (item, key, kind)
    before = [sys.getrefcount(each) for each in counted]
    for _ in range(100):
        assert all_in_dictionary({key: item}, kind, kind)
        assert all_in_sequence([item], kind)
    assert [sys.getrefcount(each) for each in counted] == before


def test_another_thread_may_change_the_container(way: str) -> None:
    changed: dict[int, str] = {}
    over = threading.Event()

    def change() -> None:
        number = 0
        while not over.is_set():
            changed[number % 5000] = str(number)
            changed.pop((number * 7) % 5000, None)
            number += 1

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(200):
            # As any loop over a dictionary, the one without machine code says that it has changed.
            with contextlib.suppress(*[RuntimeError] if way == "none" else []):
                assert all_in_dictionary(changed, int, str)
    finally:
        over.set()
        thread.join()
