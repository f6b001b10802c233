"""Sends classes by value. A class is one class in each process, and returns as itself.

A pickle names `make_class` and `set_class`. The first makes a class without attributes, or finds
the one that this process has; the second sets the attributes. Neither runs the user's code: no
metaclass written in a script, no ``__init_subclass__`` and no ``__set_name__`` is called again,
since the attributes that these have set are sent.

Each pickle of a class that is from the sending process has a *serial*, which grows with time. A
copy that is sent on keeps its serial. So a class never returns to an older state because an old
copy of it arrives from another process. Any number of threads may call all functions.
"""

from __future__ import annotations

import abc
import contextlib
import enum
import sys
import types
import typing
from collections.abc import Callable, Iterator
from functools import partial
from threading import get_ident
from types import BuiltinFunctionType, GetSetDescriptorType, MemberDescriptorType
from typing import Any

from daskbatch.forking import make_rlock
from daskbatch.serialization import deferred_annotations, enums, functions, loading, tracking
from daskbatch.serialization.code_names import MAIN_MODULES, values_in_annotations
from daskbatch.serialization.tracking import Received

#: Stands for the serial of a pickle while it is made; `by_value.dumps` replaces it.
UNSTAMPED = b"daskbatch-serial" + bytes(8)

#: Attributes that each process makes by itself.
_OWN_ATTRIBUTES = frozenset(
    (
        *("__weakref__", "__dict__", "__slotnames__", "__annotations_cache__"),
        *("__annotate_func__", "_abc_impl", "__qualname__"),
    )
)

#: What ``__slots__`` and the lack of them make.
_DESCRIPTORS = (MemberDescriptorType, GetSetDescriptorType)

#: Held while the ``__init_subclass__`` of a class is replaced.
_replacing = make_rlock()

#: The attributes of each loaded class that were set last: those that are missing later are removed.
_set_attributes: tracking.WeakTable[frozenset[str]] = tracking.WeakTable()


def reduce_class(kind: type) -> tuple[Any, ...]:
    """Reduce a class to what `make_class` and `set_class` take."""
    who = tracking.identify(kind, lambda: functions.is_bound(kind))
    own = dict(vars(kind))
    own.update(deferred_annotations.class_annotations(kind))
    body: dict[str, Any] = {"__module__": own.get("__module__"), "__qualname__": kind.__qualname__}
    if "__slots__" in own:
        body["__slots__"] = _slots_of(own)
    members = enums.cores_of(kind) if isinstance(kind, enum.EnumMeta) else None
    identity = who.tracker, who.origin, who.bound
    arguments = identity, type(kind), kind.__name__, kind.__bases__, body, members
    attributes = {
        "".join(name): value
        for name, value in own.items()
        if name not in _OWN_ATTRIBUTES
        and not (type(value) in _DESCRIPTORS and value.__objclass__ is kind)
    }
    if members is not None:
        attributes = enums.without_pseudo_members(kind, attributes)
    subclasses = _registered(kind)
    details = enums.details_of(kind) if members is not None else None
    serial = UNSTAMPED if tracking.received(kind) is None else who.serial
    state = serial, attributes, subclasses, details, _annotation_names(kind)
    return make_class, arguments, state, None, None, set_class


def fingerprint(kind: type) -> int:
    """Return a number for the attributes of a class; it changes when an attribute is replaced."""
    found = [
        (name, value if isinstance(value, (int, float, str)) else id(value))
        for name, value in vars(kind).items()
        if name not in _CACHES
    ]
    return hash(tuple(found))


#: Attributes that Python itself adds to a class; they do not count as changes.
_CACHES = frozenset(("__slotnames__", "__annotations_cache__"))


def _slots_of(own: dict[str, Any]) -> Any:
    slots = own["__slots__"]
    if isinstance(slots, (str, tuple, list, dict)):
        return slots
    # An iterator, which is used up by now.
    return tuple(name for name, value in own.items() if isinstance(value, MemberDescriptorType))


def _registered(kind: type) -> list[type]:
    """Return the classes that were registered with an abstract class."""
    if not isinstance(kind, abc.ABCMeta) or "_abc_impl" not in vars(kind):
        return []
    references = abc._get_dump(kind)[0]  # type: ignore[attr-defined]
    return [each for each in (reference() for reference in references) if each is not None]


