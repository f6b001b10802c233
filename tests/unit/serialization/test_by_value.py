"""Code that travels by value keeps the name of its file, with every version of cloudpickle."""

from __future__ import annotations

import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import cloudpickle
import pytest

from daskbatch.serialization import by_value, namespaces, pickling
from daskbatch.serialization.exceptions import pack_error, unpack_error
from daskbatch.serialization.pickled_values import pack_values


def make() -> Callable[[int], Any]:
    """A function with one nested in it, both of which other processes cannot import."""

    def outer(number: int) -> Any:
        def inner() -> float:
            return 1 / number

        return [inner for _ in range(1)]

    return outer


def files(code: CodeType) -> set[str]:
    """The names of the files of some code, and of all code that is nested in it."""
    found = {code.co_filename}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= files(constant)
    return found


def sent_in_namespace(function: Any) -> Any:
    with pickling.within("a namespace"):
        data = pickling.dumps(function)
    namespaces.forget("a namespace")
    return pickling.loads(data)


def sent_with_buffers(function: Any) -> Any:
    data, buffers = pickling.dumps_with_buffers(function, 10)
    return pickling.loads(data, buffers=buffers)


def sent_as_value(function: Any) -> Any:
    values, failed = pack_values([function, function])
    assert not failed
    return values.load(0)


def sent_in_exception(function: Any) -> Any:
    return unpack_error(pack_error(ValueError(function), "'t'")).args[0]


WAYS: list[Callable[[Any], Any]] = [
    lambda function: pickling.loads(pickling.dumps(function)),
    lambda function: pickling.unpack(pickling.pack(function)[0]),
    sent_with_buffers,
    sent_in_namespace,
    sent_as_value,
    sent_in_exception,
]


@pytest.mark.parametrize(
    "send",
    WAYS,
    ids=["dumps", "pack", "with buffers", "namespace", "values", "exception"],
)
def test_code_keeps_its_file_whichever_way_it_travels(send: Callable[[Any], Any]) -> None:
    again = send(make())
    assert isinstance(again, FunctionType)
    assert files(again.__code__) == {__file__}
    with pytest.raises(ZeroDivisionError) as caught:
        again(0)[0]()
    assert "return 1 / number" in "".join(traceback.format_exception(caught.value))


SCRIPT = """
import sys
from daskbatch.serialization import pickling

def fails():
    def inner():
        raise ValueError("here")
    inner()

class Local:
    def method(self):
        fails()

sys.stdout.buffer.write(pickling.dumps((fails, Local.method)))
"""


def test_functions_of_a_script_keep_its_name(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    sent = subprocess.run([sys.executable, script], capture_output=True, timeout=100, check=True)
    for function in pickling.loads(sent.stdout):
        assert files(function.__code__) == {str(script)}


def test_code_is_otherwise_as_cloudpickle_sends_it() -> None:
    before = make()
    ours, theirs = by_value.dumps(before, 5), cloudpickle.dumps(before, 5)
    assert pickling.loads(ours)(4)[0]() == pickling.loads(theirs)(4)[0]() == 0.25
    code, other = pickling.loads(ours).__code__, pickling.loads(theirs).__code__
    assert list(code.co_lines()) == list(other.co_lines())
    assert code.co_qualname == other.co_qualname


@pytest.mark.parametrize("given", ["<dynamic-code>", "a name with ümlaut.py", ""])
def test_any_name_is_kept(given: str) -> None:
    found: dict[str, Any] = {}
    exec(compile("def f(): return (lambda: 1)()", given, "exec"), found)
    again = pickling.loads(by_value.dumps(found["f"], 5))
    assert files(again.__code__) == {given}
    assert again() == 1
