"""Pickles by value what other processes cannot import, as cloudpickle does and beyond that.

What a script defines keeps its identity: see `functions`, `classes`, `enums` and `named_objects`,
which say how each kind of definition is sent. And code keeps the name of its source file: from
version 3.1.3 on, cloudpickle writes ``<dynamic-code>`` in place of the file name of every code
object, and then a traceback on a worker cannot show the lines of the user's script. Where a worker
cannot read that file, the source lines travel as well (`sources`).

Any number of threads may use this module, each with its own `Pickler`.
"""

from __future__ import annotations

import copyreg
import hashlib
import io
import pickle
import time
from collections import OrderedDict
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import cloudpickle
from cloudpickle import cloudpickle as _cloudpickle

from daskbatch.forking import make_lock
from daskbatch.serialization import (
    classes,
    deferred_annotations,
    enums,
    functions,
    lazy_types,
    named_objects,
    python_code,
    sources,
    tracking,
)
from daskbatch.serialization.code_names import MAIN_MODULES
from daskbatch.serialization.sources import make_code, source_of

_reduce_without_file: Callable[[CodeType], Any] = cloudpickle.Pickler.dispatch_table[CodeType]


def _find_file_name_position() -> int | None:
    """Return the position of the argument that cloudpickle replaces by ``<dynamic-code>``."""
    _, arguments, *_ = _reduce_without_file(compile("", "<a file>", "exec"))
    return arguments.index("<dynamic-code>") if "<dynamic-code>" in arguments else None


#: The position of the file name among the arguments of a reduced code object; None if cloudpickle
#: keeps the file name, as up to 3.1.2.
_FILE_NAME_POSITION = _find_file_name_position()


#: By code object: what it is reduced to. It never changes, and to reduce it takes longer than to
#: pickle what it is reduced to.
_reduced_code: tracking.WeakTable[tuple[Any, ...]] = tracking.WeakTable()


def _reduce_code(code: CodeType) -> tuple[Any, ...]:
    found = _reduced_code.get(code)
    if found is None:
        found = _reduce_code_anew(code)
        _reduced_code.set(code, found)
    return found


def _reduce_code_anew(code: CodeType) -> tuple[Any, ...]:
    _, arguments, *more = _reduce_without_file(code)
    make = python_code.make_code
    if _FILE_NAME_POSITION is not None:
        before, after = arguments[:_FILE_NAME_POSITION], arguments[_FILE_NAME_POSITION + 1 :]
        arguments = (*before, code.co_filename, *after)
    source = source_of(code)
    if source is None:
        return make, arguments, *more
    return make_code, (make, arguments, *source), *more


class _Reducers(dict[type, Callable[[Any], Any]]):
    """Reducers by type; those that are registered with `copyreg` stand behind the others.

    It does what a `ChainMap` does, in a fraction of the time: that is the larger part of the time
    to pickle a small object.
    """

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        return copyreg.dispatch_table[kind]


def _make_reducers() -> _Reducers:
    own, *_ = cloudpickle.Pickler.dispatch_table.maps
    found = _Reducers({**own, **named_objects.REDUCERS, **deferred_annotations.REDUCERS})
    found[CodeType] = _reduce_code
    return found


