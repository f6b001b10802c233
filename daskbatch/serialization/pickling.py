"""Turns objects into bytes and back, and finds the tasks that stand among arguments.

Does not know what a task is: whatever calls `reference` while it is being pickled is
replaced by a numbered slot, and a slot is filled with a value on the other side. The
pickler itself does the search, so that a task is found wherever pickle can look:
in keywords, nested containers, dataclasses, attributes.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import cloudpickle

from daskbatch.errors import SerializationError
from daskbatch.serialization import namespaces as spaces

PROTOCOL = 5

#: A buffer of at least this many bytes in the arguments (a NumPy array's, say) is kept
#: and sent once, however many tasks are given it.
SHARED_BUFFER = 64 * 1024

loads = pickle.loads

#: Types whose objects are pickled in one way only, and are the same in every process.
PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})


@dataclass(frozen=True, slots=True, weakref_slot=True)
class Buffer:
    """A large buffer found among arguments, named by its content."""

    digest: str
    content: bytes


#: Arguments as bytes, and what was found among them, in order of their slots.
Packed = tuple[bytes, tuple[Any, ...], tuple[Buffer, ...]]


# What goes on in each thread, by its number: looking that up takes a fraction of what a
# `threading.local` does, and there is a look for every task.

#: What `reference` has seen in the running `pack`.
_found: dict[int, list[Any]] = {}
#: The large buffers that the running `pack` has met.
_large: dict[int, list[pickle.PickleBuffer]] = {}
#: What `_fill` hands out in the running `unpack`.
_values: dict[int, Sequence[bytes | str]] = {}
#: The space that what is pickled, or filled in, belongs to.
_spaces: dict[int, str] = {}

_buffers: weakref.WeakValueDictionary[str, Buffer] = weakref.WeakValueDictionary()
_by_owner: weakref.WeakValueDictionary[int, Buffer] = weakref.WeakValueDictionary()


def are_plain(values: Sequence[object]) -> bool:
    """Say whether there is nothing in some values to look for: numbers, texts and the like."""
    return PLAIN.issuperset(map(type, values))


def dumps_plain(obj: object) -> bytes:
    """Pickle what consists of plain values."""
    return pickle.dumps(obj, PROTOCOL)


def dumps(obj: object) -> bytes:
    """Pickle an object by reference where that works elsewhere, by value where it must."""
    if type(obj) in PLAIN:
        return dumps_plain(obj)
    data = dumps_by_reference(obj)
    return _dumps_by_value(obj, None) if data is None else data


def dumps_by_reference(
    obj: object, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None = None
) -> bytes | None:
    """Pickle an object by reference; None if that does not work elsewhere."""
    # What is defined in __main__, or in a module registered with cloudpickle, does not
    # exist in other processes: it must travel by value, and plain pickle cannot do that.
    if cloudpickle.list_registry_pickle_by_value():
        return None
    try:
        data = pickle.dumps(obj, PROTOCOL, buffer_callback=buffer_callback)
    except Exception:
        return None
    return None if b"__main__" in data else data


def _dumps_by_value(
    obj: object, buffer_callback: Callable[[pickle.PickleBuffer], Any] | None
) -> bytes:
    name = _spaces.get(get_ident()) if _spaces else None
    if name is None:
        data: bytes = cloudpickle.dumps(obj, PROTOCOL, buffer_callback=buffer_callback)
        return data
    with io.BytesIO() as file:
        spaces.Pickler(file, name, PROTOCOL, buffer_callback).dump(obj)
        return file.getvalue()


@contextmanager
def within(space: str | None) -> Iterator[None]:
    """Have this thread pickle and unpack for a space; see `daskbatch.serialization.namespaces`."""
    if space is None:
        yield
        return
    thread = get_ident()
    outer = _spaces.get(thread)
    _spaces[thread] = space
    try:
        yield
    finally:
        if outer is None:
            del _spaces[thread]
        else:
            _spaces[thread] = outer


def dumps_apart(obj: object, least: int) -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickle an object, but for its large buffers, which are not copied.

    Parameters
    ----------
    obj : object
        Anything that pickles.
    least : int
        From which size on a buffer is large. Bytes.
    """
    apart: list[pickle.PickleBuffer] = []

    def goes_in_band(buffer: pickle.PickleBuffer) -> bool:
        try:
            if buffer.raw().nbytes < least:
                return True
        except BufferError:  # it is not in one piece
            return True
        apart.append(buffer)
        return False

    data = dumps_by_reference(obj, goes_in_band)
    if data is None:
        apart.clear()
        data = _dumps_by_value(obj, goes_in_band)
    return data, apart


