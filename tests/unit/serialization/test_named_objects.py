"""Objects that Python pickles by their names, or not at all, are sent with what they refer to."""

from __future__ import annotations

import functools
import sys
from typing import Any

import pytest
from support.scripts import TaskProcess, as_main

SCRIPT = """
import functools
class Shape:
    def __init__(self, size): self.size = size
    @functools.singledispatchmethod
    def area(self, unit): return 'unknown', self.size
    @area.register
    def _(self, unit: int): return self.size * unit
    def scaled(self, factor, unit): return self.size * factor, unit
    doubled = functools.partialmethod(scaled, 2)
def call(function, *args): return function(*args)
def subtract(a, b): return a - b
"""


def test_methods_that_descriptors_make(elsewhere: TaskProcess) -> None:
    with as_main(SCRIPT) as module:
        shape, kind = module.Shape(3), module.Shape
        calls: list[tuple[Any, ...]] = [
            (module.call, shape.area, 2),
            (module.call, shape.area, "text"),
            (module.call, shape.doubled, "m"),
            (shape.area, 5),  # as the function of a task
            (shape.doubled, "m"),
            (module.call, kind.doubled, shape, "m"),
        ]
        expected: list[Any] = [6, ("unknown", 3), (6, "m"), 15, (6, "m"), (6, "m")]
        assert elsewhere.call("a client", *calls) == expected
        assert [function(*args) for function, *args in calls] == expected


@pytest.mark.skipif(sys.version_info < (3, 14), reason="needs Placeholder: Python 3.14")
def test_a_placeholder_stays_one(elsewhere: TaskProcess) -> None:
    with as_main(SCRIPT) as module:
        placeholder = functools.Placeholder  # type: ignore[attr-defined]
        part = functools.partial(module.subtract, placeholder, 3)
        found, back = elsewhere.call("a client", (part, 10), (module.call, len, "ab"))
        assert (found, back) == (7, 2)
        sent = functools.partial(module.call, placeholder, 3)
        (same,) = elsewhere.call("a client", (module.call, lambda value: value, sent))
        assert same.args[0] is placeholder
        assert same.args[1:] == (3,)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="needs PEP 750: Python 3.14")
def test_template_strings_are_arguments_and_results(elsewhere: TaskProcess) -> None:
    text = (
        "class Value:\n    def __format__(self, how): return f'value {how}'\n"
        "template = t'one {Value():>3} two {1 + 1!r}'\n"
        "def show(template): return template, [(type(each), each) for each in template]\n"
    )
    with as_main(text) as module:
        (found,) = elsewhere.call("a client", (module.show, module.template))
        for back in (found[0], [each for _, each in found[1]]):
            one, first, two, second = back
            assert (one, two) == ("one ", " two ")
            assert type(first.value) is module.Value
            assert (first.expression, first.format_spec) == ("Value()", ">3")
            assert (second.value, second.conversion) == (2, "r")
