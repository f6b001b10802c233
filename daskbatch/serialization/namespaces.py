"""Shared module globals for functions that are pickled by value.

cloudpickle gives each function that it unpickles its own globals, with the values of the sender:
what one function sets, no other function sees. In a *namespace*, functions of the same module share
one dictionary of globals and one copy of each class, as if the module had been imported. Values
that are set here persist until the sender's value changes, which is detected by comparing digests.

An executor has one namespace in each process, with its id as the name, so that its initializer can
set globals for its functions. Any number of threads may load into one namespace. When two of them
load the same function or class for the first time, one dictionary and one class win.

A new version of cloudpickle
----------------------------
This module replaces private functions of cloudpickle 3.1: those that a pickle names, and that make
and fill functions, classes and enums when it is loaded. ``pyproject.toml`` allows 3.1.x only. To
allow 3.2:

1. Compare these names in ``cloudpickle/cloudpickle.py`` of both versions: ``_make_function``,
   ``_make_skeleton_class``, ``_make_skeleton_enum``, ``_function_setstate``, ``_class_setstate``,
   ``_DYNAMIC_CLASS_TRACKER_BY_ID`` and ``_DYNAMIC_CLASS_TRACKER_BY_CLASS``.
2. A reducer of a function or class must still return six items, with one of the first three names
   at position 0, and one of the two ``_setstate`` functions at position 5. `Pickler` reads that.
3. The state of a function must still be a pair whose second item has ``__globals__``. The arguments
   of ``_make_skeleton_class`` and ``_make_skeleton_enum`` must still end with the tracker's id and
   one more item: `_make_class` and `_make_enum` read these.
4. Run ``tests/unit/serialization`` and ``tests/integration/test_executor_initializer.py``.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _cloudpickle

from daskbatch.serialization import by_value

#: Types whose objects do not change after they are made. Functions, modules and classes count as
#: immutable here: what they hold is compared in other ways.
_IMMUTABLE = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(FunctionType, BuiltinFunctionType, ModuleType, type),
)

#: Attributes that Python itself adds to a class; they do not count as changes.
_CACHES = {"__slotnames__", "__annotations_cache__"}

#: Stands for "no value was received": None is a value.
_NOTHING = object()

#: cloudpickle's own registers of classes: by the id that it sends, and the reverse.
_CLASS_BY_TRACKER = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
_TRACKER_BY_CLASS = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS

#: The classes that belong to a namespace.
_owned: weakref.WeakSet[type] = weakref.WeakSet()


class Namespace:
    """The globals and classes that functions of one sender share in this process.

    Several threads may use it without a lock: each dictionary is changed by one atomic operation,
    `setdefault` where two threads may add the same entry.
    """

    def __init__(self) -> None:
        self._modules: dict[str, dict[str, Any]] = {}
        #: By module and name: the value that was received last, and its digest.
        self._received: dict[tuple[str, str], tuple[Any, str | None]] = {}
        self._classes: dict[str, type] = {}
        self._class_fingerprints: dict[type, int] = {}

    def module_globals(self, module: str) -> dict[str, Any]:
        """Return the globals of a module."""
        return self._modules.setdefault(module, {})

    def changed_globals(
        self, module: str, received: Mapping[str, Any], digests: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return the received globals that must overwrite local ones; records them as received.

        A global is returned if it is not there yet; or if it differs from the one received last,
        and no function has set the local one since.

        Parameters
        ----------
        module : str
            The name of the function's module.
        received : mapping
            The globals that a function was sent with.
        digests : mapping
            The digests of those globals that can be changed in place. If the digest is the same as
            before, the sender's global has not changed, and the local one stays: functions that
            run here may have changed it.
        """
        local = self.module_globals(module)
        changed = {}
        for name, value in received.items():
            digest = digests.get(name)
            if name in local:
                last, last_digest = self._received.get((module, name), (_NOTHING, None))
                if local[name] is not last or (digest is not None and digest == last_digest):
                    continue  # it has been set here, or is the same as before
            changed[name] = value
            self._received[module, name] = value, digest
        return changed

    def class_of(self, tracker: str, make: Callable[[], type]) -> type:
        """Return this namespace's copy of a class; makes it if there is none.

        Parameters
        ----------
        tracker : str
            The id by which cloudpickle identifies the class in all processes.
        make : callable
            Makes a class that cloudpickle does not know.
        """
        found = self._classes.get(tracker)
        if found is None:
            # An object that is loaded outside of namespaces has the same class, unless that
            # class belongs to another namespace.
            found = _CLASS_BY_TRACKER.get(tracker)
            if found is None or found in _owned:
                made = make()
                found = _CLASS_BY_TRACKER.setdefault(tracker, made)
                if found in _owned:
                    found = made
            _TRACKER_BY_CLASS[found] = tracker
            _owned.add(found)
            found = self._classes.setdefault(tracker, found)
        return found

    def has_changed(self, kind: type, fingerprint: int | None) -> bool:
        """Return whether a class differs from the one received last; records its fingerprint.

        Parameters
        ----------
        kind : type
            The class.
        fingerprint : int, optional
            The sender's number for the state of the class, see `_fingerprint_of_class`; None if it
            sent none.
        """
        last = self._class_fingerprints.get(kind)
        if last is not None and fingerprint in (None, last):
            return False
        self._class_fingerprints[kind] = fingerprint or 0
        return True


#: The namespaces of this process, by name.
_namespaces: dict[str, Namespace] = {}


