"""Finds what of an object keeps it from being pickled, and says where it is.

Does not know what the object is for. It is asked after pickling has failed, and not before: parts
are tried one by one, or rather half by half.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from time import monotonic
from types import CodeType, FunctionType, MethodType
from typing import Any

from daskbatch.serialization import pickling
from daskbatch.serialization.exceptions import safe_str

#: How deep it is looked, and for how long it is looked deeper. Seconds.
_DEPTH, _PATIENCE = 8, 5.0

_ADVICE = ": make it inside the function"

#: What Python says of things that belong to one process. Others have words of their own.
_BOUND_TO_PROCESS = "cannot pickle"

#: Where something is, and what it is.
_Part = tuple[str, Any]


def kind_of(obj: object) -> str:
    """Say what something is: a lock, an Event."""
    name = type(obj).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def hint_on_arguments(named: Mapping[str, Any], error: BaseException) -> str:
    """Say which of some arguments cannot be sent, among which tasks may be; or nothing."""
    return _hint(named, named.items, error, True, _ADVICE)


def hint_on_function(function: Callable[..., Any], error: BaseException) -> str:
    """Say what a function that cannot be sent brings along; or nothing."""
    return _hint(function, lambda: _parts_of("", function, "function"), error, False, _ADVICE)


def hint_on_value(name: str, value: object, error: BaseException) -> str:
    """Say what in a value cannot be sent; nothing if it is the value as a whole."""
    return _hint(value, lambda: _parts_of(name, value), error, False, "")


def _hint(
    whole: object,
    parts: Callable[[], Iterable[_Part]],
    error: BaseException,
    tasks: bool,
    advice: str,
) -> str:
    found: _Part | None = None
    with contextlib.suppress(Exception):  # to look at an object may run anything
        found = _find(parts(), tasks, {id(whole)})
    if found is None:
        return ""
    where, culprit = found
    if isinstance(culprit, Future):
        advice = " of another executor: give its result()"
    elif _BOUND_TO_PROCESS not in safe_str(error):
        advice = ""
    return f"; it is {where}, {kind_of(culprit)}{advice}"


def _find(parts: Iterable[_Part], tasks: bool, seen: set[int]) -> _Part | None:
    """Find the innermost part that cannot be pickled."""
    found: _Part | None = None
    end = monotonic() + _PATIENCE
    for _ in range(_DEPTH):
        if monotonic() > end:
            break
        part = _first_bad([each for each in parts if id(each[1]) not in seen], tasks)
        if part is None:
            break
        found = part
        seen.add(id(part[1]))
        if isinstance(part[1], Future):
            break
        parts = _parts_of(*part)
    return found


def _first_bad(parts: list[_Part], tasks: bool) -> _Part | None:
    while parts:
        half = parts[: (len(parts) + 1) // 2]
        if pickling.can_be_pickled([obj for _, obj in half], tasks):
            parts = parts[len(half) :]
        elif len(half) == 1:
            return half[0]
        else:
            parts = half
    return None


def _parts_of(where: str, obj: Any, name: str = "") -> list[_Part]:
    """Give what is pickled with an object."""
    if isinstance(obj, FunctionType):
        there = f"{where}, there " if where else ""
        return [(f"{there}{what}", each) for what, each in _brought_along(obj)]
    where = where or name
    if isinstance(obj, Mapping) and type(obj).__module__ in ("builtins", "collections"):
        found = [(f"a key of {where}", key) for key in obj]
        return found + [(f"{where}[{safe_str(key, repr)}]", obj[key]) for key in obj]
    if isinstance(obj, (set, frozenset)):
        return [(f"an element of {where}", each) for each in obj]
    if isinstance(obj, (list, tuple)):
        return [(f"{where}[{index}]", each) for index, each in enumerate(obj)]
    if isinstance(obj, MethodType):
        return [(f"{where}.__self__", obj.__self__)]
    if isinstance(obj, partial):
        inner = {"func": obj.func, "args": obj.args, "keywords": obj.keywords}
        return [(f"{where}.{what}", each) for what, each in inner.items()]
    return [(f"{where}.{what}", each) for what, each in _state_of(obj)]


def _brought_along(function: FunctionType) -> Iterator[_Part]:
    code = function.__code__
    for name, record in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"the closure variable {name}", record.cell_contents
        except ValueError:  # it has no value yet
            continue
    for name in sorted(_globals_of(code) & function.__globals__.keys()):
        yield f"the global variable {name}", function.__globals__[name]
    defaults = function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
    for name, default in (*zip(names, defaults, strict=True), *_items(function.__kwdefaults__)):
        yield f"the default of its parameter {name}", default
    for name, each in _items(vars(function)):
        yield f"its attribute {name}", each


def _globals_of(code: CodeType) -> set[str]:
    import dis  # which is seldom needed

    found = {each.argval for each in dis.get_instructions(code) if "_GLOBAL" in each.opname}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _globals_of(constant)
    return found


def _items(state: Any) -> Iterable[_Part]:
    return state.items() if isinstance(state, dict) else ()


def _state_of(obj: Any) -> list[_Part]:
    try:
        reduced: Any = obj.__reduce_ex__(pickling.PROTOCOL)
    except (Exception, SystemExit):
        return []
    state = reduced[2] if isinstance(reduced, tuple) and len(reduced) > 2 else None
    states = state if isinstance(state, tuple) else (state,)
    return [(str(name), each) for some in states for name, each in _items(some)]