def _annotation_names(kind: type) -> dict[str, Any]:
    """Return what the script has under the names in annotations that are texts."""
    annotations = vars(kind).get("__annotations__")
    module = sys.modules.get("__main__")
    if kind.__module__ not in MAIN_MODULES or not isinstance(annotations, dict) or module is None:
        return {}
    return values_in_annotations(annotations, vars(module))


def make_class(
    identity: tuple[str, str, bool],
    metaclass: type,
    name: str,
    bases: tuple[type, ...],
    body: dict[str, Any],
    members: enums.Cores | None,
) -> type:
    """Make a class without attributes, or return the one that this process has.

    Parameters
    ----------
    identity : tuple
        Its id, the id of the process that it is from, and whether ``__main__`` had it there.
    metaclass, name, bases, body
        As for `type`.
    members : Cores, optional
        The members of an enumeration.
    """
    who = Received(*identity)
    made: type = tracking.find(who.tracker)
    if made is None:
        made = tracking.register(build(metaclass, name, bases, body, members), who)
    note_use(made, who)
    return made


def note_use(kind: type, who: Received) -> None:
    """Record that the running task was sent a class."""
    functions.add_name(kind, who)


def build(
    metaclass: type,
    name: str,
    bases: tuple[type, ...],
    body: dict[str, Any],
    members: enums.Cores | None,
) -> type:
    """Make a class without attributes; see `make_class`."""
    body = dict(body)
    if typing.Generic in bases:
        # `Generic.__init_subclass__` requires it; the true one is set later.
        body["__orig_bases__"] = (typing.Generic[_T],)  # type: ignore[index]
    make = _maker_of(metaclass)
    hooks = _hooks_of(bases)
    try:
        with _without_hooks([each for each in hooks if not _is_library(each)]):
            made = make(name, bases, body)
    except Exception:
        # A class of a library that refuses one without attributes.
        with _without_hooks(hooks):
            made = make(name, bases, body)
    if members is not None:
        enums.add_members(made, members)
    return made


_T = typing.TypeVar("_T")


def _maker_of(metaclass: type) -> Callable[[str, tuple[type, ...], dict[str, Any]], type]:
    """Return what makes a class of a metaclass, as far as possible without the user's code."""
    is_standard = all(_is_standard(each) for each in metaclass.__mro__)
    if is_standard or not _is_library(metaclass) or issubclass(metaclass, enum.EnumMeta):
        return partial(_make_plain, metaclass)
    return partial(_make_by_library, metaclass)