def get_namespace(name: str) -> Namespace:
    """Return a namespace of this process; makes it if there is none."""
    return _namespaces.setdefault(name, Namespace())


def forget(name: str) -> None:
    """Remove a namespace from this process."""
    _namespaces.pop(name, None)


class Pickler(by_value.Pickler):
    """Pickles so that what travels by value is loaded into a namespace.

    Parameters
    ----------
    file : BytesIO
        The file that receives the bytes.
    name : str
        The name of the namespace.
    protocol, buffer_callback
        See `pickle.Pickler`.
    """

    def __init__(
        self,
        file: io.BytesIO,
        name: str,
        protocol: int,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
    ) -> None:
        super().__init__(file, protocol, buffer_callback)
        self._protocol = protocol
        # One object for each function, so that the pickle holds it once.
        self._make = {make: partial(own, name) for make, own in _MAKE.items()}
        self._set_state = {
            _cloudpickle._function_setstate: partial(_set_function, name),
            _cloudpickle._class_setstate: partial(_set_class, name),
        }

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if not isinstance(reduced, tuple) or reduced[0] not in self._make:
            return reduced  # it travels by reference, or is neither a function nor a class
        make, args, state, items, more, set_state = reduced
        # With it the receiver sees whether the class or the globals have changed.
        version = _fingerprint_of_class(obj) if isinstance(obj, type) else self._digests(state)
        return self._make[make], args, (state, version), items, more, self._set_state[set_state]

    def _digests(self, state: Any) -> dict[str, str]:
        """Return the digests of those globals of a function that can be changed in place."""
        found = state[1]["__globals__"].items()
        some = [(name, value) for name, value in found if not isinstance(value, _IMMUTABLE)]
        # Not by this package's pickler: the digest must not depend on the names of files.
        data = {name: cloudpickle.dumps(value, self._protocol) for name, value in some}
        return {name: hashlib.blake2b(b, digest_size=16).hexdigest() for name, b in data.items()}


def _fingerprint_of_class(kind: type) -> int:
    """Return a number for the attributes of a class; it changes when an attribute is replaced."""
    found = [
        (name, value if isinstance(value, (int, float, str)) else id(value))
        for name, value in vars(kind).items()
        if name not in _CACHES
    ]
    return hash(tuple(found))


class _Unpickler(pickle.Unpickler):
    """Loads into a namespace what was pickled without one."""

    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(io.BytesIO(data))
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module == _cloudpickle.__name__:
            own = _REPLACEMENTS.get(found)
            return found if own is None else partial(own, self._name)
        return found


def loads(data: bytes, name: str) -> Any:
    """Load into a namespace what was pickled without one; it overwrites nothing there.

    Parameters
    ----------
    data : bytes
        The pickle.
    name : str
        The name of the namespace.
    """
    return _Unpickler(data, name).load()


# Pickles name the functions below, and call them when they are loaded. As in cloudpickle, one
# function makes an empty object, and a second one fills it.


def _make_function(name: str, code: Any, base: dict[str, Any], *rest: Any) -> FunctionType:
    module = base.get("__name__")
    if isinstance(module, str):
        local = get_namespace(name).module_globals(module)
        for each, value in base.items():
            local.setdefault(each, value)
        base = local
    made: FunctionType = _cloudpickle._make_function(code, base, *rest)
    return made


def _set_function(
    name: str, function: FunctionType, state_and_digests: tuple[Any, dict[str, str]]
) -> None:
    state, digests = state_and_digests
    module = function.__globals__.get("__name__")
    if isinstance(module, str):
        received = state[1]["__globals__"]
        changed = get_namespace(name).changed_globals(module, received, digests)
        state[1]["__globals__"] = changed
    _cloudpickle._function_setstate(function, state)


def _set_function_keeping_globals(name: str, function: FunctionType, state: Any) -> None:
    """Fill a function from a pickle without digests; globals that are there keep their values."""
    received = state[1]["__globals__"]
    local = function.__globals__
    state[1]["__globals__"] = {each: v for each, v in received.items() if each not in local}
    _cloudpickle._function_setstate(function, state)


def _make_class(name: str, *args: Any) -> type:
    *first, tracker, extra = args
    make = partial(_cloudpickle._make_skeleton_class, *first, None, extra)
    return get_namespace(name).class_of(tracker, make)


def _make_enum(name: str, *args: Any) -> type:
    *first, tracker, extra = args
    make = partial(_cloudpickle._make_skeleton_enum, *first, None, extra)
    return get_namespace(name).class_of(tracker, make)


def _set_class(name: str, kind: type, state_and_fingerprint: tuple[Any, int]) -> None:
    state, fingerprint = state_and_fingerprint
    if get_namespace(name).has_changed(kind, fingerprint):
        _cloudpickle._class_setstate(kind, state)


def _set_class_once(name: str, kind: type, state: Any) -> None:
    """Fill a class from a pickle without a fingerprint, unless it was filled before."""
    if get_namespace(name).has_changed(kind, None):
        _cloudpickle._class_setstate(kind, state)


#: By cloudpickle's function that makes an object: the one that makes it in a namespace.
_MAKE: dict[Any, Callable[..., Any]] = {
    _cloudpickle._make_function: _make_function,
    _cloudpickle._make_skeleton_class: _make_class,
    _cloudpickle._make_skeleton_enum: _make_enum,
}

#: For a pickle made without a namespace: what is called in place of cloudpickle's functions.
_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    **_MAKE,
    _cloudpickle._function_setstate: _set_function_keeping_globals,
    _cloudpickle._class_setstate: _set_class_once,
}
