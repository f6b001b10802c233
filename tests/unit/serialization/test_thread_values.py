"""Each thread has its own value, which a block sets and then restores."""

from __future__ import annotations

import threading
from threading import get_ident

import pytest

from daskbatch.serialization.thread_values import ThreadValues


def test_a_block_sets_the_value_and_restores_the_outer_one() -> None:
    values = ThreadValues[str]()
    with values.set("outer"):
        with values.set("inner"):
            assert values[get_ident()] == "inner"
        assert values[get_ident()] == "outer"
    assert not values


def test_none_hides_the_outer_value() -> None:
    values = ThreadValues[str]()
    with values.set("outer"):
        with values.set(None):
            assert values.get(get_ident()) is None
        assert values[get_ident()] == "outer"


def test_an_error_restores_the_outer_value() -> None:
    values = ThreadValues[str]()
    with pytest.raises(ValueError), values.set("a"):
        raise ValueError
    assert not values


def test_threads_do_not_see_each_others_values() -> None:
    values = ThreadValues[str]()
    seen: list[str | None] = []
    with values.set("here"):
        thread = threading.Thread(target=lambda: seen.append(values.get(get_ident())))
        thread.start()
        thread.join()
    assert seen == [None]
