"""Encodes keys and packs values, for the network and for memory, and does the reverse.

A packed value is a copy: later changes of the object that was packed, or of one that was unpacked,
do not affect it. All functions may be called by any thread.
"""

from __future__ import annotations

import pickle
from pickle import PickleBuffer
from typing import Any, TypeAlias

from daskbatch.errors import SerializationError
from daskbatch.memory.shared_buffer import SharedBuffer, share_buffer
from daskbatch.serialization import pickling
from daskbatch.serialization.diagnosis import hint_on_value, kind_of
from daskbatch.serialization.safe_text import is_from_outside, safe_repr, summary

#: A buffer of at least this size is sent and kept apart from the pickle, so that it is not copied.
MIN_BUFFER_BYTES = 1 << 14

#: A packed value: its pickle, or a tuple of its pickle and the out-of-band buffers.
Value: TypeAlias = bytes | tuple[Any, ...]

#: Roughly how much memory a value takes in addition to its bytes.
_OVERHEAD_BYTES = 256


class PickledKey:
    """A key that is sent as a pickle, since it is not a plain value.

    Parameters
    ----------
    data : bytes
        The pickle.
    """

    __slots__ = ("data",)

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __reduce__(self) -> tuple[Any, ...]:
        return PickledKey, (self.data,)


def encode_key(key: object) -> Any:
    """Encode a key for a request: a plain key is sent unchanged, any other as a pickle.

    Raises
    ------
    SerializationError
        The key cannot be pickled.
    """
    if type(key) in pickling.PLAIN or (type(key) is tuple and pickling.are_plain(key)):
        return key
    try:
        return PickledKey(pickling.dumps(key))
    except BaseException as error:  # pickling may run any code, sys.exit() included
        if is_from_outside(error):
            raise
        raise SerializationError(
            f"the key {safe_repr(key)} cannot be pickled: {summary(error)}"
        ) from error


def decode_key(encoded: Any) -> Any:
    """Undo `encode_key`.

    Raises
    ------
    SerializationError
        The key cannot be unpickled in this process.
    """
    if type(encoded) is not PickledKey:
        return encoded
    try:
        return pickling.loads(encoded.data)
    except BaseException as error:  # unpickling may run any code, sys.exit() included
        if is_from_outside(error):
            raise
        raise SerializationError(
            f"a key cannot be unpickled in this process: {summary(error)}"
        ) from error


#: For `pack`: the value belongs to no key.
_NO_KEY = object()


def pack(obj: object, key: Any = _NO_KEY) -> Value:
    """Pickle a value. Buffers from 256 KiB on are copied to memory that the host's processes map.

    Smaller ones are not copied: the caller sends them before they change.

    Parameters
    ----------
    obj : object
        The value.
    key : object, optional
        Its encoded key, for messages.

    Raises
    ------
    SerializationError
        The value cannot be pickled.
    """
    if type(obj) in pickling.PLAIN:
        data = pickling.dumps_plain(obj)
        return data if len(data) < MIN_BUFFER_BYTES else (_shared(PickleBuffer(data)),)
    try:
        data, buffers = pickling.dumps_with_buffers(obj, MIN_BUFFER_BYTES)
    except BaseException as error:  # pickling may run any code, sys.exit() included
        if is_from_outside(error):
            raise
        of = "" if key is _NO_KEY else f" of the key {safe_repr(decode_key(key))}"
        reason = f"{summary(error)}{hint_on_value('value', obj, error)}"
        raise SerializationError(
            f"the value{of}, {kind_of(obj)}, cannot be pickled: {reason}"
        ) from error
    if not buffers and len(data) < MIN_BUFFER_BYTES:
        return data
    return tuple(map(_shared, (PickleBuffer(data), *buffers)))


def _shared(buffer: PickleBuffer) -> PickleBuffer | SharedBuffer:
    """Return a large buffer as one in memory that other processes map."""
    try:
        return share_buffer(buffer.raw()) or buffer
    except OSError as error:
        raise SerializationError(f"there is no memory for a copy of the value: {error}") from error


def unpack(value: Value) -> Any:
    """Undo `pack`; the object may use the buffers of the value.

    Raises
    ------
    SerializationError
        The value cannot be unpickled in this process.
    """
    try:
        if isinstance(value, tuple):
            data, *buffers = map(content_of, value)
            return pickle.loads(data, buffers=buffers)
        return pickle.loads(value)
    except BaseException as error:
        if is_from_outside(error):
            raise
        raise SerializationError(
            f"a value cannot be unpickled in this process: {summary(error)}"
        ) from error


def size_of(value: Value) -> int:
    """Return roughly how many bytes of memory a value takes."""
    if isinstance(value, tuple):
        return _OVERHEAD_BYTES + sum(map(_bytes_of, value))
    return _OVERHEAD_BYTES + len(value)


def _bytes_of(buffer: Any) -> int:
    return buffer.nbytes if isinstance(buffer, SharedBuffer) else memoryview(buffer).nbytes


def content_of(buffer: Any) -> Any:
    """Return the content of a buffer: of one in shared memory, a mapping for the caller alone."""
    return buffer.mapped() if isinstance(buffer, SharedBuffer) else buffer


def has_shared_buffer(message: Any) -> bool:
    """Return whether a message, or a part of it, is a buffer in shared memory."""
    if isinstance(message, (tuple, list)):
        return any(map(has_shared_buffer, message))
    return isinstance(message, SharedBuffer)


def prepare_to_send(value: Value) -> Value:
    """Return a kept value in the form in which it is sent without a copy."""
    if isinstance(value, tuple):
        return tuple(map(_as_pickle_buffer, value))
    return value


def prepare_to_resend(received: Any) -> Any:
    """Return a received message, or a part of one, in the form in which it can be sent again."""
    if isinstance(received, memoryview):
        return _as_pickle_buffer(received)
    return tuple(map(prepare_to_resend, received)) if type(received) is tuple else received


def _as_pickle_buffer(kept: Any) -> PickleBuffer | SharedBuffer:
    if isinstance(kept, SharedBuffer):
        return kept
    # Not a `PickleBuffer` of a memoryview: if the two are part of a reference cycle, CPython's
    # garbage collector crashes.
    if isinstance(kept, memoryview):
        whole: Any = kept.obj
        kept = whole if memoryview(whole).nbytes == kept.nbytes else bytes(kept)
    return PickleBuffer(kept)


def copy_buffers(message: Any) -> Any:
    """Return a message with copies of its buffers, for one that stays in this process."""
    if isinstance(message, (PickleBuffer, memoryview)):
        with memoryview(message) as view:
            raw = view.cast("B") if view.contiguous else memoryview(bytes(view))
            copy = allocate(raw.nbytes)
            copy[:] = raw
            return copy
    if isinstance(message, (tuple, list)):
        return type(message)(map(copy_buffers, message))
    return message


def independent_part(data: memoryview, start: int, length: int) -> memoryview:
    """Return a part of a buffer as a buffer that does not refer to the memoryview of the whole.

    A large part shares the memory with the whole; a small one is a copy.
    """
    if length < MIN_BUFFER_BYTES:
        return memoryview(bytes(data[start : start + length]))
    import numpy  # not at the top: a child starts faster without it

    return numpy.frombuffer(data, "u1", length, start).data


def allocate(size: int) -> memoryview:
    """Return a buffer of `size` bytes with undefined contents: clearing it takes time."""
    if size < MIN_BUFFER_BYTES:
        return memoryview(bytearray(size))
    import numpy  # not at the top: a child starts faster without it

    return numpy.empty(size, "u1").data
