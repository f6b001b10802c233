"""Turns objects into bytes and back, and finds the tasks among arguments.

This module does not know the class of tasks. An object whose ``__reduce__`` calls `reference` while
`pack` runs is replaced by a *placeholder*, a number; `unpack` fills it with a value on the other
side. The pickler itself does the search, so a task is found wherever pickle looks: in keywords,
nested containers, dataclasses, attributes. Any number of threads may call all functions.
"""

from __future__ import annotations

import io
import pickle
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from threading import get_ident
from types import FunctionType
from typing import Any

import cloudpickle

from daskbatch.errors import SerializationError
from daskbatch.serialization import by_value, namespaces, tracking
from daskbatch.serialization.buffers import Buffer, copy_buffer
from daskbatch.serialization.code_names import MAIN_MODULES
from daskbatch.serialization.safe_text import is_from_outside, summary
from daskbatch.serialization.thread_values import ThreadValues

#: The version of the pickle protocol: from 5 on there are out-of-band buffers.
PROTOCOL = 5

#: A buffer of at least this many bytes among the arguments (a NumPy array's, for example) is
#: sent once, whatever the number of tasks that take it.
MIN_SHARED_BUFFER_BYTES = 64 * 1024

#: Unpickles an object; raises whatever its classes raise.
loads = pickle.loads

#: Types whose objects are pickled in one way only, and are the same in every process.
PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})


#: What precedes the pickle that `pack_flat` returns: of the arguments, with None for each task, and
#: of the places of the tasks. No other pickle of this protocol begins so.
FLAT = b"F"

#: By type: returns the target of `reference` for an object, or None if its `__reduce__` decides.
_targets: dict[type, Callable[[Any], object]] = {}

#: The pickled arguments; the targets of `reference`, by placeholder; the large buffers.
Packed = tuple[bytes, tuple[Any, ...], tuple[Buffer, ...]]


#: By thread: what the running `pack` has found, the targets of `reference` and the large buffers.
_found = ThreadValues[tuple[list[Any], list[pickle.PickleBuffer]]]()
#: By thread: the values that `_fill` returns in the running `unpack`, by placeholder.
_placeholder_values = ThreadValues["Sequence[bytes | str | GivenValue]"]()
#: By thread: the namespace that it pickles and unpickles for.
_namespace = ThreadValues[str]()


def are_plain(values: Sequence[object]) -> bool:
    """Return whether the types of all values are in `PLAIN`: such values hold no task or buffer."""
    try:
        return PLAIN.issuperset(map(type, values))
    except Exception:  # a metaclass may define how its classes are hashed and compared
        return False


def dumps_plain(obj: object) -> bytes:
    """Pickle an object that consists of plain values."""
    return pickle.dumps(obj, PROTOCOL)


def dumps(obj: object) -> bytes:
    """Pickle an object: by reference if other processes can import it, else by value."""
    if type(obj) in PLAIN:
        return pickle.dumps(obj, PROTOCOL)
    if type(obj) is FunctionType and obj.__module__ in MAIN_MODULES:
        return _dumps_by_value(obj, None, True)  # it cannot travel by reference
    data = dumps_by_reference(obj)
    return _dumps_by_value(obj, None, True) if data is None else data


def dumps_by_reference(
    obj: object, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None
) -> bytes | None:
    """Pickle an object by reference; None if other processes could not load that."""
    # What is defined in __main__, or in a module registered with cloudpickle, does not
    # exist in other processes: it must travel by value, and plain pickle cannot do that.
    if cloudpickle.list_registry_pickle_by_value():
        return None
    try:
        data = pickle.dumps(obj, PROTOCOL, buffer_callback=buffer_callback)
    except Exception:
        return None
    return None if b"__main__" in data or b"__mp_main__" in data else data


def _dumps_by_value(
    obj: object,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None,
    repeatable: bool = False,
) -> bytes:
    # Equal lambdas are pickled equally, so that a worker loads them once.
    anonymous = None
    if type(obj) is FunctionType and "<" in obj.__qualname__ and not tracking.is_known(obj):
        anonymous = obj
    name = _namespace.get(get_ident()) if _namespace else None
    if name is None:
        return by_value.dumps(
            obj, PROTOCOL, buffer_callback, repeatable=repeatable, anonymous=anonymous
        )
    with io.BytesIO() as file:
        pickler = namespaces.Pickler(file, name, PROTOCOL, buffer_callback)
        pickler.dump(obj)
        return by_value.finish(pickler, file, repeatable)


