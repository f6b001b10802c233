"""Values of tasks in memory that all processes of the host map: as a pickle that refers to it.

A large value consists of a small pickle, and of the buffers that its objects gave pickle out of
band (protocol 5), in one range of a memory file. A `StoredValue` is a pickle that refers to these.
So each function that unpickles a value loads it, and does not need to know about this package: the
objects are made on top of a private mapping of the range. Any number of threads may call.
"""

from __future__ import annotations

import mmap
import os
import pickle
from collections.abc import Sequence
from typing import Any

from daskbatch.memory import array_ranges, kept_mappings, segment
from daskbatch.memory.arena import set_spare_limit
from daskbatch.memory.segment import Reference, Segment, ValueGone
from daskbatch.memory.shared_buffer import pickles_references
from daskbatch.serialization import pickling, plain_containers
from daskbatch.serialization.buffers import Buffer

#: A pickle up to this size is a part of the reference to its buffers; a larger one is the first
#: of the buffers.
_MAX_INNER_BYTES = 4096

#: The pickle of any buffer, without the buffer. It was one that can be written to: else the buffer
#: would be loaded as a read-only one, and each task would have to copy it.
_BUFFER_PICKLE = pickle.dumps(pickle.PickleBuffer(bytearray()), 5, buffer_callback=lambda _: None)

#: What each `StoredValue` begins with: it calls `load_stored`. Old opcodes, since these have no
#: frames, whose sizes would differ.
_PREFIX = b"\x80\x04cdaskbatch.serialization.stored_value\nload_stored\n"
_SUFFIX = b"R."

#: The pickle, unless it is the first buffer; the sizes of the buffers; where they are.
_Parts = tuple[bytes | None, tuple[int, ...], Reference]


#: How much memory the stored values of one block may take: Dask moves and spills a block's values
#: together.
_DEFAULT_BLOCK_BYTES = 1 << 30

#: How many blocks with so many values fit in the memory of a worker.
_BLOCKS_IN_MEMORY = 10

#: The part of a worker's memory that may be spare: memory of dropped values, kept for new ones.
_SPARE_PART = 5

#: The part of a worker's memory of which unused mappings are kept, and the part that the worker may
#: use while any is kept: Dask pauses and ends workers whose resident memory is near the limit.
_KEPT_MAPPINGS_PART, _RESIDENT_PART = 4, 2

_block_bytes = _DEFAULT_BLOCK_BYTES


def block_limit() -> int:
    """Return the most memory that the stored values of one block may take. Bytes."""
    return _block_bytes


