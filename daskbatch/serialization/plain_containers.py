"""Stores large containers of texts by `marshal`, which takes a part of the time of `pickle`.

Of a dictionary of a million texts, `pickle` remembers each text, in case that it comes again; this
takes most of the time. `marshal` remembers only objects that something else refers to as well. It
supports exact built-in types alone, and takes any other object with a buffer for bytes: so the
types are checked before. Numbers, which `pickle` does not remember, and sets, which `marshal`
sorts, are pickled. Only processes with the same Python exchange such values. Pure functions; any
number of threads may call.
"""

from __future__ import annotations

import marshal
import pickle
from collections.abc import Collection, Iterable
from itertools import islice
from sys import getrefcount
from typing import Any, NamedTuple

from daskbatch.serialization import pickling
from daskbatch.serialization.item_types import all_in_dictionary, all_in_sequence

#: A container is large if it, or one of the first few objects in it, has at least so many items.
_MIN_ITEMS = 20_000
_MAX_LOOKED_AT = 64

#: How many objects `is_plain_at_ends` looks at, from each end.
_MAX_LOOKED_AT_END = 500

#: If there are more containers in it, checking the types may take longer than `pickle`.
_MAX_CONTAINERS = 1_000

#: The format: that of Python 3.4, which all versions since can read.
_VERSION = 4

_CONTAINERS = frozenset({dict, list, tuple})
_TEXTS = frozenset({str, bytes})
_ALLOWED = _CONTAINERS | pickling.PLAIN


class _Loaded:
    """Pickled as a call of `marshal.loads` with a buffer that is out of band."""

    def __reduce__(self) -> tuple[Any, ...]:
        return marshal.loads, (pickle.PickleBuffer(b""),)


#: The pickle of any such value, without the buffer.
PICKLE = pickle.dumps(_Loaded(), 5, buffer_callback=lambda _: None)


class PlainData(NamedTuple):
    """A stored value.

    Parameters
    ----------
    content : bytes
        The buffer that belongs to `PICKLE`.
    closed : bool
        Whether nothing outside of the value refers to a container in it.
    """

    content: bytes
    closed: bool


def dumps(value: Any) -> PlainData | None:
    """Store a large container of texts; None if the value is to be pickled.

    Examples
    --------
    >>> data = dumps({number: str(number) for number in range(100_000)})
    >>> pickle.loads(PICKLE, buffers=[data.content])[99_999]
    '99999'
    >>> dumps([bytearray(100_000)]) is dumps([1, 2, 3]) is None
    True
    """
    try:
        if _is_large(value):
            closed = _find_if_closed(value)
            if closed is not None:
                return PlainData(marshal.dumps(value, _VERSION), closed)
    except (RuntimeError, ValueError):
        pass  # a thread of the task still changes it, or it is nested too deeply for `marshal`
    return None


def find_large(values: Iterable[Any]) -> list[Any]:
    """Return those values that are, or hold, large containers that begin with a text."""
    return [value for value in values if _is_large(value)]


def is_plain_at_ends(value: Any) -> bool:
    """Return whether a large container that was plain has got no other objects at its ends.

    To look at all of it takes half as long as to free it. What a program adds comes last.

    Parameters
    ----------
    value : dict, list or tuple
        A container that consisted of plain objects before a task was given it.

    Examples
    --------
    >>> texts = [str(number) for number in range(100_000)]
    >>> is_plain_at_ends(texts), is_plain_at_ends([*texts, open])
    (True, False)
    """
    containers, seen = [value], {id(value)}
    for container in containers:  # it grows meanwhile
        found = _ends(container)
        if type(container) is dict:
            found += _ends(container.values())
        for each in found:
            if type(each) in _CONTAINERS:
                if id(each) not in seen and len(seen) < _MAX_CONTAINERS:
                    seen.add(id(each))
                    containers.append(each)
            elif type(each) not in pickling.PLAIN:
                return False
    return True


def _ends(items: Any) -> list[Any]:
    return [*islice(items, _MAX_LOOKED_AT_END), *islice(reversed(items), _MAX_LOOKED_AT_END)]


def _is_large(value: Any) -> bool:
    """Return whether a value is, or holds, a large container that begins with a text."""
    if type(value) not in _CONTAINERS:
        return False
    if len(value) >= _MIN_ITEMS:
        return _begins_with_text(value)
    if len(value) <= _MAX_LOOKED_AT:
        for each in _items(value):
            if type(each) in _CONTAINERS and len(each) >= _MIN_ITEMS and _begins_with_text(each):
                return True
    return False


def _begins_with_text(container: Any) -> bool:
    if type(container) is dict and type(next(iter(container), None)) in _TEXTS:
        return True
    return type(next(iter(_items(container)), None)) in _TEXTS


def _items(container: Any) -> Collection[Any]:
    return container.values() if type(container) is dict else container


def _find_if_closed(value: Any) -> bool | None:
    """Return whether nothing else refers to the containers in a container of plain objects.

    None if it contains other objects, or many containers.
    """
    containers = [value]
    seen = {id(value)}
    closed = True
    for container in containers:  # it grows meanwhile
        keys, found = _types_in(container)
        if not (keys <= pickling.PLAIN and found <= _ALLOWED):
            return None
        if found.isdisjoint(_CONTAINERS):
            continue
        closed = closed and refers_alone(container)
        for each in _items(container):
            if type(each) in _CONTAINERS and id(each) not in seen:
                seen.add(id(each))
                containers.append(each)
                if len(containers) > _MAX_CONTAINERS:
                    return None
    return closed


def _types_in(container: Any) -> tuple[set[type], set[type]]:
    """Return the types of the keys of a container, if it is a dictionary, and of the items."""
    items = _items(container)
    item = type(next(iter(items), None))
    # That all have the type of the first one takes less time than to collect the types of all.
    if type(container) is dict:
        key = type(next(iter(container), None))
        if container and all_in_dictionary(container, key, item):
            return {key}, {item}
        return set(map(type, container)), set(map(type, items))
    if container and all_in_sequence(container, item):
        return set(), {item}
    return set(), set(map(type, items))


def refers_alone(container: Any) -> bool:
    """Return whether nothing else refers to the containers that are directly in a container."""
    return _most_references(container) <= _REFERRED_TO_ONCE


def _most_references(container: Any) -> int:
    """Return the highest reference count of these containers, with those of this function."""
    return max(getrefcount(each) for each in _items(container) if type(each) in _CONTAINERS)


#: Counted by the same function, since versions of Python count different references of its own.
_REFERRED_TO_ONCE = _most_references([[]])
