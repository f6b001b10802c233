"""Annotations that name what is not defined keep no function and no class from being sent."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import ModuleType
from typing import Any

import pytest
from support.scripts import TaskProcess, as_main, call

from daskbatch.serialization import pickling
from daskbatch.serialization.deferred_annotations import parameters_of

#: Before Python 3.14, an annotation without quotes is evaluated where it stands (PEP 649).
deferred = pytest.mark.skipif(sys.version_info < (3, 14), reason="needs PEP 649: Python 3.14")
QUOTED = [pytest.param("", marks=deferred), "'"]


@pytest.mark.parametrize("quote", QUOTED)
def test_a_name_that_only_type_checkers_see(quote: str, elsewhere: TaskProcess) -> None:
    text = (
        "import typing\n"
        "if typing.TYPE_CHECKING:\n    from numpy import ndarray\n"
        f"def add(a: {quote}ndarray{quote}, b: int = 2) -> {quote}ndarray{quote}: return a + b\n"
        f"class Adder:\n    array: {quote}ndarray{quote}\n"
        f"    def add(self, a: {quote}ndarray{quote}) -> None: return a + 3\n"
        "def annotations_of(obj):\n"
        "    try:\n        return typing.get_type_hints(obj)\n"
        "    except NameError as error:\n        return error.name\n"
    )
    with as_main(text) as module:
        assert call(elsewhere, module.add, 1) == 3
        assert call(elsewhere, module.Adder().add, 1) == 4
        for each in (module.add, module.Adder, module.Adder.add):
            assert call(elsewhere, module.annotations_of, each) == "ndarray"


@pytest.mark.parametrize("quote", QUOTED)
def test_a_dataclass_that_refers_to_itself_does_not_take_the_whole_script_along(
    quote: str, elsewhere: TaskProcess
) -> None:
    text = (
        "import dataclasses\n"
        "@dataclasses.dataclass\n"
        "class Node:\n"
        f"    children: {quote}list[Node]{quote}\n"
        f"    parent: {quote}Node | None{quote} = None\n"
        "    def size(self): return 1 + sum(each.size() for each in self.children)\n"
        "def size(node): return node.size()\n"
        "def kinds():\n"
        "    found = [each.type for each in dataclasses.fields(Node)]\n"
        "    return [each.evaluate() if hasattr(each, 'evaluate') else each for each in found]\n"
    )
    with as_main(text) as module:
        module.unpicklable = threading.Lock()  # type: ignore[attr-defined]
        tree = module.Node([module.Node([]), module.Node([module.Node([])])])
        assert call(elsewhere, module.size, tree) == 4
        found = call(elsewhere, module.kinds)
        if not quote:
            # The first is evaluated as far as possible, and has a reference within.
            assert [each.__args__[0] for each in found][1] is module.Node
        assert call(elsewhere, lambda node: node, tree) == tree


@deferred
def test_the_formats_of_annotations(elsewhere: TaskProcess) -> None:
    text = (
        "import annotationlib\n"
        "from annotationlib import Format\n"
        "class Known: pass\n"
        "class Outer:\n"
        "    class Inner: pass\n"
        "    a: Inner\n    b: Missing\n"
        "    def method(self, c: Inner, d: list[Missing]) -> Known: pass\n"
        "def formats(obj):\n"
        "    by_name = annotationlib.get_annotations(obj, format=Format.FORWARDREF)\n"
        "    text = annotationlib.get_annotations(obj, format=Format.STRING)\n"
        "    return [repr(each).split(' at ')[0] for each in by_name.values()], text\n"
    )
    with as_main(text) as module:
        for each in (module.Outer, module.Outer.method):
            assert call(elsewhere, module.formats, each) == module.formats(each)
        expected = {"c": "Inner", "d": "list[Missing]", "return": "Known"}
        assert module.formats(module.Outer.method)[1] == expected


@deferred
def test_a_name_that_is_defined_after_the_first_sending(elsewhere: TaskProcess) -> None:
    text = (
        "def use(value: Later) -> int: return value\n"
        "def annotations_of(obj): return obj.__annotations__\n"
    )
    with as_main(text) as module:
        assert call(elsewhere, module.use, 1) == 1
        exec("class Later: pass", vars(module))
        found = call(elsewhere, module.annotations_of, module.use)
        assert found == {"value": module.Later, "return": int}  # type: ignore[attr-defined]


@deferred
def test_annotations_that_fail_in_another_way(elsewhere: TaskProcess) -> None:
    text = (
        "def use(value: 1 / 0) -> int: return value\n"
        "class Kind:\n    value: int | 'text'\n"
        "def error_of(obj):\n"
        "    try:\n        return obj.__annotations__\n"
        "    except Exception as error:\n        return type(error)\n"
    )
    with as_main(text) as module:
        assert call(elsewhere, module.use, 3) == 3
        assert call(elsewhere, module.error_of, module.use) is ZeroDivisionError
        assert call(elsewhere, module.error_of, module.Kind) is TypeError


@deferred
def test_a_reference_in_a_cell(elsewhere: TaskProcess) -> None:
    text = (
        "import annotationlib\n"
        "def make():\n"
        "    def use(value: Local, other: Never): return value\n"
        "    found = annotationlib.get_annotations(\n"
        "        use, format=annotationlib.Format.FORWARDREF)\n"
        "    class Local: pass\n"
        "    return Local, found['value'], found['other']\n"
        "Local, defined, never = make()\n"
        "def evaluate(*references):\n"
        "    forward = annotationlib.Format.FORWARDREF\n"
        "    return [each.evaluate(format=forward) for each in references]\n"
    )
    with as_main(text) as module:
        found, reference = call(elsewhere, module.evaluate, module.defined, module.never)
        assert found is module.Local
        assert reference.__forward_arg__ == "Never"


@pytest.mark.parametrize("quote", QUOTED)
def test_parameters_of_a_function_with_such_annotations(quote: str) -> None:
    with as_main(f"def solve(a: {quote}Missing{quote}, *, comm: {quote}MPI.Comm{quote}): pass") as (
        module
    ):
        found = parameters_of(module.solve)
        assert {name: each.kind.name for name, each in found.items()} == {
            "a": "POSITIONAL_OR_KEYWORD",
            "comm": "KEYWORD_ONLY",
        }


SENDS_ON = """
import sys
from daskbatch.serialization import pickling
from daskbatch.serialization.deferred_annotations import parameters_of
kind = pickling.loads(sys.stdin.buffer.read())
sys.stdout.buffer.write(pickling.dumps((kind, kind.__annotations__)))
"""


def sent_on(module: ModuleType, expression: str) -> Any:
    """Return what the third of three processes knows, each of which has sent it to the next."""
    data = pickling.dumps(eval(expression, vars(module)))
    for _ in range(2):
        program = [sys.executable, "-c", SENDS_ON]
        done = subprocess.run(program, input=data, capture_output=True, timeout=100, check=True)
        data = pickling.dumps(pickling.loads(done.stdout)[0])
    return pickling.loads(done.stdout)


def test_annotations_that_were_set_are_sent_on() -> None:
    text = "class Kind:\n    a: int\nKind.__annotations__ = {'b': str}\n"
    with as_main(text) as module:
        kind, annotations = sent_on(module, "Kind")
        assert kind is module.Kind
        assert annotations == {"b": str}


@deferred
def test_a_class_without_annotations_makes_the_same_pickle_after_they_were_read() -> None:
    with as_main("class Kind: pass") as module:
        before = pickling.dumps(module.Kind)
        assert getattr(module.Kind, "__annotations__", {}) == {}
        assert pickling.dumps(module.Kind) == before