def set_memory_limit(limit: int | None) -> None:
    """Derive limits of stored values from the memory limit of this worker; None if it has none."""
    global _block_bytes
    if limit:
        _block_bytes = min(_DEFAULT_BLOCK_BYTES, limit // _BLOCKS_IN_MEMORY)
        set_spare_limit(limit // _SPARE_PART)
        kept_mappings.set_limits(limit // _KEPT_MAPPINGS_PART, limit // _RESIDENT_PART)


class StoredValue(bytes):
    """A pickle that refers to the buffers of its objects. Any thread may use it.

    The buffers exist as long as this object does. Where it is pickled, it carries the buffers;
    within `by_reference` it does not, and the process that unpickles it holds the buffers, too.

    Attributes
    ----------
    segment : Segment, optional
        The buffers; None if they were gone when this process received the reference.
    was_closed : bool
        Whether it was made of plain containers of which only the outermost one was referred to from
        outside, if at all.
    """

    segment: Segment | None = None
    was_closed = False

    @property
    def stored_bytes(self) -> int:
        """How much memory the buffers take that this process accounts for."""
        held = self.segment
        return held.length if held is not None and held.made_here else 0

    def __sizeof__(self) -> int:
        return bytes.__sizeof__(self) + self.stored_bytes

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Also a value of another host that this process passes on, and has not received itself.
        if pickles_references() or self.segment is None:
            return adopt, (bytes(self),)
        inner, sizes, reference = _parts(self)
        buffers = segment.cut(segment.attach(reference), sizes)
        if protocol >= 5:
            return restore, (inner, [pickle.PickleBuffer(each) for each in buffers])
        return restore, (inner, [bytes(each) for each in buffers])


def _compose(parts: _Parts) -> bytes:
    inner, sizes, reference = parts
    return _PREFIX + pickle.dumps((inner, sizes, tuple(reference)), 4)[:-1] + _SUFFIX


def _parts(data: bytes) -> _Parts:
    body = data[len(_PREFIX) : -len(_SUFFIX)] + b"."
    inner, sizes, reference = pickle.loads(body)
    return inner, sizes, Reference(*reference)


def is_stored(data: bytes | None) -> bool:
    """Return whether a pickle is that of a `StoredValue`."""
    return data is not None and data.startswith(_PREFIX)


def dumps(value: object, limit: int) -> bytes:
    """Pickle a value; if that takes more than `limit` bytes, store them once for all processes.

    Returns
    -------
    bytes
        The pickle, or a `StoredValue`.

    Raises
    ------
    Exception
        What pickling the value raises; `OSError` if there is no memory.
    """
    if type(value) in pickling.PLAIN:
        data = pickling.dumps_plain(value)
        buffers: list[pickle.PickleBuffer] = []
    elif (plain := plain_containers.dumps(value)) is not None:
        stored = _store(plain_containers.PICKLE, [plain.content])
        if type(stored) is StoredValue:
            stored.was_closed = plain.closed
        return stored
    else:
        data, buffers = pickling.dumps_with_buffers(
            value, min(limit, pickling.MIN_SHARED_BUFFER_BYTES)
        )
    if not buffers and len(data) <= limit:
        return data
    return _store(data, [each.raw() for each in buffers])


def _store(inner: bytes | None, buffers: Sequence[Any]) -> bytes:
    """Store a pickle with its buffers; without a pickle, the first buffer is that."""
    if inner is not None and len(inner) > _MAX_INNER_BYTES:
        buffers, inner = [inner, *buffers], None
    sizes = tuple(memoryview(each).nbytes for each in buffers)
    stored = segment.store(buffers, sizes)
    if stored is None:
        return _carried(inner, buffers)
    return _refer(inner, sizes, stored)


def refer_to_range(inner: bytes, size: int, address: int) -> StoredValue | None:
    """Make a value of a pickle, and of the only buffer of its objects where that is.

    Parameters
    ----------
    inner : bytes
        The pickle.
    size : int
        The size of the buffer in bytes.
    address : int
        Where it begins: a range of `array_ranges` that can be stored.

    Returns
    -------
    StoredValue or None
        None if the pickle is large.

    Raises
    ------
    OSError
        The range cannot be written to.
    """
    if len(inner) > _MAX_INNER_BYTES:
        return None
    return _refer(inner, (size,), array_ranges.store_range(address))


def _refer(inner: bytes | None, sizes: tuple[int, ...], stored: Segment) -> StoredValue:
    value = StoredValue(_compose((inner, sizes, stored.reference)))
    value.segment = stored
    return value


def _carried(inner: bytes | None, buffers: Sequence[Any]) -> bytes:
    """Return one pickle that contains the buffers, where there is no memory to share."""
    if inner is None:
        inner, *buffers = buffers
        inner = bytes(inner)
    if not buffers:
        return inner
    return pickle.dumps(_Carried(inner, [bytes(each) for each in buffers]), pickling.PROTOCOL)


class _Carried:
    """Pickled as a call of `load_carried`."""

    def __init__(self, inner: bytes, buffers: list[bytes]) -> None:
        self._parts = inner, buffers

    def __reduce__(self) -> tuple[Any, ...]:
        return load_carried, self._parts


def load_carried(inner: bytes, buffers: Sequence[bytes]) -> Any:
    """Load a value whose buffers its pickle contains."""
    return pickling.loads_with_buffers(inner, [bytearray(each) for each in buffers])


def load_stored(inner: bytes | None, sizes: Sequence[int], reference: tuple[Any, ...]) -> Any:
    """Make the objects of a stored value, on top of a private mapping of its buffers.

    Raises
    ------
    ValueGone
        The buffers are gone.
    """
    where = Reference(*reference)
    if len(sizes) == 1 and (inner is None or inner == plain_containers.PICKLE):
        return _load_alone(where, sizes[0], inner)
    buffers = segment.cut(segment.attach(where), sizes)
    if inner is None:
        return pickling.loads_with_buffers(buffers[0], buffers[1:])
    return pickling.loads_with_buffers(inner, buffers)


def _load_alone(reference: Reference, size: int, inner: bytes | None) -> Any:
    """Load objects without buffers of their own: nothing refers to the memory afterwards."""
    file = segment.open_range(reference)
    try:
        with (
            mmap.mmap(
                *(file, reference.length, mmap.MAP_PRIVATE, mmap.PROT_READ), offset=reference.offset
            ) as memory,
            memoryview(memory) as whole,
            segment.cut(whole, [size])[0] as data,
        ):
            if inner is None:
                return pickling.loads_with_buffers(data, ())
            return pickle.loads(inner, buffers=[data])
    finally:
        os.close(file)


def held_bytes(value: object) -> int:
    """Return how much memory a value holds that all processes of the host can map."""
    held = value.segment if type(value) is StoredValue else None
    return 0 if held is None else held.length


def buffer_value(buffer: Buffer) -> StoredValue | None:
    """Return a large buffer among arguments as a value; None if no memory is shared here."""
    if buffer.segment is None:
        return None
    return _refer(_BUFFER_PICKLE, (buffer.size,), buffer.segment)


def carried(data: bytes) -> bytes:
    """Return the pickle of a value with its buffers in it, for a process of another host.

    Raises
    ------
    ValueGone
        The buffers are gone.
    """
    if not is_stored(data):
        return data
    inner, sizes, reference = _parts(data)
    return _carried(inner, segment.cut(segment.attach(reference), sizes))


def restore(inner: bytes | None, buffers: Sequence[Any]) -> bytes:
    """Store a value that has arrived with its buffers from another host, or from disk."""
    return _store(inner, buffers)


def adopt(data: bytes, made_here: bool = False) -> StoredValue:
    """Hold the buffers of a value that another process of the host has stored.

    Parameters
    ----------
    data : bytes
        The bytes of a `StoredValue`.
    made_here : bool
        Whether this process accounts for the memory.

    Returns
    -------
    StoredValue
        It has no segment if the buffers are gone, or are on another host.
    """
    inner, sizes, reference = _parts(data)
    try:
        held = segment.adopt(reference, made_here)
    except ValueGone:
        return StoredValue(data)
    # Others find it in this process from now on: the one that made it may end.
    return _refer(inner, sizes, held)


def erase_orphans() -> None:
    """Free what workers that have ended had stored, and no process holds."""
    segment.erase_orphans()
