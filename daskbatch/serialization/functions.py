"""Sends functions by value: with their code and a snapshot of the globals that they use.

A pickle names `make_function` and `set_function`, which make the function and fill it when it is
loaded: so a function may refer to itself. A function that returns to the process that it is from
is that process's own function. Any number of threads may call all functions.
"""

from __future__ import annotations

import builtins
import sys
from collections.abc import Callable, Mapping
from operator import attrgetter
from types import CellType, CodeType, FunctionType
from typing import Any

from daskbatch.serialization import loading, tracking
from daskbatch.serialization.code_names import (
    MAIN_MODULES,
    names_of,
    submodules_of,
)
from daskbatch.serialization.deferred_annotations import CLASS_NAMESPACE, used_of
from daskbatch.serialization.tracking import Received

#: The globals by which a module finds itself and its package.
_MODULE_GLOBALS = ("__package__", "__name__", "__path__", "__file__")

#: What is set on a loaded function, by `setattr`.
_ATTRIBUTES = (
    *("__name__", "__qualname__", "__annotations__", "__kwdefaults__"),
    *("__defaults__", "__module__", "__doc__"),
)
_attributes_of = attrgetter(*_ATTRIBUTES)

#: The same, with the function that evaluates the annotations in place of them.
_UNEVALUATED = tuple("__annotate__" if name == "__annotations__" else name for name in _ATTRIBUTES)
_unevaluated_of = attrgetter(*_UNEVALUATED)
_ANNOTATIONS_POSITION = _ATTRIBUTES.index("__annotations__")


def is_bound(obj: Any) -> bool:
    """Return whether the script's ``__main__`` has a definition under its name."""
    name = getattr(obj, "__qualname__", None) or getattr(obj, "__name__", None)
    if getattr(obj, "__module__", None) not in MAIN_MODULES or not isinstance(name, str):
        return False
    own = getattr(obj, "__globals__", None)
    if isinstance(own, dict) and own.get(name) is obj:
        return True
    main = sys.modules.get("__main__")
    return main is not None and main.__dict__.get(name) is obj


def reduce_function(
    function: FunctionType,
    shared_globals: dict[int, dict[str, Any]],
    anonymous: bool,
    pickle_class: Callable[[type], bytes | None] | None,
) -> tuple[Any, ...]:
    """Reduce a function to what `make_function` and `set_function` take.

    Parameters
    ----------
    function : function
        The function.
    shared_globals : dict
        By the id of a function's globals: the globals that its copies will have. All functions of
        one pickle with the same globals share them.
    anonymous : bool
        Whether the function gets no id, so that equal functions make equal pickles.
    pickle_class : callable, optional
        Pickles a class of the script that the function may unpickle by name.
    """
    code, own = function.__code__, function.__globals__
    base = shared_globals.setdefault(id(own), {})
    if not base:
        base.update((name, own[name]) for name in _MODULE_GLOBALS if name in own)
    closure = None
    if function.__closure__ is not None:
        closure = len(function.__closure__)
    who: Received | None = None
    if not anonymous:
        who = tracking.identify(function, lambda: is_bound(function))
    identity = None if who is None else (who.tracker, who.origin, who.bound)
    by_name: dict[str, bytes] = {}
    if pickle_class is not None and names_of(code).loads_by_name:
        by_name = _pickle_classes(own, pickle_class)
    state = *_state_of(function, identity is not None), by_name
    return make_function, (identity, code, base, closure), state, None, None, set_function


def _state_of(function: FunctionType, tracked: bool) -> tuple[Any, ...]:
    names, own = names_of(function.__code__), function.__globals__
    used = {name: own[name] for name in names.globals if name in own}
    main = sys.modules.get("__main__")
    if own.get("__name__") in MAIN_MODULES and (
        names.mentions_main or id(main) in map(id, used.values())
    ):
        found = own if main is None or main.__dict__ is own else main.__dict__
        words = sorted(names.names | names.texts)
        used.update((word, found[word]) for word in words if word in found and word not in used)
    cells = _contents_of(function, names.names) if function.__closure__ else []
    values = list(used.values())
    if cells:
        values += [content[0] for content in cells if content]
    # Copies of the texts: a text that is interned would be sent once, another one twice.
    attributes = {"".join(name): value for name, value in function.__dict__.items()}
    parameters = getattr(function, "__type_params__", ())
    try:
        slots = _attributes_of(function)
    except Exception:  # the annotations name what is not there
        slots = _unevaluated_of(function)
    return tracked, attributes, slots, parameters, used, cells, submodules_of(names, values)


