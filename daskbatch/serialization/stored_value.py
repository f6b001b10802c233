"""Values of tasks in memory that all processes of the host map: as a pickle that refers to it.

A large value consists of a small pickle, and of the buffers that its objects gave pickle out of
band (protocol 5), in one range of a memory file. A `StoredValue` is a pickle that refers to these.
So each function that unpickles a value loads it, and does not need to know about this package: the
objects are made on top of a private mapping of the range. Any number of threads may call.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
from collections.abc import Sequence
from typing import Any, NamedTuple

from daskbatch.memory import array_ranges, kept_mappings, segment
from daskbatch.memory.arena import set_spare_limit
from daskbatch.memory.segment import Reference, Segment, ValueGone
from daskbatch.memory.shared_buffer import pickles_references
from daskbatch.serialization import arrays_in_place, pickling, plain_containers
from daskbatch.serialization.arrays_in_place import ArrayInPlace
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

#: A buffer that has a range of its own: its position among all buffers, its size, and where it is.
_Placed = tuple[int, int, Reference]

#: The pickle, unless it is the first buffer; the sizes of the buffers in the first range, and where
#: that is; the other buffers, in the order of their positions.
_Parts = tuple[bytes | None, tuple[int, ...], Reference, tuple[_Placed, ...]]


#: From this size on, plain containers take more than ten milliseconds to free.
_MIN_SLOW_BYTES = 8 << 20

#: How much memory the stored values of one block may take: Dask moves and spills a block's values
#: together.
_DEFAULT_BLOCK_BYTES = 1 << 30

#: How many blocks with so many values fit in the memory of a worker.
_BLOCKS_IN_MEMORY = 10

#: The part of a worker's memory that may be spare: memory of dropped values, kept for new ones.
_SPARE_PART = 5

#: The part of a worker's memory of which unused mappings are kept, and the part that the worker may
#: use while any is kept: Dask pauses and ends workers whose resident memory is near the limit.
_KEPT_MAPPINGS_PART, _RESIDENT_PART = 2.5, 2

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
        kept_mappings.set_limits(int(limit / _KEPT_MAPPINGS_PART), limit // _RESIDENT_PART)


class StoredValue(bytes):
    """A pickle that refers to the buffers of its objects. Any thread may use it.

    The buffers exist as long as this object does. Where it is pickled, it carries the buffers;
    within `by_reference` it does not, and the process that unpickles it holds the buffers, too.

    Attributes
    ----------
    segment : Segment, optional
        The first range; None if any was gone when this process received the reference.
    others : tuple of Segment
        The ranges of arrays that were stored where they were made.
    was_closed : bool
        Whether it was made of plain containers of which only the outermost one was referred to from
        outside, if at all.
    """

    segment: Segment | None = None
    others: tuple[Segment, ...] = ()
    was_closed = False

    @property
    def stored_bytes(self) -> int:
        """How much memory the buffers take that this process accounts for."""
        held = self.segment
        return self.held_bytes if held is not None and held.made_here else 0

    @property
    def held_bytes(self) -> int:
        """How much memory the buffers take."""
        held = self.segment
        return 0 if held is None else held.length + sum(each.length for each in self.others)

    def __sizeof__(self) -> int:
        return bytes.__sizeof__(self) + self.stored_bytes

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # Also a value of another host that this process passes on, and has not received itself.
        if pickles_references() or self.segment is None:
            return adopt, (bytes(self),)
        inner, buffers = _attach(_parts(self))
        if protocol >= 5:
            return restore, (inner, [pickle.PickleBuffer(each) for each in buffers])
        return restore, (inner, [bytes(each) for each in buffers])


def _compose(parts: _Parts) -> bytes:
    inner, sizes, reference, placed = parts
    others = tuple((position, size, tuple(where)) for position, size, where in placed)
    # Most values have no others: their references are as short as can be.
    body = (inner, sizes, tuple(reference), others) if others else (inner, sizes, tuple(reference))
    return _PREFIX + pickle.dumps(body, 4)[:-1] + _SUFFIX


def _parts(data: bytes) -> _Parts:
    body = data[len(_PREFIX) : -len(_SUFFIX)] + b"."
    return _as_parts(*pickle.loads(body))


def _as_parts(
    inner: bytes | None,
    sizes: tuple[int, ...],
    reference: tuple[Any, ...],
    others: tuple[tuple[int, int, tuple[Any, ...]], ...] = (),
) -> _Parts:
    placed = tuple((position, size, Reference(*where)) for position, size, where in others)
    return inner, sizes, Reference(*reference), placed


def _attach(parts: _Parts) -> tuple[bytes | None, list[memoryview]]:
    """Map the buffers of a value; without a pickle, the first one is that."""
    inner, sizes, reference, placed = parts
    buffers = segment.cut(segment.attach(reference), sizes)
    for position, size, where in placed:
        (content,) = segment.cut(segment.attach(where), [size])
        buffers.insert(position + (inner is None), content)
    return inner, buffers


def is_stored(data: bytes | None) -> bool:
    """Return whether a pickle is that of a `StoredValue`."""
    return data is not None and data.startswith(_PREFIX)


def is_slow_to_free(value: bytes | str) -> bool:
    """Return whether a value is plain containers that take more than ten milliseconds to free."""
    if type(value) is not StoredValue or value.held_bytes < _MIN_SLOW_BYTES:
        return False
    return _parts(value)[0] == plain_containers.PICKLE


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
    pickled = pickle_value(value, limit)
    return store_pickled(pickled) if isinstance(pickled, Pickled) else pickled


class Pickled(NamedTuple):
    """A value that is to be stored.

    Parameters
    ----------
    data : bytes
        The pickle.
    buffers : list of pickle.PickleBuffer
        The buffers of its objects. As long as they exist, its arrays do.
    """

    data: bytes
    buffers: list[pickle.PickleBuffer]


def pickle_value(value: object, limit: int) -> bytes | Pickled:
    """Pickle a value, and do not store it yet if it has large buffers.

    Returns
    -------
    bytes or Pickled
        A `Pickled`, which `store_pickled` stores; else what `dumps` returns.

    Raises
    ------
    Exception
        As `dumps`.
    """
    if type(value) in pickling.PLAIN:
        data = pickling.dumps_plain(value)
        return data if len(data) <= limit else _store(data, [])
    plain = plain_containers.dumps(value)
    if plain is not None:
        stored = _store(plain_containers.PICKLE, [plain.content])
        if type(stored) is StoredValue:
            stored.was_closed = plain.closed
        return stored
    data, buffers = pickling.dumps_with_buffers(value, min(limit, pickling.MIN_SHARED_BUFFER_BYTES))
    if not buffers:
        return data if len(data) <= limit else _store(data, [])
    return Pickled(data, buffers)


def store_pickled(pickled: Pickled) -> bytes:
    """Store a pickled value; see `dumps`. Raises OSError if there is no memory."""
    return _store(*pickled)


def store_in_place(pickled: Pickled, box: list[Any]) -> tuple[bytes, bool | None]:
    """Store a pickled value; those of its arrays that are in the arena already are not copied.

    Parameters
    ----------
    pickled : Pickled
        The value, pickled.
    box : list
        The value alone, as for `arrays_in_place.take`. If storing it raises an exception, it has
        an equal one.

    Returns
    -------
    (bytes, bool or None)
        As `dumps`, and whether any array was stored in place; None if none is in the arena.

    Raises
    ------
    OSError
        There is no memory.
    """
    data, buffers = pickled
    found, placed = arrays_in_place.take(box, buffers)
    try:
        if found:
            # Another thread may have forked since: then they are copied, too.
            with contextlib.suppress(OSError):
                return _store(data, buffers, found), True
        return _store(data, buffers), False if placed else None
    except BaseException:
        if not box:
            box.append(pickling.loads_with_buffers(data, buffers))
        raise


def _store(
    inner: bytes | None, buffers: Sequence[Any], in_place: Sequence[ArrayInPlace] = ()
) -> bytes:
    """Store a pickle with its buffers; without a pickle, the first buffer is that.

    Parameters
    ----------
    inner : bytes, optional
        The pickle.
    buffers : sequence
        The buffers.
    in_place : sequence of ArrayInPlace
        Those of them that need not be copied.
    """
    placed = {each.position for each in in_place}
    copied = [_raw(each) for n, each in enumerate(buffers) if n not in placed]
    if inner is not None and len(inner) > _MAX_INNER_BYTES:
        copied, inner = [inner, *copied], None
    sizes = tuple(memoryview(each).nbytes for each in copied)
    first: Segment | None = None
    if copied or not in_place:
        # Before the others: they cannot be taken back.
        first = segment.store(copied, sizes)
        if first is None:
            assert not in_place  # there is an arena
            return _carried(inner, copied)
    held = array_ranges.store_ranges([each.address for each in in_place])
    rest = list(zip(in_place, held, strict=True))
    if first is None:
        (alone, first), *rest = rest
        sizes = (alone.size,)
    return _refer(inner, sizes, first, [(each.position, each.size, one) for each, one in rest])


def _raw(buffer: Any) -> Any:
    return buffer.raw() if type(buffer) is pickle.PickleBuffer else buffer


def _refer(
    inner: bytes | None,
    sizes: tuple[int, ...],
    first: Segment,
    others: Sequence[tuple[int, int, Segment]] = (),
) -> StoredValue:
    placed = tuple((position, size, held.reference) for position, size, held in others)
    value = StoredValue(_compose((inner, sizes, first.reference, placed)))
    value.segment = first
    value.others = tuple(held for _, _, held in others)
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


def load_stored(*body: Any) -> Any:
    """Make the objects of a stored value, on top of private mappings of its buffers.

    Parameters
    ----------
    *body
        The parameters of `_as_parts`.

    Raises
    ------
    ValueGone
        The buffers are gone.
    """
    parts = _as_parts(*body)
    inner, sizes, reference, placed = parts
    if len(sizes) == 1 and not placed and (inner is None or inner == plain_containers.PICKLE):
        return _load_alone(reference, sizes[0], inner)
    inner, buffers = _attach(parts)
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
    return value.held_bytes if type(value) is StoredValue else 0


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
    return _carried(*_attach(_parts(data)))


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
    inner, sizes, reference, placed = _parts(data)
    try:
        held = segment.adopt(reference, made_here)
        others = [(where, size, segment.adopt(each, made_here)) for where, size, each in placed]
    except ValueGone:
        return StoredValue(data)
    if not others and held.arena.location == (reference.process, reference.descriptor):
        value = StoredValue(data)
        value.segment = held
        return value
    # Others find it in this process from now on: the one that made it may end.
    return _refer(inner, sizes, held, others)


def token_of(value: StoredValue) -> bytes:
    """Return what is equal for equal references, in whichever process they are found."""
    _, _, reference, _ = _parts(value)
    return reference.token


def erase_orphans() -> None:
    """Free what workers that have ended had stored, and no process holds."""
    segment.erase_orphans()
