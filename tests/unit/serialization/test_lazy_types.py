"""Type aliases and type variables of a script (PEP 695) are sent, whatever they refer to."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from typing import Any

import pytest
from support.scripts import TaskProcess, as_main, call

from daskbatch.serialization import lazy_types, pickling

pytestmark = pytest.mark.skipif(sys.version_info < (3, 12), reason="needs PEP 695: Python 3.12")


def test_an_alias_in_an_annotation(elsewhere: TaskProcess) -> None:
    text = (
        "type Json = dict[str, Json] | list[Json] | int\n"
        "def depth(value: Json) -> int:\n"
        "    if isinstance(value, int): return 0\n"
        "    parts = value.values() if isinstance(value, dict) else value\n"
        "    return 1 + max(map(depth, parts))\n"
        "def look(value): return value, value.__value__.__args__[1].__args__[0], value.__module__\n"
    )
    with as_main(text) as module:
        assert call(elsewhere, module.depth, {"a": [1, [2]]}) == 3
        assert call(elsewhere, module.look, module.Json) == (module.Json, module.Json, "__main__")
        assert module.depth.__annotations__["value"] is module.Json


def test_an_alias_and_its_variables_return_as_themselves(elsewhere: TaskProcess) -> None:
    with as_main("type Pair[T: int] = tuple[T, Pair[T]]\ndef same(*v): return v") as module:
        variable = module.Pair.__type_params__[0]
        found = call(elsewhere, module.same, variable, module.Pair, module.Pair[bool])
        assert found[0] is variable
        assert found[1] is module.Pair
        assert found[2] == module.Pair[bool]
        assert found[2].__origin__ is module.Pair


def test_aliases_that_a_call_has_made(elsewhere: TaskProcess) -> None:
    text = (
        "import typing\n"
        "T = typing.TypeVar('T')\n"
        "List = typing.TypeAliasType('List', list[T], type_params=(T,))\n"
        "aliases = [typing.TypeAliasType(name, int) for name in ('no name', 'def', 'type', 'Ö')]\n"
        "def look(*found): return [(each.__name__, each.__value__) for each in found], found\n"
    )
    with as_main(text) as module:
        every = [module.List, *module.aliases]
        parts, back = call(elsewhere, module.look, *every)
        assert parts == module.look(*every)[0]
        assert all(one is other for one, other in zip(back, every, strict=True))


def test_what_cannot_be_evaluated_raises_the_same_error(elsewhere: TaskProcess) -> None:
    text = (
        "type Lost = list[Missing]\n"
        "def call[T: Missing](value: T) -> T: return value\n"
        "def choose[T: (int, Missing)](value: T) -> T: return value\n"
        "def error_of(read):\n"
        "    try:\n        return read()\n"
        "    except NameError as error:\n        return error.name, str(error)\n"
        "def look():\n"
        "    bound = error_of(lambda: call.__type_params__[0].__bound__)\n"
        "    constraints = error_of(lambda: choose.__type_params__[0].__constraints__)\n"
        "    return error_of(lambda: Lost.__value__), bound, constraints, call(3), choose(4)\n"
    )
    with as_main(text) as module:
        assert call(elsewhere, module.look) == module.look()
        assert module.look()[0] == ("Missing", "name 'Missing' is not defined")


def test_many_threads_load_an_alias_at_once() -> None:
    with as_main("type Tree = list[Tree] | int") as module:
        data = pickling.dumps(module.Tree)
    copies: list[Any] = []
    start = threading.Barrier(4, timeout=60)

    def load() -> None:
        start.wait()
        copies.append(pickling.loads(data))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert all(each is module.Tree for each in copies)


def test_old_aliases_do_not_keep_what_they_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_types, "_MAX_ALIASES", 2)
    names: list[weakref.ref[Any]] = []
    for n in range(5):
        with as_main(f"class C{n}: pass\ntype A{n} = list[C{n} | A{n}]") as module:
            alias = getattr(module, f"A{n}")
            assert pickling.loads(pickling.dumps(alias)) is alias
            names.append(weakref.ref(getattr(module, f"C{n}")))
        del module, alias
    gc.collect()
    assert [each() is None for each in names[:3]] == [True] * 3