def pack(obj: object) -> Packed:
    """Pickle arguments, and find the tasks and the large buffers among them.

    Raises
    ------
    SerializationError
        The object cannot be pickled; the reason is the cause.
    """
    thread = get_ident()
    # An object may pack something while it is packed itself.
    outer = _found.get(thread)
    outer_large = _large.pop(thread, None) if _large else None
    found: list[Any] = []
    _found[thread] = found
    try:
        data = dumps_by_reference(obj, _goes_in_band)
        if data is None:
            found.clear()
            _large.pop(thread, None)
            data = _dumps_by_value(obj, _goes_in_band)
    except Exception as error:
        raise SerializationError(f"{type(error).__name__}: {error}") from error
    finally:
        large = _large.pop(thread, None) if _large else None
        if outer is None:
            del _found[thread]
        else:
            _found[thread] = outer
        if outer_large is not None:
            _large[thread] = outer_large
    return data, tuple(found), tuple(map(_by_content, large)) if large else ()


class _Nowhere:
    """A file that keeps nothing."""

    def write(self, data: Any) -> int:
        return len(data)


def can_be_pickled(obj: object, tasks: bool = False) -> bool:
    """Say whether an object can be pickled; with tasks within, if that may be.

    It takes as long as to pickle it, but no room.
    """
    thread = get_ident()
    outer = _found.pop(thread, None)
    if tasks:
        _found[thread] = []
    try:
        cloudpickle.Pickler(_Nowhere(), PROTOCOL, lambda _: None).dump(obj)
    except (Exception, SystemExit):
        return False
    finally:
        _found.pop(thread, None)
        if outer is not None:
            _found[thread] = outer
    return True


def _goes_in_band(buffer: pickle.PickleBuffer) -> bool:
    if buffer.raw().nbytes < SHARED_BUFFER:
        return True
    _large.setdefault(get_ident(), []).append(buffer)
    return False


def _by_content(buffer: pickle.PickleBuffer) -> Buffer:
    content = bytes(buffer.raw())
    # The same array is likely to come again. To compare it takes a fraction of hashing it,
    # and tells for sure: the owner may have changed it, or be another by now.
    owner = id(buffer.raw().obj)
    likely = _by_owner.get(owner)
    if likely is not None and likely.content == content:
        return likely
    known = _by_owner[owner] = make_buffer(content)
    return known


def make_buffer(content: bytes) -> Buffer:
    """Name bytes by what they are; the same are one buffer."""
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    known = _buffers.get(digest)
    if known is None:
        known = _buffers[digest] = Buffer(digest, content)
    return known


def reference(target: object) -> tuple[Callable[[int], Any], tuple[int]] | None:
    """Reduce an object to the next slot of the running `pack`; None if none is running."""
    found = _found.get(get_ident())
    if found is None:
        return None
    found.append(target)
    return _fill, (len(found) - 1,)


def _fill(slot: int) -> Any:
    thread = get_ident()
    value = _values[thread][slot]
    if isinstance(value, str):
        return value
    space = _spaces.get(thread) if _spaces else None
    return loads(value) if space is None else spaces.loads(value, space)


def unpack(data: bytes, values: Sequence[bytes | str] = (), buffers: Sequence[bytes] = ()) -> Any:
    """Undo `pack`, each slot filled with a fresh copy of its value.

    Parameters
    ----------
    data : bytes
        Its first.
    values : sequence of bytes or str
        For each slot a pickled value, or a text that stands for itself.
    buffers : sequence of bytes
        The contents of its buffers; they are copied, so that tasks may write to theirs.
    """
    if not values and not buffers:
        return loads(data)
    thread = get_ident()
    outer = _values.get(thread)
    _values[thread] = values
    try:
        return loads(data, buffers=[bytearray(each) for each in buffers])
    finally:
        if outer is None:
            del _values[thread]
        else:
            _values[thread] = outer
