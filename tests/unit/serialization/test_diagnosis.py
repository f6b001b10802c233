"""The part that cannot be pickled is found, and its place is described."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import pytest

from daskbatch.serialization import pickling
from daskbatch.serialization.diagnosis import hint_on_arguments, hint_on_function, hint_on_value

ERROR = TypeError("cannot pickle '_thread.lock' object")
LOCK = threading.Lock()


@dataclass
class Settings:
    name: str
    lock: Any


class Slotted:
    __slots__ = ("lock",)

    def __init__(self) -> None:
        self.lock = LOCK

    def method(self) -> None:
        pass


class Custom:
    """Decides itself what is pickled."""

    def __getstate__(self) -> dict[str, Any]:
        return {"inner": [LOCK]}


def circle() -> Settings:
    made = Settings("round", None)
    made.lock = [made, LOCK]
    return made


@pytest.mark.parametrize(
    ("value", "where"),
    [
        ([1, 2, LOCK, 4], "value[2]"),
        ({"a": (1, {"b": LOCK})}, "value['a'][1]['b']"),
        ({LOCK: 1}, "a key of value"),
        ({1, LOCK}, "an element of value"),
        (Settings("a", LOCK), "value.lock"),
        (Slotted(), "value.lock"),
        (Custom(), "value.inner[0]"),
        (Slotted().method, "value.__self__.lock"),
        (partial(print, 1, file=LOCK), "value.keywords['file']"),
        (circle(), "value.lock[1]"),
        ([*range(1000), LOCK], "value[1000]"),
        ([partial(lambda: LOCK)], "value[0].func, there the global variable LOCK"),
    ],
    ids=lambda given: given if isinstance(given, str) else type(given).__name__,
)
def test_where_it_is_in_a_value(value: object, where: str) -> None:
    assert hint_on_value("value", value, ERROR) == f"; it is {where}, a lock"


def make(lock: Any) -> dict[str, Callable[..., Any]]:
    settings = {"lock": lock}

    def helper() -> Any:
        return settings["lock"]

    def attributed() -> None: ...

    attributed.lock = lock  # type: ignore[attr-defined]
    return {
        "closure variable settings['lock']": lambda: settings,
        "closure variable helper, there the closure variable settings['lock']": lambda: helper(),
        "global variable LOCK": lambda: [LOCK for _ in ()],
        "default of its parameter b": lambda a, b=lock: b,
        "default of its parameter c": lambda a, *, c=lock: c,
        "its attribute lock": attributed,
    }


@pytest.mark.parametrize("where", make(None))
def test_what_a_function_brings_along(where: str) -> None:
    hint = hint_on_function(make(LOCK)[where], ERROR)
    there = where if where.startswith("its") else f"the {where}"
    assert hint == f"; it is {there}, a lock: make it inside the function"


def test_an_attribute_of_the_same_name_as_a_global_is_not_it() -> None:
    lock = LOCK
    hint = hint_on_function(lambda this: (this.LOCK, lock), ERROR)
    assert "the closure variable lock" in hint


class Lonely:
    """Can be pickled only among arguments, like a task."""

    def __reduce__(self) -> Any:
        found = pickling.reference(self)
        if found is None:
            raise TypeError("not here")
        return found


def test_tasks_may_be_among_arguments_and_nowhere_else() -> None:
    named = {"args": (Lonely(), LOCK), "kwargs": {}}
    assert "args[1], a lock" in hint_on_arguments(named, ERROR)
    task = Lonely()
    assert "closure variable task, a Lonely" in hint_on_function(lambda: task, ERROR)


def test_a_future_is_not_looked_into() -> None:
    future: Future[int] = Future()
    hint = hint_on_arguments({"args": (future,), "kwargs": {}}, ERROR)
    assert hint == "; it is args[0], a Future of another executor: give its result()"


def test_what_has_words_of_its_own_has_no_other_advice() -> None:
    lock = LOCK
    assert hint_on_function(lambda: lock, TypeError("ask")).endswith("variable lock, a lock")


@pytest.mark.parametrize("value", [LOCK, 5, [1, 2], sys._getframe()])
def test_nothing_is_said_where_there_is_nothing_more_to_say(value: object) -> None:
    assert hint_on_value("value", value, ERROR) == ""


class Hostile:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise SystemExit


def test_what_cannot_even_be_looked_at() -> None:
    assert hint_on_value("value", [Hostile()], ERROR) == "; it is value[0], a Hostile"


def test_to_look_disturbs_no_pack_that_runs() -> None:
    class Looks:
        def __reduce__(self) -> Any:
            hint_on_value("value", [LOCK], ERROR)
            return str, ()

    _, found, _ = pickling.pack([Lonely(), Looks(), Lonely()])
    assert [type(each) for each in found] == [Lonely, Lonely]


def test_what_a_class_has_is_named_and_not_its_object() -> None:
    class Base:
        lock = LOCK

    class Derived(Base):
        pass

    class Uses:
        def method(self) -> Any:
            return LOCAL

        @property
        def read(self) -> Any:
            return LOCAL

    LOCAL = threading.Lock()
    cached = lru_cache(lambda: LOCAL)
    name = test_what_a_class_has_is_named_and_not_its_object.__name__
    for value, what in (
        (Base(), f"{name}.<locals>.Base.lock, a lock"),
        ([Derived()], f"{name}.<locals>.Base.lock, a lock"),
        (Uses(), f"{name}.<locals>.Uses.method, there the closure variable LOCAL, a lock"),
        (cached, "value, there the closure variable LOCAL, a lock"),
    ):
        assert hint_on_value("value", value, ERROR) == f"; it is {what}"
