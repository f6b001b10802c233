"""Code of another version of Python is refused: to run it would crash the interpreter."""

from __future__ import annotations

import pickle
import sys
from types import CodeType
from typing import Any

import pytest

from daskbatch.errors import SerializationError
from daskbatch.serialization import pickling, python_code


def of_another_version(data: bytes) -> bytes:
    """Return a pickle as Python 3.10 would have made it."""
    name = python_code.make_code.__name__.encode()
    assert name in data
    assert len(name) == len(b"code_of_python_3_10")
    return data.replace(name, b"code_of_python_3_10")


def local() -> Any:
    class Local:
        def method(self) -> int:
            return 1

    return Local


@pytest.mark.parametrize("make", [lambda: lambda: 1, local], ids=["function", "class"])
def test_code_of_another_version_is_refused(make: Any) -> None:
    data = pickling.dumps(make())
    assert pickle.loads(data) is not None
    own = f"{sys.version_info.major}.{sys.version_info.minor}"
    expected = rf"that Python 3\.10 pickled by value, and Python {own} cannot run its code"
    with pytest.raises(SerializationError, match=expected):
        pickle.loads(of_another_version(data))


def test_what_needs_no_code_is_the_same_for_all_versions() -> None:
    for each in (1, [None], {"a": len}, pytest):
        assert b"code_of_python" not in pickling.dumps(each)


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'unknown'"):
        python_code.unknown  # noqa: B018
    code = compile("1", "a file", "eval")
    assert type(pickling.loads(pickling.dumps(code))) is CodeType