class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles by value what other processes cannot import; see `pickle.Pickler`.

    Reducers that are registered with `copyreg` are used; reducers that are added to cloudpickle's
    own table after the import of this module are not.

    Parameters
    ----------
    file, protocol, buffer_callback
        See `pickle.Pickler`.
    anonymous : function, optional
        A function that gets no id, so that equal functions make equal pickles.
    finds_by_name : bool
        Whether functions that use `pickle` find by name the classes that they do not refer to.
    """

    dispatch_table = _make_reducers()

    def __init__(
        self,
        file: Any,
        protocol: int,
        buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
        anonymous: object = None,
        finds_by_name: bool = True,
    ) -> None:
        super().__init__(file, protocol, buffer_callback)
        self._anonymous = anonymous
        self._finds_by_name = finds_by_name
        #: Whether a class of this process was pickled, so that the pickle needs a serial.
        self.needs_serial = False
        #: The ids of classes whose objects are pickled as `pickle` does it.
        self._ordinary: set[int] = set()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is FunctionType:
            if id(obj) in _OWN_FUNCTIONS:
                return NotImplemented
            if named_objects.is_dispatcher(obj) and not named_objects.is_importable(obj):
                return named_objects.reduce_dispatcher(obj)
            if named_objects.is_importable(obj):
                return NotImplemented
            pickle_class = _pickle_class if self._finds_by_name else None
            anonymous = obj is self._anonymous
            return functions.reduce_function(obj, self.globals_ref, anonymous, pickle_class)
        if id(kind) in self._ordinary:
            return NotImplemented
        if kind is type or issubclass(kind, type):
            return self._reduce_class(obj)
        if enums.is_member(obj):
            return self._reduce_member(obj, kind)
        if kind.__module__ in MAIN_MODULES and _reduces_itself(kind):
            return named_objects.reduce_by_own_method(obj, self.proto)
        self._ordinary.add(id(kind))
        return NotImplemented

    def _reduce_class(self, obj: type) -> Any:
        if id(obj) in _SIMPLE_CLASSES:
            return _cloudpickle._class_reduce(obj)
        if named_objects.is_importable(obj):
            return NotImplemented
        if tracking.received(obj) is None:
            self.needs_serial = True
        return classes.reduce_class(obj)

    def _reduce_member(self, member: Any, kind: type) -> Any:
        if named_objects.is_importable(kind):
            return NotImplemented
        name = enums.member_name(member)
        if name is not None:
            return enums.find_member, (kind, name)
        return enums.find_combination, (kind, member._value_)


#: By id: classes of the interpreter that are not found by their names. By id, since a metaclass
#: may define ``__eq__`` and ``__hash__``.
_SIMPLE_CLASSES: dict[int, type] = {
    id(each): each
    for each in (
        *_cloudpickle._BUILTIN_TYPE_NAMES,
        *(type(None), type(Ellipsis), type(NotImplemented)),
    )
}


#: The ids of functions of daskbatch that pickles refer to: each process can import them.
_OWN_FUNCTIONS = frozenset(
    id(each)
    for module in (
        *(classes, deferred_annotations, enums, functions),
        *(lazy_types, named_objects, python_code, sources),
    )
    for each in vars(module).values()
    if type(each) is FunctionType and each.__module__ == module.__name__
)


def _reduces_itself(kind: type) -> bool:
    """Return whether a class of the script says how its objects are pickled."""
    if kind in copyreg.dispatch_table:
        return False
    for each in kind.__mro__:
        if "__reduce__" in vars(each) or "__reduce_ex__" in vars(each):
            return each.__module__ in MAIN_MODULES
    return False


def dumps(
    obj: object,
    protocol: int,
    buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None,
    *,
    repeatable: bool = True,
    anonymous: object = None,
) -> bytes:
    """Pickle an object by value where necessary; see `pickle.dumps`.

    Parameters
    ----------
    obj, protocol, buffer_callback
        See `pickle.dumps`.
    repeatable : bool
        Whether equal objects make equal pickles, as far as possible.
    anonymous : function, optional
        See `Pickler`.
    """
    with io.BytesIO() as file:
        pickler = Pickler(file, protocol, buffer_callback, anonymous)
        pickler.dump(obj)
        return finish(pickler, file, repeatable)


#: The pickle of a class, and what it depends on: pickling a class takes some time.
_pickled: tracking.WeakTable[tuple[int, bytes]] = tracking.WeakTable()


def _pickle_class(kind: type) -> bytes | None:
    """Pickle a class that a function may find by name; None if it cannot be pickled."""
    version = classes.fingerprint(kind)
    found = _pickled.get(kind)
    if found is not None and found[0] == version:
        return found[1]
    try:
        with io.BytesIO() as file:
            pickler = Pickler(file, pickle.HIGHEST_PROTOCOL, finds_by_name=False)
            pickler.dump(kind)
            data = finish(pickler, file, True)
    except Exception:
        return None
    _pickled.set(kind, (version, data))
    return data


#: Pickles up to this size are equal if they are made of equal objects.
_MAX_REPEATABLE_BYTES = 1 << 20
#: The size of the number at the end of what stands for a serial.
_SERIAL_BYTES = 8
#: How many pickles are remembered for that.
_MAX_REMEMBERED = 1024

#: By the digest of a pickle with classes: the serial that it was sent with.
_serials: OrderedDict[bytes, int] = OrderedDict()
_remembering = make_lock()


def finish(pickler: Pickler, file: io.BytesIO, repeatable: bool) -> bytes:
    """Return a pickle, with a serial if it needs one.

    Parameters
    ----------
    pickler : Pickler
        The pickler that has made it.
    file : BytesIO
        Its content.
    repeatable : bool
        See `dumps`.
    """
    data = file.getvalue()
    if not pickler.needs_serial:
        return data
    position = data.find(classes.UNSTAMPED) + len(classes.UNSTAMPED) - _SERIAL_BYTES
    if repeatable and len(data) <= _MAX_REPEATABLE_BYTES:
        digest = hashlib.blake2b(data, digest_size=16).digest()
        with _remembering:
            serial = _serials.get(digest)
            if serial is None:
                serial = _serials[digest] = _next_serial()
                if len(_serials) > _MAX_REMEMBERED:
                    _serials.popitem(last=False)
            else:
                _serials.move_to_end(digest)
    else:
        serial = _next_serial()
    del data  # else the file would have to copy it
    with file.getbuffer() as view:
        view[position : position + _SERIAL_BYTES] = serial.to_bytes(_SERIAL_BYTES, "big")
    return file.getvalue()


_last = 0


def _next_serial() -> int:
    """Return a number that is larger than all before, also than those of a parent process."""
    global _last
    _last = max(_last + 1, time.time_ns())
    return _last