def within(namespace: str | None) -> AbstractContextManager[None]:
    """Return a context manager in which this thread pickles and unpickles for a namespace.

    Parameters
    ----------
    namespace : str, optional
        The name of the namespace, see `daskbatch.serialization.namespaces`. With None, nothing
        changes.
    """
    return _UNCHANGED if namespace is None else _namespace.set(namespace)


#: It is entered for each task that takes a value.
_UNCHANGED = nullcontext()


def dumps_with_buffers(obj: object, min_bytes: int) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickle an object except its large buffers, which are returned and not copied.

    Parameters
    ----------
    obj : object
        Any object that can be pickled.
    min_bytes : int
        The size from which on a buffer is large.
    """
    buffers: list[pickle.PickleBuffer] = []

    def goes_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            if buffer.raw().nbytes < min_bytes:
                return True
        except BufferError:  # its memory is not contiguous
            return True
        buffers.append(buffer)
        return False

    data = dumps_by_reference(obj, goes_in_band)
    if data is None:
        buffers.clear()
        data = _dumps_by_value(obj, goes_in_band)
    return data, buffers


def loads_with_buffers(data: Any, buffers: Sequence[Any]) -> Any:
    """Undo `dumps_with_buffers`; within a namespace, load for it."""
    name = _namespace.get(get_ident()) if _namespace else None
    if name is None:
        return loads(data, buffers=buffers)
    return namespaces.loads(data, name, buffers)


def pack(obj: object) -> Packed:
    """Pickle arguments, and find the tasks and the large buffers among them.

    Raises
    ------
    SerializationError
        The object cannot be pickled; the cause is the original error.
    """
    thread = get_ident()
    # An object may call `pack` for another one while it is packed itself.
    outer = _found.get(thread)
    targets, buffers = _found[thread] = [], []
    try:
        data = dumps_by_reference(obj, _goes_in_band)
        if data is None:
            targets.clear()
            buffers.clear()
            data = _dumps_by_value(obj, _goes_in_band)
    except BaseException as error:  # pickling may run any code, even sys.exit()
        if is_from_outside(error):
            raise
        raise SerializationError(summary(error)) from error
    finally:
        if outer is None:  # not by `restore`: each task makes this call
            del _found[thread]
        else:
            _found[thread] = outer
    if not buffers:
        return data, tuple(targets), ()
    try:
        return data, tuple(targets), tuple(copy_buffer(each.raw()) for each in buffers)
    except OSError as error:
        raise SerializationError(f"there is no memory for a copy of them: {error}") from error


def is_being_imported(module: object) -> bool:
    """Return whether a module is being imported; other threads cannot pickle its functions then.

    Parameters
    ----------
    module : object
        The name of the module; anything else is no module's name.
    """
    found = sys.modules.get(module) if isinstance(module, str) else None
    spec = getattr(found, "__spec__", None)
    return getattr(spec, "_initializing", False) is True


class _NullFile:
    """A file that drops what is written to it."""

    def write(self, data: Any) -> int:
        return len(data)


def can_be_pickled(obj: object, tasks: bool = False) -> bool:
    """Return whether an object can be pickled.

    It takes as long as pickling the object, but does not keep the bytes.

    Parameters
    ----------
    obj : object
        Any object.
    tasks : bool
        Whether the object may contain tasks.
    """
    try:
        with _found.set(([], []) if tasks else None):
            by_value.Pickler(_NullFile(), PROTOCOL, lambda _: None).dump(obj)
    except BaseException as error:
        if is_from_outside(error):
            raise
        return False
    return True


def _goes_in_band(buffer: pickle.PickleBuffer) -> bool:
    if buffer.raw().nbytes < MIN_SHARED_BUFFER_BYTES:
        return True
    _found[get_ident()][1].append(buffer)
    return False


def register_target(kind: type, get_target: Callable[[Any], object]) -> None:
    """Say what `reference` gets for the objects of a type, so that `pack_flat` need not ask them.

    Parameters
    ----------
    kind : type
        The type; its subclasses are others.
    get_target : callable
        Returns the target for an object; None if its ``__reduce__`` is to be called.
    """
    _targets[kind] = get_target


def pack_flat(args: Sequence[object]) -> Packed | None:
    """Do for ``(args, {})`` what `pack` does, in a third of the time; None if that is not possible.

    It is possible if each argument is of a type in `PLAIN`, or stands for a task: then one
    placeholder is filled after the other, and the unpickler calls no function for each.
    """
    template = list(args)
    targets: list[object] = []
    #: By the position of each placeholder, its number.
    places: dict[int, int] = {}
    numbers: dict[int, int] = {}
    try:
        for position, each in enumerate(args):
            kind = type(each)
            if kind in PLAIN:
                continue
            number = numbers.get(id(each))
            if number is None:
                get_target = _targets.get(kind)
                target = None if get_target is None else get_target(each)
                if target is None:
                    return None
                number = numbers[id(each)] = len(targets)
                targets.append(target)
            template[position] = None
            places[position] = number
    except Exception:  # a metaclass may define how its classes are hashed and compared
        return None
    return FLAT + pickle.dumps((template, places), PROTOCOL), tuple(targets), ()


def _unpack_flat(data: bytes, values: Sequence[bytes | str | GivenValue]) -> Any:
    args, places = loads(memoryview(data)[len(FLAT) :])
    thread = get_ident()
    name = _namespace.get(thread) if _namespace else None
    filled = [_loaded(value, name) for value in values]
    for position, number in places.items():
        args[position] = filled[number]
    return tuple(args), {}


def reference(target: object) -> tuple[Callable[[int], Any], tuple[int]] | None:
    """Reduce an object to the next placeholder of the running `pack`.

    An object calls it in its ``__reduce__``.

    Parameters
    ----------
    target : object
        What `pack` returns for the placeholder.

    Returns
    -------
    tuple or None
        What ``__reduce__`` is to return; None if this thread runs no `pack`.
    """
    found = _found.get(get_ident())
    if found is None:
        return None
    targets = found[0]
    targets.append(target)
    return _fill, (len(targets) - 1,)


class GivenValue:
    """What fills a placeholder with an object, and not with a copy.

    Parameters
    ----------
    value : object
        The object.
    """

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value


# The pickles that `pack` returns refer to this function by its module and name.
def _fill(placeholder: int) -> Any:
    thread = get_ident()
    name = _namespace.get(thread) if _namespace else None
    return _loaded(_placeholder_values[thread][placeholder], name)


def _loaded(value: bytes | str | GivenValue, name: str | None) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, GivenValue):
        return value.value
    return loads(value) if name is None else namespaces.loads(value, name)


def unpack(
    data: bytes,
    values: Sequence[bytes | str | GivenValue] = (),
    buffers: Sequence[bytes | memoryview] = (),
    copied: bool = True,
) -> Any:
    """Undo `pack` or `pack_flat`; each placeholder becomes a new copy of its value.

    Parameters
    ----------
    data : bytes
        The bytes that they returned.
    values : sequence of bytes, str or GivenValue
        For each placeholder a pickled value; or the value itself, a text or in a `GivenValue`.
    buffers : sequence of bytes or memoryview
        The contents of the buffers that `pack` returned.
    copied : bool
        Whether to copy the buffers, so that each task may change its own. Memory that can be
        written to is the task's own already: a private mapping.
    """
    if data.startswith(FLAT):
        return _unpack_flat(data, values)
    if not values and not buffers:
        return loads(data)
    thread = get_ident()
    outer = _placeholder_values.get(thread)
    _placeholder_values[thread] = values
    try:
        return loads(data, buffers=list(map(_own_copy, buffers)) if copied else buffers)
    finally:
        _placeholder_values.restore(thread, outer)


def _own_copy(content: bytes | memoryview) -> bytearray | memoryview:
    if isinstance(content, memoryview) and not content.readonly:
        return content
    return bytearray(content)
