"""Turns keys and values into what is sent and kept, and back.

Does not know where that is. What is kept is a copy: whatever becomes of the object, or of what
it was made into again, nothing of it is seen there.
"""

from __future__ import annotations

import pickle
from pickle import PickleBuffer
from typing import Any

from daskbatch.errors import SerializationError
from daskbatch.serialization import pickling
from daskbatch.serialization.diagnosis import hint_on_value, kind_of
from daskbatch.serialization.exceptions import safe_str
from daskbatch.worker.execution.interrupt import Stopped

#: What is at least so large travels and rests by itself, and is not copied on the way. Bytes.
APART = 1 << 14

#: What a value is while it is kept: its pickle, or the pickle and behind it the buffers that
#: belong to it, of which each is apart.
Value = bytes | tuple[Any, ...]

#: What a value takes besides its bytes, roughly.
_OVERHEAD = 256


class UnhashableKey:
    """A key that is no plain value, pickled.

    Parameters
    ----------
    data : bytes
        The key.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return UnhashableKey, (self.data,)


def key_to_send(key: object) -> Any:
    """Make of a key what can be sent; it stays what it is if it is plain.

    Raises
    ------
    SerializationError
        It cannot be pickled.
    """
    if type(key) in pickling.PLAIN or (type(key) is tuple and pickling.are_plain(key)):
        return key
    try:
        return UnhashableKey(pickling.dumps(key))
    except Exception as error:
        raise SerializationError(f"the key {key!r} cannot be pickled: {error}") from error


def key_sent(sent: Any) -> Any:
    """Undo `key_to_send`.

    Raises
    ------
    SerializationError
        It cannot be unpickled here.
    """
    if type(sent) is not UnhashableKey:
        return sent
    try:
        return pickling.loads(sent.data)
    except (KeyboardInterrupt, Stopped):
        raise
    except BaseException as error:  # to unpickle may run anything, sys.exit() included
        raise SerializationError(
            f"a key cannot be unpickled in this process: {type(error).__name__}: {error}"
        ) from error


#: What `pack` is given where a value belongs to no key.
_NO_KEY = object()


def pack(obj: object, key: Any = _NO_KEY) -> Value:
    """Pickle a value; its large buffers are not copied, and must be sent before they change.

    Parameters
    ----------
    obj : object
        The value.
    key : object, optional
        What it belongs to, as it is sent, for messages.

    Raises
    ------
    SerializationError
        It cannot be pickled.
    """
    if type(obj) in pickling.PLAIN:
        data = pickling.dumps_plain(obj)
        return data if len(data) < APART else (PickleBuffer(data),)
    try:
        data, apart = pickling.dumps_with_buffers(obj, APART)
    except Exception as error:
        of = "" if key is _NO_KEY else f" of the key {safe_str(key_sent(key), repr)}"
        said = f"{type(error).__name__}: {safe_str(error)}{hint_on_value('value', obj, error)}"
        raise SerializationError(
            f"the value{of}, {kind_of(obj)}, cannot be pickled: {said}"
        ) from error
    if not apart and len(data) < APART:
        return data
    return PickleBuffer(data), *apart


def unpack(value: Value) -> Any:
    """Undo `pack`; what comes of it may use the buffers that were given.

    Raises
    ------
    SerializationError
        It cannot be unpickled here.
    """
    try:
        if isinstance(value, tuple):
            return pickle.loads(value[0], buffers=value[1:])
        return pickle.loads(value)
    except (KeyboardInterrupt, Stopped):
        raise
    except BaseException as error:
        raise SerializationError(
            f"a value cannot be unpickled in this process: {type(error).__name__}: {error}"
        ) from error


def size_of(value: Value) -> int:
    """Say how much memory a value takes. Bytes."""
    if isinstance(value, tuple):
        return _OVERHEAD + sum(memoryview(each).nbytes for each in value)
    return _OVERHEAD + len(value)


def to_send(value: Value) -> Value:
    """Have what is kept sent without a copy."""
    if isinstance(value, tuple):
        return tuple(map(_buffer, value))
    return value


def sendable(sent: Any) -> Any:
    """Have what was sent here be sent on, whatever it is."""
    if isinstance(sent, memoryview):
        return _buffer(sent)
    return tuple(map(sendable, sent)) if type(sent) is tuple else sent


def _buffer(kept: Any) -> PickleBuffer:
    # Not of a memoryview: in a cycle, the two of them would crash CPython's garbage collector.
    if isinstance(kept, memoryview):
        whole: Any = kept.obj
        kept = whole if memoryview(whole).nbytes == kept.nbytes else bytes(kept)
    return PickleBuffer(kept)


def copied(sent: Any) -> Any:
    """Copy what is apart in what is sent, where it does not travel but stays in this process."""
    if isinstance(sent, (PickleBuffer, memoryview)):
        with memoryview(sent) as given:
            raw = given.cast("B") if given.contiguous else memoryview(bytes(given))
            room = empty(raw.nbytes)
            room[:] = raw
            return room
    if isinstance(sent, (tuple, list)):
        return type(sent)(map(copied, sent))
    return sent


def part_of(data: memoryview, start: int, length: int) -> memoryview:
    """Give some of what there is, as something by itself."""
    if length < APART:
        return memoryview(bytes(data[start : start + length]))
    import numpy  # not at the top: a child starts faster without it

    return numpy.frombuffer(data, "u1", length, start).data


def empty(size: int) -> memoryview:
    """Give room for so many bytes, which is not cleared first: that takes as long as to fill it."""
    if size < APART:
        return memoryview(bytearray(size))
    import numpy  # not at the top: a child starts faster without it

    return numpy.empty(size, "u1").data
