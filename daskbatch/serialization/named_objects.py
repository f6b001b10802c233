"""Sends objects that Python pickles by their name alone, such as type variables and caches.

The script's name of the object is unknown elsewhere, so the object is made anew there, once, and
returns to its process as itself. Any number of threads may call all functions.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import typing
import weakref
from collections.abc import Callable
from types import CellType, FunctionType
from typing import Any, cast

from cloudpickle import cloudpickle as _cloudpickle

from daskbatch.serialization import functions, lazy_types, loading, tracking
from daskbatch.serialization.code_names import MAIN_MODULES
from daskbatch.serialization.tracking import Received

Identity = tuple[str, str, bool]


def is_importable(obj: Any, name: str | None = None) -> bool:
    """Return whether other processes find an object by its module and name."""
    if getattr(obj, "__module__", None) in MAIN_MODULES:
        return False
    found = _cloudpickle._lookup_module_and_qualname(obj, name=name)
    if found is None:
        return False
    return not _cloudpickle._is_registered_pickle_by_value(found[0])


# -- what is the same for all tasks of a process ---------------------------------------------


def reduce_type_variable(obj: Any) -> Any:
    """Reduce a `TypeVar`, a `ParamSpec`, a `TypeVarTuple`, a `NewType` or a type alias."""
    name = obj.__name__
    if is_importable(obj, name):
        return getattr, _cloudpickle._lookup_module_and_qualname(obj, name=name)
    if type(obj).__name__ == "TypeAliasType":
        return lazy_types.reduce_alias(obj)
    try:
        parts = _constant_parts(obj)
    except NameError:
        parts = _declaration_parts(obj)
    return _make_constant, (_identity_of(obj), *parts)


def _declaration_parts(obj: Any) -> tuple[Any, ...]:
    """Return how to declare a type variable with a bound, for example, that is not defined."""
    parts: list[lazy_types.Part] = [(None,)]
    declaration = lazy_types.declaration_of(obj, parts)
    return lazy_types.declare_variable, obj.__module__, (declaration, parts), {}


def _constant_parts(obj: Any) -> tuple[Any, ...]:
    kind, name, module = type(obj), obj.__name__, getattr(obj, "__module__", None)
    if kind is typing.NewType:
        return kind, module, (name, obj.__supertype__), {}
    keywords: dict[str, Any] = {}
    positional: tuple[Any, ...] = (name,)
    if kind is not typing.TypeVarTuple:
        keywords["covariant"] = obj.__covariant__
        keywords["contravariant"] = obj.__contravariant__
        if obj.__bound__ is not None:
            keywords["bound"] = obj.__bound__
        if getattr(obj, "__infer_variance__", False):
            keywords["infer_variance"] = True
    if kind is typing.TypeVar:
        positional = (name, *obj.__constraints__)
    if hasattr(obj, "has_default") and obj.has_default():
        keywords["default"] = obj.__default__
    return kind, module, positional, keywords


def _make_constant(
    identity: Identity, kind: Any, module: str | None, args: Any, keywords: dict[str, Any]
) -> Any:
    who = Received(*identity)
    found = tracking.find(who.tracker)
    if found is None:
        made = kind(*args, **keywords)
        if module is not None:
            with contextlib.suppress(AttributeError):
                made.__module__ = module
        found = tracking.register(made, who)
    functions.add_name(found, who)
    return found


def _identity_of(obj: Any) -> Identity:
    who = tracking.identify(obj, lambda: functions.is_bound(obj))
    return who.tracker, who.origin, who.bound


# -- what each task has a copy of ------------------------------------------------------------


def reduce_cached(obj: Any) -> Any:
    """Reduce a function that `functools.lru_cache` or `functools.cache` has made."""
    if is_importable(obj):
        return obj.__reduce__()
    parameters = obj.cache_parameters()
    attributes = {name: value for name, value in vars(obj).items() if name not in _MADE_BY_CACHE}
    state = tuple(getattr(obj, name, None) for name in _NAMES), attributes
    arguments = _identity_of(obj), obj.__wrapped__, parameters["maxsize"], parameters["typed"]
    return _make_cached, arguments, state, None, None, _set_cached


#: What is set on a loaded object, by `setattr`.
_NAMES = ("__name__", "__qualname__", "__module__", "__doc__")
#: Attributes that `functools` sets.
_MADE_BY_CACHE = frozenset(("__wrapped__", "cache_parameters"))
_MADE_BY_DISPATCH = frozenset(("register", "dispatch", "registry", "_clear_cache", "__wrapped__"))


def _make_cached(identity: Identity, inner: Any, maxsize: int | None, typed: bool) -> Any:
    who = Received(*identity)
    found = functions.existing(who.tracker)
    if found is None:
        found = functools.lru_cache(maxsize, typed)(inner)
        functions.add_loaded(found, who, getattr(inner, "__globals__", None))
    return found


def _set_cached(obj: Any, state: tuple[Any, ...]) -> None:
    names, attributes = state
    _fill(obj, names, attributes)


def _fill(obj: Any, names: tuple[Any, ...], attributes: dict[str, Any]) -> bool:
    """Set what an object has apart from what it calls; False if it was filled before."""
    who = tracking.received(obj)
    if who is None or who.serial:
        return False
    tracking.set_received(obj, who._replace(serial=1))
    vars(obj).update(attributes)
    for name, value in zip(_NAMES, names, strict=True):
        setattr(obj, name, value)
    functions.add_name(obj, who)
    return True


#: The code of what `functools.singledispatch` makes.
_DISPATCHER_CODE = cast("FunctionType", functools.singledispatch(lambda _: None)).__code__


def is_dispatcher(function: FunctionType) -> bool:
    """Return whether `functools.singledispatch` has made a function."""
    return function.__code__ is _DISPATCHER_CODE


def reduce_dispatcher(dispatcher: Any) -> tuple[Any, ...]:
    """Reduce a function that `functools.singledispatch` has made."""
    own = vars(dispatcher).items()
    attributes = {name: value for name, value in own if name not in _MADE_BY_DISPATCH}
    names = tuple(getattr(dispatcher, name) for name in _NAMES)
    state = dispatcher.__wrapped__, list(dispatcher.registry.items()), names, attributes
    return _make_dispatcher, (_identity_of(dispatcher),), state, None, None, _set_dispatcher


def _make_dispatcher(identity: Identity) -> Any:
    who = Received(*identity)
    found = functions.existing(who.tracker)
    if found is None:
        found = functools.singledispatch(lambda _: None)
        functions.add_loaded(found, who)
    return found


def _set_dispatcher(dispatcher: Any, state: tuple[Any, ...]) -> None:
    inner, registry, names, attributes = state
    if not _fill(dispatcher, names, attributes):
        return
    for kind, function in registry:
        dispatcher.register(kind, function)
    dispatcher.__wrapped__ = inner
    cells: dict[str, CellType] = dict(
        zip(dispatcher.__code__.co_freevars, dispatcher.__closure__, strict=True)
    )
    if "funcname" in cells:  # the name in its messages
        cells["funcname"].cell_contents = names[0]
    definitions = loading.current()
    if definitions is not None and definitions.globals is None:
        definitions.globals = getattr(inner, "__globals__", None)


# -- parts of classes ------------------------------------------------------------------------


def reduce_cached_property(obj: Any) -> tuple[Any, ...]:
    """Reduce a `functools.cached_property`, without the lock that it has in Python 3.11."""
    state = obj.func, obj.attrname, obj.__doc__
    return _make_descriptor, (type(obj),), state, None, None, _set_cached_property


def _make_descriptor(kind: Any) -> Any:
    return kind.__new__(kind)


def _set_cached_property(obj: Any, state: tuple[Any, ...]) -> None:
    function, name, doc = state
    functools.cached_property.__init__(obj, function)
    obj.attrname = name
    obj.__doc__ = doc


def reduce_method_dispatcher(obj: Any) -> tuple[Any, ...]:
    """Reduce a `functools.singledispatchmethod`, without the cache that it has from 3.12 on."""
    state = obj.func, obj.dispatcher
    return _make_descriptor, (type(obj),), state, None, None, _set_method_dispatcher


def _set_method_dispatcher(obj: Any, state: tuple[Any, ...]) -> None:
    function, dispatcher = state
    functools.singledispatchmethod.__init__(obj, function)
    obj.dispatcher = dispatcher


def reduce_dispatching_method(obj: Any) -> tuple[Any, ...]:
    """Reduce a method of a `functools.singledispatchmethod`: an object from Python 3.14 on."""
    return _get_from, (obj._unbound, obj._obj, obj._cls)


def _get_from(descriptor: Any, obj: Any, kind: type) -> Any:
    return descriptor.__get__(obj, kind)


def reduce_partial_method(obj: Any) -> tuple[Any, ...]:
    """Reduce a `functools.partialmethod`, whose ``__new__`` takes the function from 3.14 on."""
    return _make_partial_method, (type(obj),), dict(vars(obj))


def _make_partial_method(kind: Any) -> Any:
    return object.__new__(kind)


def _reduce_weak_dictionary(obj: Any) -> tuple[Any, ...]:
    return type(obj), (dict(obj),)


def _reduce_missing(_: object) -> Any:
    return getattr, (dataclasses, "MISSING")


def _reduce_keyword_only(_: object) -> Any:
    return getattr, (dataclasses, "KW_ONLY")


# -- an object of a script's class that pickles itself by name --------------------------------


def reduce_by_own_method(obj: Any, protocol: int) -> Any:
    """Reduce an object whose script's class says how; an object that is its name gets an id."""
    reduced = obj.__reduce_ex__(protocol)
    if not isinstance(reduced, str):
        return reduced
    kind = type(obj)
    who = tracking.identify(obj, lambda: False)
    identity = who.tracker, who.origin, reduced
    state = getattr(obj, "__dict__", None)
    return _make_singleton, (identity, kind), state or None, None, None, _set_singleton