def _make_plain(metaclass: type, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
    """Make a class without calling the ``__new__`` that a metaclass defines in Python."""
    plain: Any = abc.ABCMeta if issubclass(metaclass, abc.ABCMeta) else type
    try:
        made: type = plain.__new__(metaclass, name, bases, dict(body))
    except TypeError:
        # A metaclass that is written in C has its own way to make a class.
        for each in metaclass.__mro__:
            if each is not type and isinstance(vars(each).get("__new__"), BuiltinFunctionType):
                own: Any = each
                made = own.__new__(metaclass, name, bases, dict(body))
                break
        else:
            raise
    return made


def _make_by_library(
    metaclass: type, name: str, bases: tuple[type, ...], body: dict[str, Any]
) -> type:
    """Make a class as the metaclass of a library does."""
    try:
        return types.new_class(
            name, bases, {"metaclass": metaclass}, lambda space: space.update(body)
        )
    except Exception:
        return _make_plain(metaclass, name, bases, body)


def _is_library(kind: type) -> bool:
    """Return whether a class is found in a module, and not sent by value."""
    return kind.__module__ not in MAIN_MODULES and tracking.received(kind) is None


def _is_standard(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in sys.stdlib_module_names


def _hooks_of(bases: tuple[type, ...]) -> list[type]:
    """Return the classes whose ``__init_subclass__`` a new class may call."""
    above = dict.fromkeys(each for base in bases for each in base.__mro__ if each is not object)
    return [each for each in above if "__init_subclass__" in vars(each)]


@contextlib.contextmanager
def _without_hooks(kinds: list[type]) -> Iterator[None]:
    """Have this thread make a class without calling the ``__init_subclass__`` of these classes."""
    if not kinds:
        yield
        return
    thread = get_ident()

    def skipping(saved: Any) -> Any:
        def skip(made: type, /, **keywords: Any) -> Any:
            return None if get_ident() == thread else saved.__get__(None, made)(**keywords)

        return classmethod(skip)

    with _replacing:
        replaced: list[tuple[type, Any]] = []
        try:
            for kind in kinds:
                saved = vars(kind)["__init_subclass__"]
                with contextlib.suppress(TypeError):  # a class that is written in C
                    type.__setattr__(kind, "__init_subclass__", skipping(saved))
                    replaced.append((kind, saved))
            yield
        finally:
            for kind, saved in replaced:
                type.__setattr__(kind, "__init_subclass__", saved)


def set_class(kind: type, state: tuple[Any, ...]) -> None:
    """Give a loaded class the state that was sent, unless it has a later one.

    A class that is from this process stays as it is. In what is sent to a task, the state that
    the sender has given it counts, whatever other tasks were sent; else the latest one counts.
    """
    stamp, _, _, _, names = state
    who = tracking.received(kind)
    definitions = loading.current()
    if definitions is not None:
        for name, value in names.items():
            definitions.names.setdefault(name, value)
    if who is None:
        return
    is_original = isinstance(stamp, bytes)
    serial = int.from_bytes(stamp[-8:], "big") if is_original else stamp
    touched = _touched(kind, definitions)
    if is_original and touched is None and definitions is not None:
        apply = serial != who.serial
    else:
        apply = serial > (who.serial if touched is None else touched)
    if definitions is not None and is_original and (apply or touched is None):
        definitions.classes[id(kind)] = kind, serial, lambda: _give_state(kind, serial, state)
    if apply or not who.serial:
        _give_state(kind, serial, state)


def _touched(kind: type, definitions: loading.Definitions | None) -> int | None:
    """Return the serial of the state that the running task was sent a class with; None if none."""
    if definitions is None:
        return None
    scope = loading.current_scope()
    entry = definitions.classes.get(id(kind))
    if scope is not None and scope.arguments is definitions:
        # A class among the arguments of a task may also be one of the task's function.
        entry = max(
            (each for each in (entry, scope.function.classes.get(id(kind))) if each is not None),
            key=lambda each: each[1],
            default=None,
        )
    return None if entry is None else entry[1]


def serial_of(kind: type) -> int:
    """Return the serial of the state that a class has in this process."""
    who = tracking.received(kind)
    return 0 if who is None else who.serial


def _give_state(kind: type, serial: int, state: tuple[Any, ...]) -> None:
    who = tracking.received(kind)
    if who is not None:
        tracking.set_received(kind, who._replace(serial=max(serial, 1)))
    set_attributes(kind, *attributes_in(state))


def attributes_in(state: tuple[Any, ...]) -> tuple[dict[str, Any], list[type], Any]:
    """Return what `set_attributes` takes, from the state that `reduce_class` has returned."""
    _, attributes, subclasses, details, _ = state
    return attributes, subclasses, details


def set_attributes(
    kind: type, attributes: dict[str, Any], subclasses: list[type], details: Any
) -> None:
    """Set the attributes of a loaded class, and remove those that it no longer has.

    Parameters
    ----------
    kind : type
        The class.
    attributes : dict
        All its attributes.
    subclasses : list of type
        The classes that are registered with it, if it is abstract.
    details : dict, optional
        The attributes of its members, if it is an enumeration.
    """
    if details is not None:
        enums.set_details(kind, details)
    for name in (_set_attributes.get(kind) or frozenset()) - attributes.keys():
        with contextlib.suppress(AttributeError, TypeError):  # `__annotate__` cannot be deleted
            type.__delattr__(kind, name)
    for name, value in attributes.items():
        type.__setattr__(kind, name, value)
    if "__firstlineno__" in attributes:  # Python removes it when another attribute is set
        type.__setattr__(kind, "__firstlineno__", attributes["__firstlineno__"])
    _set_attributes.set(kind, frozenset(attributes))
    for each in subclasses:
        abc.ABCMeta.register(kind, each)  # type: ignore[arg-type]
