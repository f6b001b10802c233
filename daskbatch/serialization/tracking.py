"""Identifies definitions that travel by value: functions, classes, type variables and the like.

Each definition gets an id in the process that makes it. The id travels with it, so that a
definition that returns to its process is found there, and is not made a second time. A process
that receives a definition remembers the id, and sends it on with it.

Classes share the ids of cloudpickle, since Dask sends classes by cloudpickle as well: the same
class is one class in each process, in whichever way it has come. Any number of threads may use
this module.
"""

from __future__ import annotations

import contextlib
import itertools
import uuid
import weakref
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from cloudpickle import cloudpickle as _cloudpickle

from daskbatch.forking import after_fork, make_lock

T = TypeVar("T")

#: cloudpickle's own registers of classes: by the id that it sends, and the reverse.
_CLASS_BY_TRACKER = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_ID
_TRACKER_BY_CLASS = _cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS


class WeakTable(Generic[T]):
    """Maps objects, by identity, to values, and keeps no object alive. Any thread may use it.

    `weakref.WeakKeyDictionary` calls ``__hash__`` and ``__eq__``, which a metaclass may define.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Any], T]] = {}

    def get(self, obj: object) -> T | None:
        """Return the value of an object; None if it has none."""
        entry = self._entries.get(id(obj))
        return entry[1] if entry is not None and entry[0]() is obj else None

    def set(self, obj: object, value: T) -> None:
        """Set the value of an object; an object without weak references gets none."""
        number, entries = id(obj), self._entries

        def drop(reference: weakref.ref[Any]) -> None:
            entry = entries.get(number)
            if entry is not None and entry[0] is reference:
                entries.pop(number, None)

        with contextlib.suppress(TypeError):
            entries[number] = weakref.ref(obj, drop), value


class Received(NamedTuple):
    """What this process knows of a definition that another process has sent.

    Parameters
    ----------
    tracker : str
        The id of the definition.
    origin : str
        The process that it is from.
    bound : bool
        Whether the script's ``__main__`` had it under its name.
    serial : int
        The number of the state that the definition has here; a later state has a larger number.
        0 if it has none yet.
    """

    tracker: str
    origin: str
    bound: bool
    serial: int = 0


#: The ids of definitions that are from this process, or from its parent before it was forked.
_tracker_of: WeakTable[str] = WeakTable()
#: Definitions by id: those of this process, and received ones that are the same for all tasks.
_by_tracker: weakref.WeakValueDictionary[str, Any] = weakref.WeakValueDictionary()
#: The definitions that this process has received.
_received: WeakTable[Received] = WeakTable()

#: The id of this process in other processes' `Received`; a forked child has another one.
_origin = uuid.uuid4().hex
_numbers = itertools.count()
#: Whether this process has sent what its ``__main__`` defines.
_sends_script = False


#: Held while a received definition is registered.
_registering = make_lock()


@after_fork
def _renew_origin() -> None:
    global _origin
    _origin = uuid.uuid4().hex


def received(obj: object) -> Received | None:
    """Return what is known of a received definition; None if it is from this process."""
    return _received.get(obj)


def is_known(obj: object) -> bool:
    """Return whether a definition has an id."""
    return _received.get(obj) is not None or _tracker_of.get(obj) is not None


def set_received(obj: object, record: Received) -> None:
    """Record that a definition was received."""
    _received.set(obj, record)


def identify(obj: object, is_bound: Callable[[], bool]) -> Received:
    """Return a definition's id and origin; a definition without id gets one.

    Parameters
    ----------
    obj : object
        The definition.
    is_bound : callable
        Finds out whether this process's ``__main__`` has a definition of this process under its
        name.
    """
    record = _received.get(obj)
    if record is not None:
        return record
    global _sends_script
    tracker = _tracker_of.get(obj)
    if tracker is None:
        tracker = _new_tracker(obj)
        _tracker_of.set(obj, tracker)
        with contextlib.suppress(TypeError):
            _by_tracker[tracker] = obj
    bound = is_bound()
    _sends_script = _sends_script or bound
    return Received(tracker, _origin, bound)


def sends_script() -> bool:
    """Return whether this process has sent what its ``__main__`` defines: it is a script."""
    return _sends_script


def _new_tracker(obj: object) -> str:
    if isinstance(obj, type):
        # A metaclass may have defined an `__eq__` or a `__hash__` that fails.
        with contextlib.suppress(Exception):
            found: str = _cloudpickle._get_or_create_tracker_id(obj)
            if _CLASS_BY_TRACKER.get(found) is obj:
                return found
    return f"{_origin}-{next(_numbers)}"


def find(tracker: str) -> Any:
    """Return the definition with an id, if this process has it for all tasks; else None."""
    found = _by_tracker.get(tracker)
    return _CLASS_BY_TRACKER.get(tracker) if found is None else found


def find_original(tracker: str) -> Any:
    """Return the definition with an id if it is from this process; else None."""
    found = _by_tracker.get(tracker)
    return found if found is not None and _received.get(found) is None else None


def register(obj: Any, record: Received) -> Any:
    """Record a received definition that is the same for all tasks of this process.

    Returns
    -------
    object
        The definition; another one if a thread has registered that in the meantime.
    """
    with _registering:
        found = _by_tracker.setdefault(record.tracker, obj)
        if found is not obj:
            return found
        _received.set(obj, record)
    if isinstance(obj, type):
        with contextlib.suppress(Exception):
            other = _CLASS_BY_TRACKER.setdefault(record.tracker, obj)
            _TRACKER_BY_CLASS[other] = record.tracker
    return obj