def _make_singleton(identity: tuple[str, str, str], kind: Any) -> Any:
    tracker, origin, name = identity
    found = tracking.find(tracker)
    if found is None:
        found = tracking.register(object.__new__(kind), Received(tracker, origin, True))
    definitions = loading.current()
    if definitions is not None and "." not in name:
        definitions.names[name] = found
    return found


def _set_singleton(obj: Any, state: dict[str, Any]) -> None:
    who = tracking.received(obj)
    if who is not None and not who.serial:
        tracking.set_received(obj, who._replace(serial=1))
        vars(obj).update(state)


#: How objects of these types are reduced.
REDUCERS: dict[type, Callable[[Any], Any]] = {
    typing.TypeVar: reduce_type_variable,
    typing.ParamSpec: reduce_type_variable,
    typing.TypeVarTuple: reduce_type_variable,
    typing.NewType: reduce_type_variable,
    type(functools.cache(len)): reduce_cached,
    functools.cached_property: reduce_cached_property,
    functools.partialmethod: reduce_partial_method,
    functools.singledispatchmethod: reduce_method_dispatcher,
    weakref.WeakKeyDictionary: _reduce_weak_dictionary,
    weakref.WeakValueDictionary: _reduce_weak_dictionary,
    type(dataclasses.MISSING): _reduce_missing,
    type(dataclasses.KW_ONLY): _reduce_keyword_only,
}
_dispatching = type(functools.singledispatchmethod(len).__get__(None, object))
if _dispatching is not FunctionType:
    REDUCERS[_dispatching] = reduce_dispatching_method
if hasattr(typing, "TypeAliasType"):
    REDUCERS[typing.TypeAliasType] = reduce_type_variable
