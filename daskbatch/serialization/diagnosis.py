"""Finds the part of an object that cannot be pickled, and says where it is.

Called after pickling has failed, since it takes time: it pickles the parts of the object again, in
halves, until it has found the innermost part that fails. It raises nothing, and stops after a few
seconds. Any thread may call it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from types import CodeType, FunctionType, MethodType
from typing import Any

from daskbatch.serialization import pickling
from daskbatch.serialization.safe_text import is_from_outside, safe_repr, safe_str, type_name
from daskbatch.timeouts import Deadline

#: The search looks into at most this many levels of parts, and into no further one after this time.
_MAX_DEPTH, _SEARCH_TIMEOUT_SECONDS = 8, 5.0

#: The advice for an object that belongs to one process.
_ADVICE = ": make it inside the function"

#: The start of Python's message for objects that belong to one process, such as locks. Only there
#: the advice is right: classes that refuse to be pickled have messages of their own.
_BOUND_TO_PROCESS = "cannot pickle"

#: A description of where a part is, and the part itself.
_Part = tuple[str, Any]


def kind_of(obj: object) -> str:
    """Return the name of an object's type with an article: ``a lock``, ``an Event``."""
    name = type_name(obj)
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def hint_on_arguments(named: Mapping[str, Any], error: BaseException) -> str:
    """Return a hint on the argument that cannot be sent; empty if none is found.

    Parameters
    ----------
    named : mapping
        The arguments, by the names that messages have for them. There may be tasks among them.
    error : BaseException
        The error of pickling them.
    """
    return _hint(named, named.items, error, True, _ADVICE)


def hint_on_function(function: Callable[..., Any], error: BaseException) -> str:
    """Return a hint on what a function refers to and cannot be sent; empty if none is found.

    Parameters
    ----------
    function : callable
        The function that cannot be sent.
    error : BaseException
        The error of pickling it.
    """
    return _hint(function, lambda: _parts_of("", function, "function"), error, False, _ADVICE)


def hint_on_value(name: str, value: object, error: BaseException) -> str:
    """Return a hint on the part of a value that cannot be sent; empty if it is the whole value.

    Parameters
    ----------
    name : str
        What the message calls the value.
    value : object
        The value that cannot be sent.
    error : BaseException
        The error of pickling it.
    """
    return _hint(value, lambda: _parts_of(name, value), error, False, "")


def _hint(
    whole: object,
    parts: Callable[[], Iterable[_Part]],
    error: BaseException,
    tasks: bool,
    advice: str,
) -> str:
    found = _find(parts, tasks, {id(whole)})
    if found is None:
        return ""
    where, part = found
    if issubclass(type(part), Future):
        advice = " of another executor: give its result()"
    elif _BOUND_TO_PROCESS not in safe_str(error):
        advice = ""
    return f"; it is {where}, {kind_of(part)}{advice}"


def _find(parts: Callable[[], Iterable[_Part]], tasks: bool, seen: set[int]) -> _Part | None:
    """Find the innermost part that cannot be pickled, among those that can be looked at."""
    found: _Part | None = None
    deadline = Deadline(_SEARCH_TIMEOUT_SECONDS)
    for _ in range(_MAX_DEPTH):
        if deadline.passed:
            break
        try:
            part = _first_failing([each for each in parts() if id(each[1]) not in seen], tasks)
        except BaseException as failure:  # to look at an object may run any code
            if is_from_outside(failure):
                raise
            break
        if part is None:
            break
        found = part
        seen.add(id(part[1]))
        if issubclass(type(part[1]), Future):
            break
        parts = partial(_parts_of, *part)
    return found


def _first_failing(parts: list[_Part], tasks: bool) -> _Part | None:
    """Find the first part that cannot be pickled, by halving the list."""
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
    """Return the parts that are pickled with an object, each with where it is."""
    if isinstance(obj, FunctionType):
        inside = f"{where}, there " if where else ""
        return [(f"{inside}{what}", each) for what, each in _references_of(obj)]
    where = where or name
    if isinstance(obj, Mapping) and type(obj).__module__ in ("builtins", "collections"):
        found = [(f"a key of {where}", key) for key in obj]
        return found + [(f"{where}[{safe_repr(key)}]", obj[key]) for key in obj]
    if isinstance(obj, (set, frozenset)):
        return [(f"an element of {where}", each) for each in obj]
    if isinstance(obj, (list, tuple)):
        return [(f"{where}[{index}]", each) for index, each in enumerate(obj)]
    if isinstance(obj, MethodType):
        return [(f"{where}.__self__", obj.__self__)]
    if isinstance(obj, partial):
        inner = {"func": obj.func, "args": obj.args, "keywords": obj.keywords}
        return [(f"{where}.{what}", each) for what, each in inner.items()]
    if isinstance(obj, type):
        own = type.__getattribute__(obj, "__dict__").items()
        name = type.__getattribute__(obj, "__qualname__")
        found = [(f"the base {each.__name__} of {name}", each) for each in obj.__bases__]
        return found + [(f"{name}.{what}", each) for what, each in own if what not in _NOT_SENT]
    if isinstance(obj, (staticmethod, classmethod)):
        return [(where, obj.__func__)]
    if isinstance(obj, property):
        accessors = {"getter": obj.fget, "setter": obj.fset, "deleter": obj.fdel}
        return [(f"the {what} of {where}", each) for what, each in accessors.items()]
    found = [(f"{where}.{what}", each) for what, each in _state_of(obj)]
    wrapped = getattr(obj, "__wrapped__", None)
    if callable(wrapped):
        found.append((where, wrapped))
    return [*found, (f"the class {type(obj).__qualname__}", type(obj))]


#: Attributes of a class that each process makes by itself.
_NOT_SENT = frozenset(("__dict__", "__weakref__"))


def _references_of(function: FunctionType) -> Iterator[_Part]:
    """Yield what is pickled with a function: its variables, defaults and attributes."""
    code = function.__code__
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"the closure variable {name}", cell.cell_contents
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
    import dis  # not at the top: it is seldom needed, and children start quickly without it

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
    except BaseException as failure:
        if is_from_outside(failure):
            raise
        return []
    state = reduced[2] if isinstance(reduced, tuple) and len(reduced) > 2 else None
    states = state if isinstance(state, tuple) else (state,)
    return [(str(name), each) for some in states for name, each in _items(some)]
