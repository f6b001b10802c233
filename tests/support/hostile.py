"""Kinds of objects whose own code fails wherever Python calls it."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import Any, NamedTuple


class Odd(BaseException):
    """An exception that is not an `Exception`."""


class Kind(NamedTuple):
    """A kind of objects, and the same as exceptions.

    Parameters
    ----------
    name : str
        Its name.
    plain : type
        The class of the objects; it takes no arguments.
    error : type
        The class of the exceptions; it takes any arguments.
    """

    name: str
    plain: type[Any]
    error: type[BaseException]


def _raises(error: type[BaseException]) -> Callable[..., Any]:
    def method(*args: Any, **kwargs: Any) -> Any:
        raise error("hostile")

    return method


def _returns(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


def _recurse(self: Any, *args: Any) -> Any:
    return str(self) + repr(self)


def leave(*args: Any) -> None:
    """End the interpreter, when an object is unpickled."""
    sys.exit("hostile")


def interrupt(*args: Any) -> None:
    raise KeyboardInterrupt


class BadName(type):
    """A metaclass whose classes have no name."""

    __name__ = property(_raises(KeyError))  # type: ignore[assignment]


class BadEquality(type):
    """A metaclass whose classes cannot be compared or hashed."""

    __eq__ = _raises(SystemExit)
    __hash__ = _raises(ValueError)  # type: ignore[assignment]


class AnswersAll:
    """Has every attribute, each of them another object of this kind."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return AnswersAll()

    def __call__(self, *args: Any) -> Any:
        return 5


KINDS: list[Kind] = []


def _add(name: str, metaclass: type[Any] = type, **namespace: Any) -> None:
    made: list[Any] = []
    for suffix, base in (("Object", object), ("Error", Exception)):
        title = name.title().replace(" ", "") + suffix
        # Dask itself cannot be imported where an exception's class cannot be hashed.
        kind = type if metaclass is BadEquality and base is Exception else metaclass
        made.append(kind(title, (base,), {"__module__": __name__, **namespace}))
        globals()[title] = made[-1]
        type.__setattr__(made[-1], "__qualname__", title)
    KINDS.append(Kind(name, *made))


for _error in (
    *(ValueError, SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError, MemoryError),
    *(StopIteration, asyncio.CancelledError, Odd),
):
    _add(f"str {_error.__name__}", __str__=_raises(_error))
    _add(f"repr {_error.__name__}", __repr__=_raises(_error))
_add("str five", __str__=_returns(5))
_add("str and repr", __str__=_raises(SystemExit), __repr__=_raises(SystemExit))
_add("recursion", __str__=_recurse, __repr__=_recurse)
_add("getattr KeyError", __getattr__=_raises(KeyError))
_add("getattr SystemExit", __getattr__=_raises(SystemExit))
_add("setattr", __setattr__=_raises(Odd))
_add("eq", __eq__=_raises(SystemExit), __hash__=object.__hash__)
_add("hash", __hash__=_raises(SystemExit))
_add("bool", __bool__=_raises(SystemExit))
_add("false", __bool__=_returns(False), __len__=_returns(0))
_add("class", __class__=property(_raises(SystemExit)))
_add("notes", __notes__=property(_raises(SystemExit)))
_add("wrong notes", __notes__=5)
_add("reduce SystemExit", __reduce__=_raises(SystemExit))
_add("reduce KeyboardInterrupt", __reduce_ex__=_raises(KeyboardInterrupt))
_add("reduce five", __reduce__=_returns(5))
_add("loads SystemExit", __reduce__=_returns((leave, ())))
_add("loads KeyboardInterrupt", __reduce__=_returns((interrupt, ())))
_add("loads another", __reduce__=_returns((str, ("another",))))
_add("setstate", __setstate__=_raises(SystemExit), __getstate__=_returns({"a": 1}))
_add("dir", __dir__=_raises(SystemExit))
_add("format", __format__=_raises(SystemExit))
_add("cause", __cause__=property(_raises(SystemExit)), __context__=property(_raises(Odd)))
_add("traceback", __traceback__=property(_raises(SystemExit)), with_traceback=_raises(Odd))
_add("args", args=property(_raises(SystemExit)))
_add("sizeof", __sizeof__=_raises(SystemExit))
_add("name", BadName)
_add("equal classes", BadEquality)
