"""Functions that travel by value share globals and classes in a namespace where they are loaded."""

from __future__ import annotations

import pickle
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from daskbatch.serialization import pickling

PROGRAM = """
    from enum import Enum

    table = None
    counter = 0
    limit = 1
    cache = {}

    class Settings:
        level = 0

        def look(self):
            return table, self.level

    class Color(Enum):
        RED = 1

    def set_table(value):
        global table
        table = value
        Settings.level = value

    def get_table():
        return table

    def count():
        global counter
        counter += 1
        return counter

    def get_counter():
        return counter

    def fill(key):
        cache[key] = True

    def get_cache():
        return sorted(cache)

    def get_limit():
        return limit

    def get_settings():
        return Settings().look()

    def helper():
        return "old"

    def call_helper():
        return helper()
"""


#: Loads what it receives, each object by itself, and returns the value of an expression.
ELSEWHERE = """
import pickle, sys
from daskbatch.serialization import namespaces, pickling

while True:
    try:
        namespace, expression, things = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    with pickling.within(namespace):
        found = {name: pickling.unpack(*data) for name, data in things.items()}
    found["forget"] = namespaces.forget
    pickle.dump(pickling.dumps(eval(expression, found)), sys.stdout.buffer)
    sys.stdout.flush()
"""


class Elsewhere:
    """Another process, so that a loaded object is never the object that was sent."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", ELSEWHERE], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __call__(
        self, expression: str, namespace: str = "one", fill: Any = None, **things: Any
    ) -> Any:
        with pickling.within(namespace):
            packed = {name: pickling.pack(thing)[0] for name, thing in things.items()}
        filled = () if fill is None else (pickling.dumps(fill),)
        sent = {name: (data, filled) for name, data in packed.items()}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        pickle.dump((namespace, expression, sent), self._process.stdin)
        self._process.stdin.flush()
        return pickle.loads(pickle.load(self._process.stdout))

    def end(self) -> None:
        self._process.communicate(timeout=30)


@pytest.fixture
def there() -> Iterator[Elsewhere]:
    elsewhere = Elsewhere()
    yield elsewhere
    elsewhere.end()


@pytest.fixture
def main() -> Any:
    """The module of a script, which other processes cannot import."""
    module = ModuleType("__main__")
    exec(textwrap.dedent(PROGRAM), vars(module))
    return module


def test_functions_that_are_sent_one_by_one_share_their_globals(
    there: Elsewhere, main: Any
) -> None:
    there("f('set')", f=main.set_table)
    assert there("f()", f=main.get_table) == "set"
    assert there("f(g)", f=lambda function: function(), g=main.get_table) == "set"
    assert there("c().look()", c=main.Settings) == ("set", "set")
    assert there("f()", f=main.get_settings) == ("set", "set")
    assert there("f(), f(), g()", f=main.count, g=main.get_counter) == (1, 2, 2)
    assert there("f(), g()", f=main.count, g=main.get_counter) == (3, 3)


def test_so_does_whatever_has_a_function_in_it(there: Elsewhere, main: Any) -> None:
    there("f('set')", f=main.set_table)
    things = [main.get_table, main.Settings()]
    assert there("a[0](), a[1].look()", a=things) == ("set", ("set", "set"))


def test_namespaces_are_independent(there: Elsewhere, main: Any) -> None:
    for namespace in ("one", "two"):
        there(f"f({namespace!r})", namespace, f=main.set_table)
    for namespace in ("one", "two"):
        assert there("f()", namespace, f=main.get_table) == namespace
        assert there("f()", namespace, f=main.get_settings) == (namespace, namespace)
        assert there("a.look()", namespace, a=main.Settings()) == (namespace, namespace)
    there("forget('one')")
    assert there("f()", f=main.get_table) is None
    assert there("f()", "two", f=main.get_table) == "two"


def test_what_was_changed_there_stays(there: Elsewhere, main: Any) -> None:
    there("f('first')", f=main.fill)
    there("f('second')", f=main.fill)
    assert there("f()", f=main.get_cache) == ["first", "second"]


def test_what_is_changed_here_arrives(there: Elsewhere, main: Any) -> None:
    for limit in (1, 2, 1):
        main.limit = limit
        assert there("f()", f=main.get_limit) == limit
    main.cache["here"] = True
    assert there("f()", f=main.get_cache) == ["here"]
    main.cache = {"another": True}
    assert there("f()", f=main.get_cache) == ["another"]
    assert there("f()", f=main.call_helper) == "old"
    main.helper = lambda: "new"
    assert there("f()", f=main.call_helper) == "new"
    assert there("f()", f=main.get_settings) == (None, 0)
    main.Settings.level = 3
    assert there("f()", f=main.get_settings) == (None, 3)


def test_but_not_over_what_was_set_there(there: Elsewhere, main: Any) -> None:
    there("f('there')", f=main.set_table)
    main.table = "here"
    assert there("f()", f=main.get_table) == "there"


@pytest.mark.parametrize("namespace", ["one", "two"])
def test_a_class_is_the_same_wherever_it_goes(there: Elsewhere, main: Any, namespace: str) -> None:
    there("c", c=main.Settings)
    assert there("type(a) is c", namespace, a=main.Settings(), c=main.Settings)
    assert type(there("a", namespace, a=main.Settings())) is main.Settings
    assert there("a is c(1)", namespace, a=main.Color.RED, c=main.Color)
    assert there("a", namespace, a=main.Color.RED) is main.Color.RED


def test_what_is_filled_in_belongs_to_the_namespace(there: Elsewhere, main: Any) -> None:
    there("f('set')", f=main.set_table)
    back = there("a", a=main.Settings())
    found = there("type(a) is c, a.look()", a=Slot(), fill=back, c=main.Settings)
    assert found == (True, ("set", "set"))


class Slot:
    def __reduce__(self) -> Any:
        return pickling.reference(self)


def test_what_is_no_module_s_goes_as_ever(there: Elsewhere) -> None:
    found: dict[str, Any] = {}
    exec("def get(): return value", found)
    found["value"] = SimpleNamespace(number=1)
    assert there("f().number", f=found["get"]) == 1


def test_functions_of_modules_go_by_name(there: Elsewhere) -> None:
    assert there("f", f=textwrap.dedent) is textwrap.dedent
