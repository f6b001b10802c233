"""The globals that functions which are sent by value have together, in each process.

Does not know whose functions they are. By itself cloudpickle gives each function that it loads
globals of its own, as they were where it came from: what one sets, no other one sees. In a
*space* there is one set of them for each module, and one copy of each class, as if the module
had been imported; and what has been set here stays, until it is changed where it came from.
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

#: Types whose objects are not changed once they are made. What is defined counts as such.
_FIXED = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(FunctionType, BuiltinFunctionType, ModuleType, type),
)

#: What comes into a class by itself.
_CACHES = {"__slotnames__", "__annotations_cache__"}

_NOTHING = object()

# What cloudpickle knows classes by.
_BY_TRACKER = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
_TRACKERS = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS

#: The classes that are of a space.
_owned: weakref.WeakSet[type] = weakref.WeakSet()


class Namespace:
    """What functions of one origin share in this process."""

    def __init__(self) -> None:
        self._modules: dict[str, dict[str, Any]] = {}
        #: What came from elsewhere last, and its mark; by module and name.
        self._brought: dict[tuple[str, str], tuple[Any, str | None]] = {}
        self._classes: dict[str, type] = {}
        self._marks: dict[type, int] = {}

    def globals_of(self, module: str) -> dict[str, Any]:
        """Give the globals of a module."""
        return self._modules.setdefault(module, {})

    def news(
        self, module: str, brought: Mapping[str, Any], marks: Mapping[str, str]
    ) -> dict[str, Any]:
        """Say which of the globals that a function brings along are to be put here.

        Parameters
        ----------
        module : str
            Its module.
        brought : mapping
            They.
        marks : mapping
            The marks of those that can be changed. One with the same mark as before is not new:
            the one that is here may have been changed by what runs here.
        """
        here = self.globals_of(module)
        new = {}
        for name, value in brought.items():
            mark = marks.get(name)
            if name in here:
                before, had = self._brought.get((module, name), (_NOTHING, None))
                if here[name] is not before or (mark is not None and mark == had):
                    continue  # it has been set here, or is the same as before
            new[name] = value
            self._brought[module, name] = value, mark
        return new

    def class_of(self, tracker: str, make: Callable[[], type]) -> type:
        """Give the copy of a class that is here, or make it.

        Parameters
        ----------
        tracker : str
            What cloudpickle knows it by, in all processes.
        make : callable
            Makes one that cloudpickle does not know.
        """
        found = self._classes.get(tracker)
        if found is None:
            # What is loaded in other ways is of the same class, unless that is another space's.
            found = _BY_TRACKER.get(tracker)
            if found is None or found in _owned:
                made = make()
                found = _BY_TRACKER.setdefault(tracker, made)
                if found in _owned:
                    found = made
            _TRACKERS[found] = tracker
            _owned.add(found)
            found = self._classes.setdefault(tracker, found)
        return found

    def is_new(self, kind: type, mark: int | None) -> bool:
        """Say whether a class is other than it was when it came last, and take that in."""
        had = self._marks.get(kind)
        if had is not None and mark in (None, had):
            return False
        self._marks[kind] = mark or 0
        return True


_spaces: dict[str, Namespace] = {}


def space(name: str) -> Namespace:
    """Give a space of this process."""
    return _spaces.setdefault(name, Namespace())


def forget(name: str) -> None:
    """Let go of a space."""
    _spaces.pop(name, None)


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles so that what has to go by value is loaded into a space.

    Parameters
    ----------
    file : BytesIO
        Where the bytes go.
    name : str
        The space.
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
        # One object each, which is pickled once.
        self._make = {make: partial(own, name) for make, own in _MAKE.items()}
        self._set = {
            _cloudpickle._function_setstate: partial(_set_function, name),
            _cloudpickle._class_setstate: partial(_set_class, name),
        }

    def reducer_override(self, obj: Any) -> Any:
        made = super().reducer_override(obj)
        if not isinstance(made, tuple) or made[0] not in self._make:
            return made  # it goes by reference, or is nothing of the kind
        make, args, state, items, more, set_state = made
        marks = _mark_of_class(obj) if isinstance(obj, type) else self._marks(state)
        return self._make[make], args, (state, marks), items, more, self._set[set_state]

    def _marks(self, state: Any) -> dict[str, str]:
        """Mark the globals of a function that can be changed."""
        found = state[1]["__globals__"].items()
        some = [(name, value) for name, value in found if not isinstance(value, _FIXED)]
        data = {name: cloudpickle.dumps(value, self._protocol) for name, value in some}
        return {name: hashlib.blake2b(b, digest_size=16).hexdigest() for name, b in data.items()}


def _mark_of_class(kind: type) -> int:
    """Say by a number what a class is like: another one, if something of it was replaced."""
    found = [
        (name, value if isinstance(value, (int, float, str)) else id(value))
        for name, value in vars(kind).items()
        if name not in _CACHES
    ]
    return hash(tuple(found))


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, name: str) -> None:
        super().__init__(io.BytesIO(data))
        self._space = name

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module == _cloudpickle.__name__:
            own = _OWN.get(found)
            return found if own is None else partial(own, self._space)
        return found


def loads(data: bytes, name: str) -> Any:
    """Load into a space what was pickled for none; nothing in it is news there."""
    return _Unpickler(data, name).load()


# What is called to load. Cloudpickle makes an empty object first, then says what is in it.


def _make_function(name: str, code: Any, base: dict[str, Any], *rest: Any) -> FunctionType:
    module = base.get("__name__")
    if isinstance(module, str):
        here = space(name).globals_of(module)
        for each, value in base.items():
            here.setdefault(each, value)
        base = here
    made: FunctionType = _cloudpickle._make_function(code, base, *rest)
    return made


def _set_function(name: str, function: FunctionType, marked: tuple[Any, dict[str, str]]) -> None:
    state, marks = marked
    module = function.__globals__.get("__name__")
    if isinstance(module, str):
        brought = state[1]["__globals__"]
        state[1]["__globals__"] = space(name).news(module, brought, marks)
    _cloudpickle._function_setstate(function, state)


def _set_unmarked_function(name: str, function: FunctionType, state: Any) -> None:
    brought = state[1]["__globals__"]
    here = function.__globals__
    state[1]["__globals__"] = {each: v for each, v in brought.items() if each not in here}
    _cloudpickle._function_setstate(function, state)


def _make_class(name: str, *args: Any) -> type:
    *first, tracker, extra = args
    make = partial(_cloudpickle._make_skeleton_class, *first, None, extra)
    return space(name).class_of(tracker, make)


def _make_enum(name: str, *args: Any) -> type:
    *first, tracker, extra = args
    make = partial(_cloudpickle._make_skeleton_enum, *first, None, extra)
    return space(name).class_of(tracker, make)


def _set_class(name: str, kind: type, marked: tuple[Any, int]) -> None:
    state, mark = marked
    if space(name).is_new(kind, mark):
        _cloudpickle._class_setstate(kind, state)


def _set_unmarked_class(name: str, kind: type, state: Any) -> None:
    if space(name).is_new(kind, None):
        _cloudpickle._class_setstate(kind, state)


_MAKE: dict[Any, Callable[..., Any]] = {
    _cloudpickle._make_function: _make_function,
    _cloudpickle._make_skeleton_class: _make_class,
    _cloudpickle._make_skeleton_enum: _make_enum,
}
_OWN: dict[Any, Callable[..., Any]] = {
    **_MAKE,
    _cloudpickle._function_setstate: _set_unmarked_function,
    _cloudpickle._class_setstate: _set_unmarked_class,
}
