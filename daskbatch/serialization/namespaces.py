"""Shared module globals for functions that are pickled by value.

Each function that is loaded gets its own globals, with the values of the sender: what one function
sets, no other function sees. In a *namespace*, functions of the same module share
one dictionary of globals and one copy of each class, as if the module had been imported. Values
that are set here persist until the sender's value changes, which is detected by comparing digests.

An executor has one namespace in each process, with its id as the name, so that its initializer can
set globals for its functions. Any number of threads may load into one namespace. When two of them
load the same function or class for the first time, one dictionary and one class win.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from daskbatch.serialization import by_value, classes, functions, tracking
from daskbatch.serialization.tracking import Received, WeakTable

#: Types whose objects do not change after they are made. Functions, modules and classes count as
#: immutable here: what they hold is compared in other ways.
_IMMUTABLE = (
    *(type(None), bool, int, float, complex, str, bytes),
    *(FunctionType, BuiltinFunctionType, ModuleType, type),
)

#: Stands for "no value was received": None is a value.
_NOTHING = object()

#: The classes that belong to a namespace.
_owned: WeakTable[bool] = WeakTable()


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
        self._class_fingerprints: WeakTable[int] = WeakTable()

    def module_globals(self, module: str) -> dict[str, Any]:
        """Return the globals of a module."""
        return self._modules.setdefault(module, {})

    def set_globals(self, module: str, found: dict[str, Any]) -> None:
        """Set the dictionary that holds the globals of a module."""
        self._modules[module] = found

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

    def class_of(self, who: Received, make: Callable[[], type]) -> type:
        """Return this namespace's copy of a class; makes it if there is none.

        Parameters
        ----------
        who : Received
            Identifies the class in all processes.
        make : callable
            Makes the class.
        """
        found = self._classes.get(who.tracker)
        if found is None:
            # An object that is loaded outside of namespaces has the same class, unless that
            # class belongs to another namespace.
            found = tracking.find(who.tracker)
            if found is None or _owned.get(found):
                made = make()
                found = tracking.register(made, who)
                if _owned.get(found):
                    tracking.set_received(made, who)
                    found = made
            _owned.set(found, True)
            found = self._classes.setdefault(who.tracker, found)
        return found

    def has_changed(self, kind: type, fingerprint: int | None) -> bool:
        """Return whether a class differs from the one received last; records its fingerprint.

        Parameters
        ----------
        kind : type
            The class.
        fingerprint : int, optional
            The sender's number for the state of the class, see `classes.fingerprint`; None if it
            sent none.
        """
        last = self._class_fingerprints.get(kind)
        if last is not None and fingerprint in (None, last):
            return False
        self._class_fingerprints.set(kind, fingerprint or 0)
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
            functions.set_function: partial(_set_function, name),
            classes.set_class: partial(_set_class, name),
        }

    def reducer_override(self, obj: Any) -> Any:
        reduced = super().reducer_override(obj)
        if not isinstance(reduced, tuple) or reduced[0] not in self._make:
            return reduced  # it travels by reference, or is neither a function nor a class
        make, args, state, items, more, set_state = reduced
        # With it the receiver sees whether the class or the globals have changed.
        version = classes.fingerprint(obj) if isinstance(obj, type) else self._digests(state)
        return self._make[make], args, (state, version), items, more, self._set_state[set_state]

    def _digests(self, state: Any) -> dict[str, str]:
        """Return the digests of those globals of a function that can be changed in place."""
        found = functions.globals_in(state).items()
        some = [(name, value) for name, value in found if not isinstance(value, _IMMUTABLE)]
        data = {name: by_value.dumps(value, self._protocol) for name, value in some}
        return {name: hashlib.blake2b(b, digest_size=16).hexdigest() for name, b in data.items()}


class _Unpickler(pickle.Unpickler):
    """Loads into a namespace what was pickled without one."""

    def __init__(self, data: bytes, name: str, buffers: Sequence[Any] | None = None) -> None:
        super().__init__(io.BytesIO(data), buffers=buffers)
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        found = super().find_class(module, name)
        if module in (functions.__name__, classes.__name__):
            own = _REPLACEMENTS.get(found)
            return found if own is None else partial(own, self._name)
        return found


def loads(data: bytes, name: str, buffers: Sequence[Any] | None = None) -> Any:
    """Load into a namespace what was pickled without one; it overwrites nothing there.

    Parameters
    ----------
    data : bytes
        The pickle.
    name : str
        The name of the namespace.
    buffers : sequence, optional
        The buffers that were pickled out of band.
    """
    return _Unpickler(data, name, buffers).load()


# Pickles name the functions below, and call them when they are loaded. One function makes an empty
# object, and a second one fills it.


def _make_function(
    name: str, identity: Any, code: Any, base: dict[str, Any], closure: int | None
) -> FunctionType:
    module = base.get("__name__")
    if isinstance(module, str):
        local = get_namespace(name).module_globals(module)
        for each, value in base.items():
            local.setdefault(each, value)
        base = local
    return functions.make_function(identity, code, base, closure)


def _set_function(
    name: str, function: FunctionType, state_and_digests: tuple[Any, dict[str, str]]
) -> None:
    state, digests = state_and_digests

    def choose(filled: FunctionType, received: Mapping[str, Any]) -> Mapping[str, Any]:
        module = filled.__globals__.get("__name__")
        if not isinstance(module, str):
            return received
        return get_namespace(name).changed_globals(module, received, digests)

    functions.set_function(function, state, choose)


def _set_function_keeping_globals(name: str, function: FunctionType, state: Any) -> None:
    """Fill a function from a pickle without digests; globals that are there keep their values."""

    def choose(filled: FunctionType, received: Mapping[str, Any]) -> Mapping[str, Any]:
        local = filled.__globals__
        return {each: value for each, value in received.items() if each not in local}

    functions.set_function(function, state, choose)


def _make_class(name: str, identity: Any, *args: Any) -> type:
    who = Received(*identity)
    found: type | None = tracking.find(who.tracker)
    if found is None or tracking.received(found) is not None:
        found = get_namespace(name).class_of(who, partial(classes.build, *args))
    classes.note_use(found, who)
    return found


def _set_class(name: str, kind: type, state_and_fingerprint: tuple[Any, int | None]) -> None:
    state, fingerprint = state_and_fingerprint
    who = tracking.received(kind)
    if who is not None and get_namespace(name).has_changed(kind, fingerprint):
        tracking.set_received(kind, who._replace(serial=1))
        classes.set_attributes(kind, *classes.attributes_in(state))


def _set_class_once(name: str, kind: type, state: Any) -> None:
    """Fill a class from a pickle without a fingerprint, unless it was filled before."""
    _set_class(name, kind, (state, None))


#: By the function that makes an object: the one that makes it in a namespace.
_MAKE: dict[Any, Callable[..., Any]] = {
    functions.make_function: _make_function,
    classes.make_class: _make_class,
}

#: For a pickle made without a namespace: what is called in place of its functions.
_REPLACEMENTS: dict[Any, Callable[..., Any]] = {
    **_MAKE,
    functions.set_function: _set_function_keeping_globals,
    classes.set_class: _set_class_once,
}