def _pickle_classes(
    own: dict[str, Any], pickle_class: Callable[[type], bytes | None]
) -> dict[str, bytes]:
    """Pickle the classes of the script, since a function may unpickle their objects."""
    found: dict[str, bytes] = {}
    if own.get("__name__") in MAIN_MODULES:
        for name, value in list(own.items()):
            if isinstance(value, type) and is_bound(value) and value.__qualname__ == name:
                data = pickle_class(value)
                if data is not None:
                    found[name] = data
    return found


def globals_in(state: tuple[Any, ...]) -> dict[str, Any]:
    """Return the globals in the state of a function that `reduce_function` has returned."""
    used: dict[str, Any] = state[4]
    return used


def _contents_of(function: FunctionType, names: frozenset[str]) -> list[tuple[Any, ...]]:
    """Return the contents of a function's cells; of a class's namespace what the function uses."""
    closure = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    found = [(name, _content_of(cell)) for name, cell in closure]
    return [
        (used_of(content[0], names),) if name == CLASS_NAMESPACE and content else content
        for name, content in found
    ]


def _content_of(cell: CellType) -> tuple[Any, ...]:
    """Return the content of a cell, in a tuple that is empty if the cell is."""
    try:
        return (cell.cell_contents,)
    except ValueError:
        return ()


def existing(tracker: str) -> Any:
    """Return the definition that a pickle means by an id, if this thread has it; else None."""
    found = loading.find(tracker)
    if found is None and not loading.makes_copies():
        found = tracking.find_original(tracker)
    return found


def make_function(
    identity: tuple[str, str, bool] | None,
    code: CodeType,
    base: dict[str, Any],
    closure: int | None,
) -> FunctionType:
    """Make a function without globals, or return the one that has this id already.

    Parameters
    ----------
    identity : tuple, optional
        Its id, the id of the process that it is from, and whether ``__main__`` had it there.
    code : code
        Its code.
    base : dict
        The globals that it shares with other functions of the pickle.
    closure : int, optional
        The number of its cells.
    """
    if identity is not None:
        found = existing(identity[0])
        if type(found) is FunctionType:
            return found
    base["__builtins__"] = builtins.__dict__
    cells = None if closure is None else tuple(CellType() for _ in range(closure))
    made = FunctionType(code, base, None, None, cells)
    if identity is not None:
        add_loaded(made, Received(*identity), base)
    return made


def add_loaded(made: Any, who: Received, own_globals: dict[str, Any] | None = None) -> None:
    """Record a definition that was loaded; each task has a copy of it."""
    tracking.set_received(made, who)
    definitions = loading.current()
    if definitions is not None:
        definitions.by_tracker[who.tracker] = made
        if own_globals is not None and definitions.globals is None:
            definitions.globals = own_globals


def add_name(made: Any, who: Received) -> None:
    """Record that the script's ``__main__`` had a loaded definition under its name."""
    if who.bound:
        definitions = loading.current()
        name = getattr(made, "__qualname__", None) or made.__name__
        if definitions is not None and "." not in name:
            definitions.names[name] = made


#: What decides which of the received globals a function's globals get.
ChooseGlobals = Callable[[FunctionType, Mapping[str, Any]], Mapping[str, Any]]


def set_function(
    function: FunctionType, state: tuple[Any, ...], choose: ChooseGlobals | None = None
) -> None:
    """Fill a function that `make_function` has just made; one that was there stays as it is."""
    tracked, attributes, slots, parameters, received_globals, cells, _, by_name = state
    if by_name:
        definitions = loading.current()
        if definitions is not None:
            definitions.pickled_names.update(by_name)
    if tracked:
        who = tracking.received(function)
        if who is None or who.serial:
            return
        tracking.set_received(function, who._replace(serial=1))
    function.__dict__.update(attributes)
    own = function.__globals__
    if choose is not None:
        received_globals = choose(function, received_globals)
    own.update(received_globals)
    for cell, content in zip(function.__closure__ or (), cells, strict=True):
        if content:
            (cell.cell_contents,) = content
    is_evaluated = not callable(slots[_ANNOTATIONS_POSITION])
    for name, value in zip(_ATTRIBUTES if is_evaluated else _UNEVALUATED, slots, strict=True):
        setattr(function, name, value)
    if parameters:
        function.__type_params__ = parameters  # type: ignore[attr-defined]
    if tracked:
        add_name(function, who)  # type: ignore[arg-type]
